"""Frameworks that apply the rate after the momentum, and those without momentum."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options, flag
from rmsprop_jax._transform import transformation


def torch(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum: ScalarOrSchedule = 0.0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> GradientTransformationExtraArgs:
    """``torch.optim.RMSprop``: ε outside the root, momentum before the rate.

    The same as `rmsprop_jax.rmsprop`, with torch's names in torch's order.
    ``capturable``, ``foreach`` and ``differentiable`` change no number, in torch and
    here: every update is compiled, and differentiable.

    For ``torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`` write
    ``optax.chain(optax.clip_by_global_norm(1.0), dialects.torch(...))``.

    Args:
        lr: The rate, or a schedule. torch's schedulers that step once per epoch are
            schedules of ``count // steps_per_epoch``.
        alpha: How much of the second moment (and of the mean) a step keeps.
        eps: Added to the root of the second moment.
        weight_decay: Times the parameter, added to the gradient (coupled).
        momentum: How much of the momentum buffer a step keeps.
        centered: Whether to divide by the gradient's deviation from its mean.
        capturable: True or False; changes nothing.
        foreach: True, False or None; changes nothing.
        maximize: Whether to go up the gradient.
        differentiable: True or False; changes nothing.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        torch 2.13.0, ``torch/optim/rmsprop.py``; compared with it running.
    """
    flag("capturable", capturable)
    flag("foreach", False if foreach is None else foreach)
    flag("differentiable", differentiable)
    return transformation(
        Options(
            learning_rate=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
            names={"learning_rate": "lr"},
        )
    )


def stable_baselines3(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum: ScalarOrSchedule = 0.0,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``RMSpropTFLike`` of Stable-Baselines3: TensorFlow's ε and 1, torch's momentum.

    ε is inside the root and the second moment begins at 1, as in TensorFlow 1; the
    momentum comes before the rate, as in torch. A2C's own default there is plain torch:
    ``dialects.torch(lr=7e-4, alpha=0.99, eps=1e-5)``.

    For its ``max_grad_norm`` write ``optax.chain(optax.clip_by_global_norm(0.5),
    dialects.stable_baselines3(...))``.

    Args:
        lr: The rate, or a schedule.
        alpha: How much of the second moment (and of the mean) a step keeps.
        eps: Added to the second moment, inside the root.
        weight_decay: Times the parameter, added to the gradient (coupled).
        momentum: How much of the momentum buffer a step keeps.
        centered: Whether to divide by the gradient's deviation from its mean.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        stable-baselines3 2.9.2, ``common/sb2_compat/rmsprop_tf_like.py``; compared with
        it running.
    """
    return transformation(
        Options(
            learning_rate=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            initial_scale=1.0,
            names={"learning_rate": "lr"},
        )
    )


def mlx(
    learning_rate: ScalarOrSchedule,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
) -> GradientTransformationExtraArgs:
    """``mlx.optimizers.RMSprop``: ε outside the root, no momentum.

    For ``mlx.optimizers.clip_grad_norm(grads, 1.0)`` write
    ``optax.chain(optax.clip_by_global_norm(1.0), dialects.mlx(...))``.

    Args:
        learning_rate: The rate, or a schedule.
        alpha: How much of the second moment a step keeps.
        eps: Added to the root of the second moment.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        mlx 0.32.4, ``mlx/optimizers/optimizers.py``; compared with it running (CPU).
    """
    return transformation(Options(learning_rate=learning_rate, alpha=alpha, eps=eps))


def chainer(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_inside_sqrt: bool = False,
) -> GradientTransformationExtraArgs:
    """``chainer.optimizers.RMSprop``: no momentum, ε outside the root or inside.

    Its ``RMSpropGraves`` is `graves`, with the same defaults. Its hooks are links of a
    chain: for ``WeightDecay(1e-4)`` write
    ``optax.chain(optax.add_decayed_weights(1e-4), dialects.chainer(...))``, for
    ``GradientClipping(1.0)`` put ``optax.clip_by_global_norm(1.0)`` there.

    Args:
        lr: The rate, or a schedule.
        alpha: How much of the second moment a step keeps.
        eps: Added to the root of the second moment, or to the second moment itself.
        eps_inside_sqrt: Whether ``eps`` is added inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Chainer, ``chainer/optimizers/rmsprop.py`` at a8e15cb. Chainer does not install
        beside today's NumPy: the tests do not run it, but we compared with this file
        running by itself.
    """
    return transformation(
        Options(
            learning_rate=lr,
            alpha=alpha,
            eps=eps,
            eps_in_sqrt=eps_inside_sqrt,
            names={"learning_rate": "lr", "eps_in_sqrt": "eps_inside_sqrt"},
        )
    )


def burn(
    learning_rate: ScalarOrSchedule,
    alpha: ScalarOrSchedule = 0.99,
    momentum: ScalarOrSchedule = 0.9,
    epsilon: ScalarOrSchedule = 1e-5,
    centered: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """Burn's ``RmsPropConfig``: torch's rule, but a momentum of 0.9 by default.

    The rate is an argument of Burn's ``step``; here it comes first. For
    ``GradientClippingConfig::Norm(1.0)``, which clips each tensor by itself, see
    `keras` and its ``clipnorm``; for ``Value(1.0)`` write
    ``optax.chain(optax.clip(1.0), dialects.burn(...))``.

    Args:
        learning_rate: The rate, or a schedule.
        alpha: How much of the second moment (and of the mean) a step keeps.
        momentum: How much of the momentum buffer a step keeps.
        epsilon: Added to the root of the second moment.
        centered: Whether to divide by the gradient's deviation from its mean.
        weight_decay: The penalty of ``WeightDecayConfig``: times the parameter, added
            to the gradient (coupled). None is 0.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Burn, ``crates/burn-optim/src/optim/rmsprop.rs`` at 0212f8e2; read, not run, and
        compared with the numbers in its own tests.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=alpha,
            eps=epsilon,
            weight_decay=0.0 if weight_decay is None else weight_decay,
            momentum=momentum,
            centered=centered,
            names={"eps": "epsilon"},
        )
    )
