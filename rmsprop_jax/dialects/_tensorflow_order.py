"""Frameworks with the rate inside the momentum buffer, and ε inside the root."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options, python_number
from rmsprop_jax._transform import transformation


def tensorflow(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 1e-10,
    *,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``tf.compat.v1.train.RMSPropOptimizer``: the second moment begins at 1.

    The 1 makes the first steps small: with a decay of 0.9 it counts for some 50 steps.
    ``use_locking`` and ``name`` have no counterpart.

    For ``tf.clip_by_global_norm(gradients, 40.0)`` write
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.tensorflow(...))``.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment (and of the mean) a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        epsilon: Added to the second moment, inside the root.
        centered: Whether to divide by the gradient's deviation from its mean.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        TensorFlow 2.21, ``python/training/rmsprop.py``; compared with it running.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            initial_scale=1.0,
            rate_in_momentum=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )


def keras(
    learning_rate: ScalarOrSchedule = 0.001,
    rho: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 1e-7,
    centered: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """``keras.optimizers.RMSprop`` of Keras 3, and of tf.keras 2.11 to 2.15.

    Arguments that act on the gradients or the loop are links of a chain, in front:

    - ``global_clipnorm=1.0``: ``optax.chain(optax.clip_by_global_norm(1.0),
      dialects.keras(...))``;
    - ``clipvalue=1.0``: ``optax.clip(1.0)`` there;
    - ``clipnorm=1.0``, each variable by itself: ``optax.stateless(lambda g, _:
      jax.tree.map(lambda x: x / jnp.maximum(1.0, jnp.linalg.norm(x)), g))`` there;
    - ``loss_scale_factor=c``: ``optax.scale(1 / c)`` there;
    - ``gradient_accumulation_steps=n``: ``optax.MultiSteps(dialects.keras(...), n)``;
    - ``use_ema=True``: ``average = optax.incremental_update(params, average,
      1 - ema_momentum)`` after each update.

    Args:
        learning_rate: The rate, or a schedule.
        rho: How much of the second moment (and of the mean) a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        epsilon: Added to the second moment, inside the root.
        centered: Whether to divide by the gradient's deviation from its mean.
        weight_decay: Times the rate and the parameter, taken from the parameter
            (decoupled). None is 0.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Keras 3.15.1, ``keras/src/optimizers/rmsprop.py``, on its jax and its torch
        backend, and tf_keras 2.21, the successor of tf.keras 2.15; compared with them
        running.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=epsilon,
            weight_decay=0.0 if weight_decay is None else weight_decay,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            decoupled_weight_decay=True,
            rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )


def keras_legacy(
    learning_rate: ScalarOrSchedule = 0.001,
    rho: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 1e-7,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``tf.keras.optimizers.legacy.RMSprop``, which is tf.keras up to 2.10.

    The surprising thing: momentum moves ε. Without momentum it is outside the root,
    with momentum inside. And an ``epsilon`` of 0 is 1e-7 there, and so it is here.

    For ``global_clipnorm=1.0`` write ``optax.chain(optax.clip_by_global_norm(1.0),
    dialects.keras_legacy(...))``; `keras` says more. For ``decay=d`` pass the schedule
    ``lambda count: learning_rate / (1 + d * count)``.

    Args:
        learning_rate: The rate, or a schedule.
        rho: How much of the second moment (and of the mean) a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps;
            at most 1. A traced one counts as momentum, as does a tensor there: name it
            in the ``static_args`` of ``optax.inject_hyperparams`` if it is 0.
        epsilon: Added to the root of the second moment without momentum, and inside
            the root with it.
        centered: Whether to divide by the gradient's deviation from its mean.

    Returns:
        A gradient transformation with an `RMSPropState`.

    Raises:
        ValueError: If ``momentum`` is a number greater than 1, and as `rmsprop` does.

    References:
        tf_keras 2.21, ``tf_keras/src/optimizers/legacy/rmsprop.py``; compared with it
        running.
    """
    momentum, epsilon = python_number(momentum), python_number(epsilon)
    if isinstance(momentum, int | float) and momentum > 1:
        raise ValueError(
            f"momentum must be between 0 and 1, as in Keras, but it was {momentum}."
        )
    has_momentum = not (isinstance(momentum, int | float) and momentum == 0)
    default = isinstance(epsilon, int | float) and epsilon == 0
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=1e-7 if default else epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=has_momentum,
            rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )


def sonnet(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule = 0.0,
    epsilon: ScalarOrSchedule = 1e-10,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``sonnet.optimizers.RMSProp`` of Sonnet 2: TensorFlow's, but it begins at 0.

    For ``tf.clip_by_global_norm(updates, 40.0)`` write
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.sonnet(...))``.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment (and of the mean) a step keeps.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        epsilon: Added to the second moment, inside the root.
        centered: Whether to divide by the gradient's deviation from its mean.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        dm-sonnet 2.0.2, ``sonnet/src/optimizers/rmsprop.py``; compared with it running.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            rate_in_momentum=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )


def paddle(
    learning_rate: ScalarOrSchedule,
    rho: ScalarOrSchedule = 0.95,
    epsilon: ScalarOrSchedule = 1e-6,
    momentum: ScalarOrSchedule = 0.0,
    centered: bool = False,
    *,
    weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """``paddle.optimizer.RMSProp``, whose momentum is not Nesterov's, as its docs say.

    For ``grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)`` write ``optax.chain(
    optax.clip_by_global_norm(1.0), dialects.paddle(...))``: there too the clip comes
    before the decay.

    Args:
        learning_rate: The rate, or a schedule.
        rho: How much of the second moment (and of the mean) a step keeps.
        epsilon: Added to the second moment, inside the root.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
        centered: Whether to divide by the gradient's deviation from its mean.
        weight_decay: Paddle's float or ``L2Decay``: times the parameter, added to the
            gradient (coupled). None is 0.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        paddlepaddle 3.3.1, ``paddle/optimizer/rmsprop.py``; compared with it running.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=epsilon,
            weight_decay=0.0 if weight_decay is None else weight_decay,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )
