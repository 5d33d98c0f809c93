"""Convert the state_dict of ``torch.optim.RMSprop``, and export it back.

torch itself is not imported: tensors provide their NumPy arrays, and make new tensors
of their own kind. For each parameter:

    square_avg        nu, as it is; if centered, ν = E[g²] − m² and back, in float64
    momentum_buffer   mu, as it is: both apply momentum before the learning rate
    grad_avg          grad_mean, as it is
    step              the step count: the largest of any parameter, as some may join
    late

The buffers have the layout of the weights. So a function that converts the weights to
the layout of a JAX model, and only rearranges them, converts the buffers too.

A state_dict has one of three forms:

    nested     'state' by parameter and 'param_groups', as torch itself makes it
    flat       keys such as 'state.0.square_avg', as safetensors keeps tensors, and
               'param_groups': a list or, from the file's metadata, its JSON
    by name    keys such as 'state.layer.weight.square_avg' and
               'param_groups.layer.weight.lr', as torch.distributed.checkpoint makes it
"""

from __future__ import annotations

from typing import Literal

import optax

from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import FromParams, Override, Run, ToParams
from rmsprop_jax.checkpoints._readers.source import File
from rmsprop_jax.checkpoints._torch_family.conversion import export, resume
from rmsprop_jax.checkpoints._torch_family.locate import NewStateDict, StateDict
from rmsprop_jax.checkpoints._torch_family.optimizers import TORCH
from rmsprop_jax.checkpoints._torch_family.schedulers import validate_counting
from rmsprop_jax.checkpoints._torch_family.state_dict import Names


