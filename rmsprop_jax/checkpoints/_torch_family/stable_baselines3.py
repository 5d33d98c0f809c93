"""Convert the optimizer in a zip file of Stable-Baselines3, and export it back.

    policy.pth              the weights; the optimizer has them in this order, without
                            those of target networks
    policy.optimizer.pth    the state_dict, with PyTorch's buffers (see
                            `rmsprop_jax.checkpoints.from_torch`)

The optimizer is ``torch.optim.RMSprop``, which A2C has by default, or RMSpropTFLike,
whose ν is initialized to 1, and whose ε is inside the root.
"""

from __future__ import annotations

from collections.abc import Mapping

import optax

from rmsprop_jax.checkpoints._convert.arrays import Value
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
from rmsprop_jax.checkpoints._torch_family.optimizers import (
    STABLE_BASELINES3,
)
from rmsprop_jax.checkpoints._torch_family.state_dict import Names


def from_stable_baselines3(
    checkpoint: StateDict | File,
    to_params: ToParams | None = None,
    *,
    names: Names | None = None,
    learning_rate: Override | None = None,
    momentum: Override | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Resume the optimizer of a Stable-Baselines3 agent in JAX.

    The agent clips its gradients by ``max_grad_norm``: for 0.5 write
    ``optax.chain(optax.clip_by_global_norm(0.5), tx)``, whose state is
    ``(optax.EmptyState(), opt_state)``.

    Args:
        checkpoint: The zip file of ``model.save``, or the state_dict of
            ``model.policy.optimizer``. If an agent has several optimizers, like SAC,
            give one of them: ``read(path)["actor.optimizer.pth"]``.
        to_params: As in `from_torch`.
        names: As in `from_torch`. By default they are those of the weights in the file,
            in its order, without target networks.
        learning_rate: A number or a schedule, as in `from_torch`. The file stores a
            schedule only as a pickled object, which is not read. A warning says so if
            you don't give the schedule.
        momentum: As in `from_torch`.
        shardings: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` as in `from_torch`, with `rmsprop_jax.dialects.torch` or
        `rmsprop_jax.dialects.stable_baselines3`. The file shows which of them it was,
        unless an old torch wrote it. In that case, RMSpropTFLike is assumed, unless ν
        has a value that is impossible with it.

    Raises:
        ValueError: As in `from_torch`; also if the optimizer is another one.
        TypeError: If ``names`` are not names.

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
    return resume(
        STABLE_BASELINES3,
        checkpoint,
        to_params,
        names,
        learning_rate,
        momentum,
        guess_names,
        shardings=shardings,
    )


def to_stable_baselines3(
    opt_state: optax.OptState,
    from_params: FromParams | None = None,
    *,
    like: StateDict,
    names: Names | None = None,
) -> NewStateDict:
    """Export the state, so that a Stable-Baselines3 agent resumes the run.

    Args:
        opt_state: As in `to_torch`, of the dialect that `from_stable_baselines3` took.
        from_params: As in `to_torch`.
        like: The state_dict of the ``model.policy.optimizer`` that will load the
            result.
        names: As in `to_torch`: ``dict(model.policy.named_parameters())``.

    Returns:
        A new dictionary for the optimizer's ``load_state_dict``. With RMSpropTFLike, a
        parameter without state in ``like`` gets one, because in JAX its ν decays from 1
        at every step.

    Raises:
        ValueError: As in `to_torch`; also if the optimizer is another one.
        TypeError: If the state is another one, or ``names`` are not names.
    """
    return export(STABLE_BASELINES3, opt_state, from_params, like, names)


def guess_names(
    groups: list[Settings], weights: Mapping[str, Value]
) -> list[str] | None:
    """Return the names in the policy's order, if the optimizer has as many."""
    names = [name for name in find_trainable_names(weights) if "_target." not in name]
    sizes = [len(group["params"]) for group in groups]
    return names if sizes == [len(names)] else None
