"""``timm.optim.RMSpropTF`` in a ``.pth.tar`` of timm's training script, and back.

The buffers are torch's (see `rmsprop_jax.checkpoints._torch`); ν begins at 1, and mu
holds the rate unless a group says ``lr_in_momentum=False``. In the file:

    optimizer         the state_dict, whose groups also have decoupled_decay,
                      corrected_weight_decay, max_lr_snapshot, lr_in_momentum, caution
    state_dict        the weights
    state_dict_ema    their moving averages, with ``--model-ema``

timm's script makes two groups, and the one without decay comes first: what has one
dimension or none, and what is called ``bias``. Each is in the model's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax.checkpoints._arrays import as_float
from rmsprop_jax.checkpoints._files import File
from rmsprop_jax.checkpoints._records import InPlace
from rmsprop_jax.checkpoints._torch_format import Names
from rmsprop_jax.checkpoints._torch_kinds import TIMM
from rmsprop_jax.checkpoints._torch_layout import Settings, StateDict, trained
from rmsprop_jax.checkpoints._torch_runs import handed_back, resumed


def from_timm(
    checkpoint: StateDict | File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
    *,
    names: Names | None = None,
    learning_rate: InPlace | None = None,
    momentum: InPlace | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where timm stopped.

    Args:
        checkpoint: A file of timm's training script (``.pth.tar``), its dictionary, or
            the state_dict of a ``timm.optim.RMSpropTF``.
        to_params: As in `from_torch`.
        names: As in `from_torch`. By default those of the weights in the file, in the
            order in which timm's script makes the groups (see the module). The shapes
            must agree. With other groups, as of layer decay, they must be given.
        learning_rate: As in `from_torch`. timm's script has a schedule by default.
        momentum: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` as of `from_torch`, with `rmsprop_jax.dialects.timm`. A
        parameter that never had a gradient begins at 1.

    Raises:
        ValueError: As `from_torch` does, and where the optimizer is another one.
        TypeError: Where ``names`` are not names.

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
    return resumed(
        TIMM, checkpoint, to_params, names, learning_rate, momentum, _usual_names
    )


def to_timm(
    opt_state: optax.OptState,
    from_params: Callable[[Any], Mapping[str, npt.ArrayLike]] | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> dict[str, Any]:
    """The state_dict with which timm goes on where JAX stopped.

    Args:
        opt_state: As in `to_torch`, of `rmsprop_jax.dialects.timm`.
        from_params: As in `to_torch`.
        like: A state_dict of the ``timm.optim.RMSpropTF`` that shall load the result.
        names: As in `to_torch`.

    Returns:
        A new dictionary, which the optimizer's ``load_state_dict`` takes. A parameter
        that has no state in ``like`` gets one: ν begins at 1, and here it decays at
        every step.

    Raises:
        ValueError: As `to_torch` does, and where the optimizer is another one.
        TypeError: Where the state is another one, or ``names`` are not names.
    """
    return handed_back(TIMM, opt_state, from_params, like, names)


def _usual_names(
    groups: list[Settings], weights: Mapping[str, np.ndarray]
) -> list[str] | None:
    """The names as timm's script puts them into groups; None where it did not."""
    names = trained(weights)
    flat = [n for n in names if np.ndim(weights[n]) <= 1 or n.endswith(".bias")]
    others = [n for n in names if n not in flat]
    sizes = [len(group["params"]) for group in groups]
    if sizes == [len(names)]:
        return names
    if sizes != [len(flat), len(others)] or as_float(groups[0]["weight_decay"]) != 0:
        return None
    return flat + others