def from_torch(
    checkpoint: StateDict | File,
    to_params: ToParams | None = None,
    *,
    names: Names | None = None,
    learning_rate: Override | Literal["checkpoint"] | None = None,
    momentum: Override | None = None,
    updates_per_step: int | None = None,
    offset: int | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Resume a run of ``torch.optim.RMSprop`` in JAX.

    Args:
        checkpoint: The path of a file that ``torch.save`` wrote, or of a folder that
            torch.distributed.checkpoint wrote, as FSDP runs do; or what it holds:
            ``torch.optim.RMSprop(...).state_dict()``, of tensors on any device or of
            NumPy arrays, or a whole run's checkpoint that contains one, such as
            Lightning's. The state_dict may also be flat, as safetensors keeps it
            (``"state.0.square_avg"``), or by name, as torch.distributed.checkpoint
            makes it (``"state.layer.weight.square_avg"``).
        to_params: The function from torch's weights, NumPy arrays by name, to the
            parameters of the model. It may rename, transpose, reshape, join, split and
            stack, but must not cast, pad or compute. By default the parameters are a
            dictionary by torch's names.
        names: torch's names of the parameters in the optimizer's order, if the groups
            have no ``param_names``. (torch 2.6 and later writes them for an optimizer
            made from ``named_parameters()``.) For one group, made from
            ``model.parameters()``, they may be ``dict(model.named_parameters())``. Pass
            this dictionary if a parameter never had a gradient, because then only the
            weight knows its shape. Several groups have their own order:

                name_of = {p: name for name, p in model.named_parameters()}
                names = [
                    name_of[p]
                    for group in optimizer.param_groups
                    for p in group["params"]
                ]
        learning_rate: A number or a schedule in place of the groups' ``lr``, or a list
            with one for each group. A schedule is a function of the step count, which
            continues from the largest ``step`` of any parameter. ``"checkpoint"``
            resumes the scheduler whose state_dict is in the checkpoint, as Lightning's
            ``lr_schedulers`` are; `rmsprop_jax.schedules.from_torch` takes one that is
            elsewhere.
        momentum: As ``learning_rate``, for the groups' ``momentum``, which OneCycleLR
            and CyclicLR change too. ``learning_rate="checkpoint"`` resumes both.
        updates_per_step: With ``learning_rate="checkpoint"``, the number of updates per
            step of the scheduler, by default 1. If it steps once per epoch, this is the
            number of updates in an epoch, which the error suggests.
        offset: With ``learning_rate="checkpoint"``, what is added to the step count, by
            default 0. It is n if GradScaler skipped n steps, because the scheduler
            counted them and the optimizer did not.
        shardings: Where each leaf of the state is put as it is read, so that no device
            and no process holds more than its part: a pytree of
            ``jax.sharding.Sharding`` like the parameters that ``to_params`` makes; one
            for all of them; or a function ``(path, shape) -> sharding``. The path is
            the leaf's path in the parameters with its keys joined by "/", such as
            ``"decoder/layers/0/kernel"``, and the shape is that of the whole leaf. By
            default, everything is on JAX's default device. The step count is
            replicated.

    Returns:
        ``(tx, opt_state)``. If all groups have the same settings, ``tx`` is an
        `rmsprop`. Otherwise it is an ``optax.partition`` with one for each distinct
        group: ``"group_0"``, ``"group_1"`` and so on. The state is like that of
        ``tx.init(params)``. It is float32, or float64 if torch's is and x64 is enabled.
        It shares no memory with ``checkpoint``.

    Raises:
        ValueError: If the checkpoint is of another optimizer (such as timm's), or lacks
            something; if ``names`` or ``to_params`` do not fit
            it; if parameters of groups with different settings end up in one leaf; if
            the file is damaged; if ``shardings`` are of another tree, or do not divide
            a leaf. With ``learning_rate="checkpoint"``, if there is not exactly one
            scheduler, if it can't be resumed, or if the number of its steps does not
            follow from ``updates_per_step`` and ``offset``.
        TypeError: If ``names`` are not names, or ``shardings`` not shardings.

    Warns:
        UserWarning: If a group shows that a scheduler changed its ``lr`` or its
            ``momentum``, and ``learning_rate`` or ``momentum`` is not given. If the
            scheduler is in the checkpoint, the warning has the arguments that resume
            it. Also for a CyclicLR with ``learning_rate="checkpoint"``, because PyTorch
            does not store whether it had a ``scale_fn``.

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
    return resume(
        TORCH,
        checkpoint,
        to_params,
        names,
        learning_rate,
        momentum,
        counting=validate_counting(updates_per_step, offset),
        shardings=shardings,
    )


def to_torch(
    opt_state: optax.OptState,
    from_params: FromParams | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> NewStateDict:
    """Export the state, so that ``torch.optim.RMSprop`` resumes the run.

    The result keeps the learning rates of ``like``. If a scheduler changes them, export
    it with `rmsprop_jax.schedules.to_torch`; the ``_last_lr`` of its result has each
    group's learning rate.

    Args:
        opt_state: An `RMSPropState`, or that of an ``optax.partition`` of `rmsprop`, as
            `from_torch` makes them. (The momentum buffer of a dialect that applies the
            learning rate inside it, such as Keras's, has another unit. The state does
            not show this.)
        from_params: The inverse of `from_torch`'s ``to_params``: from a pytree like the
            parameters to a dictionary of arrays by torch's names. By default the
            parameters are such a dictionary.
        like: A state_dict of the optimizer that will load the result. The result keeps
            its groups and their settings, ``lr`` among them, and the type (torch tensor
            or NumPy array), the dtype and the device of each buffer. It is not changed.
        names: As in `from_torch`, if ``like`` has no ``param_names``. For an optimizer
            that has not stepped yet, give ``dict(model.named_parameters())``: its
            tensors then show the type.

    Returns:
        A new dictionary of the form of ``like``, or of the optimizer's part of it, for
        ``load_state_dict``. Every ``step`` is that of ``like`` plus the updates since,
        so the largest is the step count of ``opt_state``. A parameter without state in
        ``like`` gets none if its moments are all 0, because torch creates the state at
        the first gradient.

    Raises:
        ValueError: If ``like`` is not a state_dict of ``torch.optim.RMSprop``, or does
            not have the buffers that the state has; if ``names`` or ``from_params`` do
            not fit it.
        TypeError: If the state is another one, or ``names`` are not names.

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
    return export(TORCH, opt_state, from_params, like, names)
