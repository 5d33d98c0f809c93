"""The optimizer in a zip file of Stable-Baselines3, and back.

    policy.pth              the weights; the optimizer has them in this order, without
                            those of target networks
    policy.optimizer.pth    the state_dict, with torch's buffers (see
                            `rmsprop_jax.checkpoints._torch`)

The optimizer is ``torch.optim.RMSprop``, as A2C has it by default, or RMSpropTFLike,
whose ν begins at 1 and has ε inside the root.
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
from rmsprop_jax.checkpoints._torch_kinds import STABLE_BASELINES3
from rmsprop_jax.checkpoints._torch_layout import Settings, StateDict, trained
from rmsprop_jax.checkpoints._torch_runs import handed_back, resumed


def from_stable_baselines3(
    checkpoint: StateDict | File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
    *,
    names: Names | None = None,
    learning_rate: InPlace | None = None,
    momentum: InPlace | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where an agent stopped.

    The agent clips its gradients by ``max_grad_norm``: for 0.5 write
    ``optax.chain(optax.clip_by_global_norm(0.5), tx)``, whose state is
    ``(optax.EmptyState(), opt_state)``.

    Args:
        checkpoint: The zip file of ``model.save``, or the state_dict of
            ``model.policy.optimizer``. Of an agent with several optimizers, such as
            SAC, give one: ``read(path)["actor.optimizer.pth"]``.
        to_params: As in `from_torch`.
        names: As in `from_torch`. By default those of the weights in the file, in its
            order, without target networks. The shapes must agree.
        learning_rate: As in `from_torch`. The file does not show a schedule.
        momentum: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` as of `from_torch`, with `rmsprop_jax.dialects.torch` or
        `rmsprop_jax.dialects.stable_baselines3`. The file shows which of them it was.
        With an old torch it does not: then the latter is taken, unless ν has a value
        that it cannot have.

    Raises:
        ValueError: As `from_torch` does, and where the optimizer is another one.
        TypeError: Where ``names`` are not names.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_stable_baselines3
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> buffers = {"step": 1, "square_avg": np.array([3.0, 1.0])}
        >>> state_dict = {"state": {0: buffers}, "param_groups": [group]}
        >>> tx, state = from_stable_baselines3(state_dict, names=["action_net.bias"])
        >>> state.nu
        {'action_net.bias': Array([3., 1.], dtype=float32)}

    References:
        stable-baselines3 2.9.2, ``common/base_class.py``, ``common/save_util.py`` and
        ``common/sb2_compat/rmsprop_tf_like.py``.
    """
    return resumed(
        STABLE_BASELINES3,
        checkpoint,
        to_params,
        names,
        learning_rate,
        momentum,
        _usual_names,
    )


def to_stable_baselines3(
    opt_state: optax.OptState,
    from_params: Callable[[Any], Mapping[str, npt.ArrayLike]] | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> dict[str, Any]:
    """The state_dict with which an agent goes on where JAX stopped.

    Args:
        opt_state: As in `to_torch`, of the dialect that `from_stable_baselines3` took.
        from_params: As in `to_torch`.
        like: The state_dict of the ``model.policy.optimizer`` that shall load the
            result.
        names: As in `to_torch`: ``dict(model.policy.named_parameters())``.

    Returns:
        A new dictionary, which the optimizer's ``load_state_dict`` takes. With
        RMSpropTFLike, a parameter that has no state in ``like`` gets one: ν begins at
        1, and here it decays at every step.

    Raises:
        ValueError: As `to_torch` does, and where the optimizer is another one.
        TypeError: Where the state is another one, or ``names`` are not names.
    """
    return handed_back(STABLE_BASELINES3, opt_state, from_params, like, names)


def _usual_names(
    groups: list[Settings], weights: Mapping[str, np.ndarray]
) -> list[str] | None:
    """The names in the policy's order; None where the optimizer has others."""
    names = [name for name in trained(weights) if "_target." not in name]
    sizes = [len(group["params"]) for group in groups]
    return names if sizes == [len(names)] else None
