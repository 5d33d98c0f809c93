"""Frameworks that apply the learning rate inside the momentum buffer, ε in the root."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

import jax
import numpy as np
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import Options, to_python_number
from rmsprop_jax._optimizer.transform import make_transformation


def tensorflow(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 1e-10,
    *,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``tf.compat.v1.train.RMSPropOptimizer``: the second moment is initialized to 1.

    The initial value of 1 makes the first steps small; with a decay of 0.9, it matters
    for about 50 steps.

    For ``tf.clip_by_global_norm(gradients, 40.0)`` write
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.tensorflow(...))``.

    Args:
        learning_rate: The learning rate.
        decay: The decay rate of the second moment (and of the gradient mean).
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate.
        epsilon: Added to the second moment, inside the root.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.

    References:
        TensorFlow 2.21, ``python/training/rmsprop.py``. Tested against it.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            initial_scale=1.0,
            learning_rate_in_momentum=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )


def keras(
    learning_rate: ScalarOrSchedule = 0.001,
    rho: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 1e-7,
    centered: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """``keras.optimizers.RMSprop`` of Keras 3, and of tf.keras 2.11 to 2.15.

    The other arguments of Keras act on the gradients or on the loop. Write:

    - for ``global_clipnorm=1.0``, ``optax.chain(optax.clip_by_global_norm(1.0),
      dialects.keras(...))``;
    - for ``clipvalue=1.0``, ``optax.clip(1.0)`` in that chain;
    - for ``clipnorm=1.0``, which clips each variable separately, ``optax.stateless(
      lambda g, _: jax.tree.map(lambda x: x / jnp.maximum(1.0, jnp.linalg.norm(x)),
      g))`` in that chain;
    - for ``loss_scale_factor=c``, ``optax.scale(1 / c)`` in that chain;
    - for ``gradient_accumulation_steps=n``, ``optax.MultiSteps(dialects.keras(...),
      n)``;
    - for ``use_ema=True``, ``average = optax.incremental_update(params, average,
      1 - ema_momentum)`` after each update.

    Args:
        learning_rate: The learning rate.
        rho: The decay rate of the second moment (and of the gradient mean).
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate.
        epsilon: Added to the second moment, inside the root.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        weight_decay: Times the learning rate and the parameter, subtracted from the
            parameter (decoupled). None means 0.

    References:
        Keras 3.15.1, ``keras/src/optimizers/rmsprop.py``, on its JAX and its PyTorch
        backend, and tf_keras 2.21, the successor of tf.keras 2.15. Tested against them.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=epsilon,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            decoupled_weight_decay=True,
            learning_rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )


def keras_legacy(
    learning_rate: ScalarOrSchedule = 0.001,
    rho: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 1e-7,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``tf.keras.optimizers.legacy.RMSprop``, which is tf.keras up to 2.10.

    Momentum decides where ε is added: outside the root without momentum, inside the
    root with it. An ``epsilon`` of 0 becomes 1e-7, as in Keras.

    For ``global_clipnorm=1.0`` write ``optax.chain(optax.clip_by_global_norm(1.0),
    dialects.keras_legacy(...))``; see `keras` for other clips. For ``decay=d`` pass the
    schedule ``lambda count: learning_rate / (1 + d * count)``.

    Args:
        learning_rate: The learning rate.
        rho: The decay rate of the second moment (and of the gradient mean).
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate; at most 1. It must be a Python number or a schedule, because whether
            it is 0 decides where ε is added. With ``optax.inject_hyperparams``, name it
            in ``static_args``.
        epsilon: Added to the square root of the second moment without momentum, and to
            the second moment with it.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.

    Raises:
        ValueError: As from `rmsprop`; also if ``momentum`` is a number greater than 1.
        TypeError: If ``momentum`` is an array.

    References:
        tf_keras 2.21, ``tf_keras/src/optimizers/legacy/rmsprop.py``. Tested against it.
    """
    momentum, epsilon = to_python_number(momentum), to_python_number(epsilon)
    if isinstance(momentum, jax.Array | np.ndarray):
        raise TypeError(
            "momentum must be a Python number or a schedule, because whether it is 0 "
            f"decides where epsilon is added, but it was {momentum!r}. Under "
            "optax.inject_hyperparams, name it in static_args."
        )
    if isinstance(momentum, int | float) and momentum > 1:
        raise ValueError(
            f"momentum must be between 0 and 1, as in Keras, but it was {momentum}."
        )
    has_momentum = momentum is not None and momentum != 0
    is_default = isinstance(epsilon, int | float) and epsilon == 0
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=1e-7 if is_default else epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=has_momentum,
            learning_rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )


def sonnet(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    momentum: ScalarOrSchedule | None = None,
    epsilon: ScalarOrSchedule = 1e-10,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``sonnet.optimizers.RMSProp`` of Sonnet 2: `tensorflow`, but initialized to 0.

    For ``tf.clip_by_global_norm(updates, 40.0)`` write
    ``optax.chain(optax.clip_by_global_norm(40.0), dialects.sonnet(...))``. The
    arguments mean what they mean in `tensorflow`.

    References:
        dm-sonnet 2.0.2, ``sonnet/src/optimizers/rmsprop.py``. Tested against it.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=epsilon,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            learning_rate_in_momentum=True,
            names={"alpha": "decay", "eps": "epsilon"},
        )
    )


def paddle(
    learning_rate: ScalarOrSchedule,
    rho: ScalarOrSchedule = 0.95,
    epsilon: ScalarOrSchedule = 1e-6,
    momentum: ScalarOrSchedule | None = None,
    centered: bool = False,
    *,
    weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """``paddle.optimizer.RMSProp``: `sonnet`'s rule, with coupled weight decay.

    Paddle's documentation promises Nesterov momentum, but its code has plain momentum.

    For ``grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)`` write ``optax.chain(
    optax.clip_by_global_norm(1.0), dialects.paddle(...))``: in Paddle too, the clip
    comes before the weight decay.

    Args:
        learning_rate: The learning rate.
        rho: The decay rate of the second moment (and of the gradient mean).
        epsilon: Added to the second moment, inside the root.
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        weight_decay: Paddle's float or ``L2Decay``: times the parameter, added to the
            gradient (coupled). None means 0.

    References:
        paddlepaddle 3.3.1, ``paddle/optimizer/rmsprop.py``. Tested against it.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rho,
            eps=epsilon,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            eps_in_sqrt=True,
            learning_rate_in_momentum=True,
            names={"alpha": "rho", "eps": "epsilon"},
        )
    )
