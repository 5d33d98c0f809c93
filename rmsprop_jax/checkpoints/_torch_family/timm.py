"""Convert ``timm.optim.RMSpropTF`` in a file of timm's script, and export it back.

The buffers are PyTorch's (see `rmsprop_jax.checkpoints.from_torch`). ν is initialized
to 1, and the learning rate is applied inside mu unless a group says
``lr_in_momentum=False``. In the file:

    optimizer         the state_dict, whose groups also have decoupled_decay,
                      corrected_weight_decay, max_lr_snapshot, lr_in_momentum, caution
    state_dict        the weights
    state_dict_ema    their moving averages, with ``--model-ema``

timm's script makes two groups. The first has no weight decay, and contains all
parameters that have at most one dimension or are called ``bias``. Each group is in the
model's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import optax

from rmsprop_jax.checkpoints._convert.arrays import Value, to_float
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import (
    FromParams,
    Override,
    Run,
    Settings,
    ToParams,
)
from rmsprop_jax.checkpoints._readers.source import File
from rmsprop_jax.checkpoints._torch_family.conversion import export, resume
from rmsprop_jax.checkpoints._torch_family.locate import (
    NewStateDict,
    StateDict,
    find_trainable_names,
)
from rmsprop_jax.checkpoints._torch_family.optimizers import TIMM
from rmsprop_jax.checkpoints._torch_family.schedulers import validate_counting
from rmsprop_jax.checkpoints._torch_family.state_dict import Names


def from_timm(
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
    """Resume a run of ``timm.optim.RMSpropTF`` in JAX.

    Args:
        checkpoint: A file of timm's training script (``.pth.tar``), what it holds, or
            the state_dict of a ``timm.optim.RMSpropTF``.
        to_params: As in `from_torch`.
        names: As in `from_torch`. By default they are those of the weights in the file,
            in the order of the groups that timm's script makes: first the group without
            weight decay, with all parameters that have at most one dimension or are
            called ``bias``. With other groups, such as those of layer decay, names must
            be given.
        learning_rate: As in `from_torch`. timm's script uses a schedule unless told
            otherwise, but does not save it. Make it with
            `rmsprop_jax.schedules.cosine_lr_scheduler` or
            `rmsprop_jax.schedules.step_lr_scheduler`.
        momentum: As in `from_torch`.
        updates_per_step: As in `from_torch`.
        offset: As in `from_torch`.
        shardings: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` as in `from_torch`, with `rmsprop_jax.dialects.timm`. The
        state of a parameter that never had a gradient is 1.

    Raises:
        ValueError: As in `from_torch`; also if the optimizer is another one.
        TypeError: If ``names`` are not names.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_timm
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> group |= dict(decoupled_decay=False, lr_in_momentum=True)
        >>> buffers = {"step": 1, "square_avg": np.array([3.0, 1.0])}
        >>> optimizer = {"state": {0: buffers}, "param_groups": [group]}
        >>> weights = {"norm.weight": np.array([1.0, 2.0])}
        >>> checkpoint = {"optimizer": optimizer, "state_dict": weights, "epoch": 1}
        >>> tx, state = from_timm(checkpoint)
        >>> state.nu
        {'norm.weight': Array([3., 1.], dtype=float32)}

    References:
        timm 1.0.31, ``timm/optim/rmsprop_tf.py``, ``timm/utils/checkpoint_saver.py``
        and ``timm/optim/_param_groups.py``.
    """
    return resume(
        TIMM,
        checkpoint,
        to_params,
        names,
        learning_rate,
        momentum,
        guess_names,
        validate_counting(updates_per_step, offset),
        shardings,
    )


def to_timm(
    opt_state: optax.OptState,
    from_params: FromParams | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> NewStateDict:
    """Export the state, so that ``timm.optim.RMSpropTF`` resumes the run.

    Args:
        opt_state: As in `to_torch`, of `rmsprop_jax.dialects.timm`.
        from_params: As in `to_torch`.
        like: A state_dict of the ``timm.optim.RMSpropTF`` that will load the result.
        names: As in `to_torch`.

    Returns:
        A new dictionary for the optimizer's ``load_state_dict``. A parameter without
        state in ``like`` gets one, because in JAX its ν decays from 1 at every step.

    Raises:
        ValueError: As in `to_torch`; also if the optimizer is another one.
        TypeError: If the state is another one, or ``names`` are not names.
    """
    return export(TIMM, opt_state, from_params, like, names)


def guess_names(
    groups: list[Settings], weights: Mapping[str, Value]
) -> list[str] | None:
    """Return the names as timm's script puts them into groups, if it did."""
    names = find_trainable_names(weights)
    flat = [n for n in names if len(np.shape(weights[n])) <= 1 or n.endswith(".bias")]
    others = [n for n in names if n not in set(flat)]
    sizes = [len(group["params"]) for group in groups]
    if sizes == [len(names)]:
        return names
    if sizes != [len(flat), len(others)] or to_float(groups[0]["weight_decay"]) != 0:
        return None
    return flat + others
