"""The state_dict of ``torch.optim.RMSprop`` into our state, and back.

torch itself is not needed. Its tensors are asked for their NumPy arrays, and make new
tensors of their own kind. For each parameter:

    square_avg        nu, as it is; centered, ν = E[g²] − m² and back, in float64
    momentum_buffer   mu, as it is: both keep the momentum before the rate
    grad_avg          grad_mean, as it is
    step              count: the most that any parameter has, as some may join late

The buffers lie in memory like the weights. So what carries the weights from torch's
layout to that of a JAX model, and only rearranges them, carries the buffers too.

A state_dict has one of three forms:

    nested     'state' by parameter and 'param_groups', as torch itself makes it
    flat       keys such as 'state.0.square_avg', as safetensors keeps tensors, and
               'param_groups': a list or, from the file's metadata, its JSON
    by name    keys such as 'state.layer.weight.square_avg' and
               'param_groups.layer.weight.lr', as torch.distributed.checkpoint makes it

Names are without what DistributedDataParallel and torch.compile add, ``module.`` (where
all have it) and ``_orig_mod.``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax.checkpoints._files import File
from rmsprop_jax.checkpoints._records import InPlace
from rmsprop_jax.checkpoints._torch_format import Names
from rmsprop_jax.checkpoints._torch_kinds import TORCH
from rmsprop_jax.checkpoints._torch_layout import StateDict
from rmsprop_jax.checkpoints._torch_runs import handed_back, resumed


def from_torch(
    state_dict: StateDict | File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
    *,
    names: Names | None = None,
    learning_rate: InPlace | None = None,
    momentum: InPlace | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where torch stopped.

    Args:
        state_dict: ``torch.optim.RMSprop(...).state_dict()``, of tensors on any device
            or of NumPy arrays. It may also be flat, as safetensors keeps it
            (``"state.0.square_avg"``), or by name, as torch.distributed.checkpoint
            makes it (``"state.layer.weight.square_avg"``). Or the checkpoint of a whole
            run that has one in it, such as Lightning's. Or the path of a file that
            ``torch.save`` wrote of any of these.
        to_params: The function from torch's weights, NumPy arrays by name, to the
            model's parameters. It may rename, transpose, reshape, join, split and
            stack. It may not cast or compute. By default the parameters are a
            dictionary by torch's names.
        names: torch's names of the parameters in the optimizer's order, where the
            groups have no ``param_names``, which torch writes since 2.6 for an
            optimizer made from ``named_parameters()``. With one group, made from
            ``model.parameters()``, they may be ``dict(model.named_parameters())``. The
            weights in it are needed where a parameter never had a gradient, as only the
            weight knows its shape. Several groups have an order of their own:

                name_of = {p: name for name, p in model.named_parameters()}
                names = [
                    name_of[p]
                    for group in optimizer.param_groups
                    for p in group["params"]
                ]
        learning_rate: A number or a schedule in place of the groups' ``lr``, or a list
            of one for each group. A schedule is a function of the count of updates,
            which starts at the largest ``step`` of any parameter. Where GradScaler
            skipped n steps, torch's scheduler is ahead of it: give
            ``lambda count: schedule(count + n)``, where n is the scheduler's
            ``last_epoch`` less that ``step``.
        momentum: Likewise in place of the groups' ``momentum``. torch's OneCycleLR, for
            one, changes it too.

    Returns:
        ``(tx, opt_state)``. With one group ``tx`` is an `rmsprop`. With several it is
        an ``optax.partition`` of one for each: ``"group_0"``, ``"group_1"`` and so on.
        The state is like that of ``tx.init(params)``. It is float32, or float64 where
        torch's is and x64 is enabled. It shares no memory with ``state_dict``.

    Raises:
        ValueError: Where the dictionary is not one of ``torch.optim.RMSprop`` (but of
            timm, say), lacks something, or does not tell enough; where ``names`` or
            ``to_params`` do not fit it; where parameters of different groups end up in
            one leaf; where the file is damaged, or asks to run something.
        TypeError: Where ``names`` are not names.

    Warns:
        UserWarning: Where a group shows a scheduler, and neither ``learning_rate`` nor
            ``momentum`` says how its settings go on.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_torch
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> buffers = {"step": 1, "square_avg": np.array([[2.25, 6.25, 0.0]])}
        >>> state_dict = {"state": {0: buffers}, "param_groups": [group]}
        >>> def to_params(weights):
        ...     return {"kernel": weights["weight"].T}
        >>> tx, state = from_torch(state_dict, to_params, names=["weight"])
        >>> state.count, state.nu["kernel"].shape
        (Array(1, dtype=int32), (3, 1))

    References:
        torch 2.13.0, ``torch/optim/rmsprop.py`` and ``Optimizer.state_dict``.
    """
    return resumed(TORCH, state_dict, to_params, names, learning_rate, momentum)


def to_torch(
    opt_state: optax.OptState,
    from_params: Callable[[Any], Mapping[str, npt.ArrayLike]] | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> dict[str, Any]:
    """The state_dict with which torch goes on where JAX stopped.

    Args:
        opt_state: An `RMSPropState`, or that of an ``optax.partition`` of `rmsprop`, as
            `from_torch` makes them. (The momentum of a dialect that holds the rate,
            such as Keras's, has another unit. The state does not show this.)
        from_params: The inverse of `from_torch`'s ``to_params``: from a tree like the
            parameters to a dictionary of arrays by torch's names. By default the
            parameters are such a dictionary.
        like: A state_dict of the optimizer that shall load the result. The groups and
            their settings, ``lr`` among them, are taken from it. So are the kind (torch
            tensor or NumPy array), dtype and device of each buffer. It is not changed.
        names: As in `from_torch`, where ``like`` has no ``param_names``. For an
            optimizer that has not stepped yet, ``dict(model.named_parameters())``. Its
            tensors then show the kind.

    Returns:
        A new dictionary of the form of ``like``, or of the optimizer's part of it,
        which ``load_state_dict`` takes. Every
        ``step`` is that of ``like`` plus the updates since, so that the largest is our
        count. A parameter that has no state in ``like`` gets none as long as ours is
        all zeros: torch has none before the first gradient.

    Raises:
        ValueError: Where ``like`` is not a state_dict of ``torch.optim.RMSprop``, or
            has not the buffers that the state has; where ``names`` or ``from_params``
            do not fit it.
        TypeError: Where the state is another one, or ``names`` are not names.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_torch, to_torch
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> buffers = {"step": 1, "square_avg": np.array([[2.25, 6.25, 0.0]])}
        >>> like = {"state": {0: buffers}, "param_groups": [group]}
        >>> tx, state = from_torch(like, names=["weight"])
        >>> gradients = {"weight": np.array([[0.5, 0.5, 1.0]], np.float32)}
        >>> _, state = tx.update(gradients, state)
        >>> to_torch(state, like=like, names=["weight"])["state"][0]
        {'step': 2, 'square_avg': array([[1.75, 4.75, 0.25]])}
    """
    return handed_back(TORCH, opt_state, from_params, like, names)
