"""Frameworks that apply the learning rate after the momentum, or have no momentum."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import Options, validate_flag
from rmsprop_jax._optimizer.transform import make_transformation


def torch(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    momentum: ScalarOrSchedule | None = None,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> GradientTransformationExtraArgs:
    """``torch.optim.RMSprop``: ε outside the root, momentum before the learning rate.

    This is `rmsprop_jax.rmsprop` with PyTorch's names in PyTorch's order.
    ``capturable``, ``foreach`` and ``differentiable`` do not change the result, neither
    in PyTorch nor here, where every update can be compiled and differentiated.

    For ``torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)`` write
    ``optax.chain(optax.clip_by_global_norm(1.0), dialects.torch(...))``.

    Args:
        lr: The learning rate. A scheduler that steps once per epoch is a schedule of
            ``count // steps_per_epoch``.
        alpha: The decay rate of the second moment (and of the gradient mean).
        eps: Added to the square root of the second moment.
        weight_decay: Times the parameter, added to the gradient (coupled).
        momentum: The decay rate of the momentum buffer.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        capturable: True or False; has no effect.
        foreach: True, False or None; has no effect.
        maximize: Whether to maximize the objective.
        differentiable: True or False; has no effect.

    References:
        PyTorch 2.13.0, ``torch/optim/rmsprop.py``. Tested against it.
    """
    validate_flag("capturable", capturable)
    validate_flag("foreach", False if foreach is None else foreach)
    validate_flag("differentiable", differentiable)
    return make_transformation(
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
    weight_decay: ScalarOrSchedule | None = None,
    momentum: ScalarOrSchedule | None = None,
    centered: bool = False,
) -> GradientTransformationExtraArgs:
    """``RMSpropTFLike`` of Stable-Baselines3: TensorFlow's ε, PyTorch's momentum.

    As in TensorFlow 1, ε is inside the root and the second moment is initialized to 1.
    As in PyTorch, momentum comes before the learning rate. Note that A2C does not use
    this by default, but PyTorch's own: ``dialects.torch(lr=7e-4, alpha=0.99,
    eps=1e-5)``.

    For ``max_grad_norm`` write ``optax.chain(optax.clip_by_global_norm(0.5),
    dialects.stable_baselines3(...))``.

    Args:
        lr: The learning rate.
        alpha: The decay rate of the second moment (and of the gradient mean).
        eps: Added to the second moment, inside the root.
        weight_decay: Times the parameter, added to the gradient (coupled).
        momentum: The decay rate of the momentum buffer.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.

    References:
        stable-baselines3 2.9.2, ``common/sb2_compat/rmsprop_tf_like.py``. Tested
        against it.
    """
    return make_transformation(
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
        learning_rate: The learning rate.
        alpha: The decay rate of the second moment.
        eps: Added to the square root of the second moment.

    References:
        mlx 0.32.4, ``mlx/optimizers/optimizers.py``. Tested against it on CPU.
    """
    return make_transformation(
        Options(learning_rate=learning_rate, alpha=alpha, eps=eps)
    )


def chainer(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_inside_sqrt: bool = False,
) -> GradientTransformationExtraArgs:
    """``chainer.optimizers.RMSprop``: no momentum, ε outside the root or inside.

    Chainer's ``RMSpropGraves`` is `graves`, with the same defaults. Its hooks are
    transformations in the chain: for ``WeightDecay(1e-4)`` write
    ``optax.chain(optax.add_decayed_weights(1e-4), dialects.chainer(...))``; for
    ``GradientClipping(1.0)`` add ``optax.clip_by_global_norm(1.0)`` instead.

    Args:
        lr: The learning rate.
        alpha: The decay rate of the second moment.
        eps: Added to the square root of the second moment, or to the second moment.
        eps_inside_sqrt: Whether ``eps`` is added inside the root.

    References:
        Chainer, ``chainer/optimizers/rmsprop.py`` at a8e15cb. Chainer does not install
        with today's NumPy, so the tests do not run it; we compared our results with
        this file, run alone.
    """
    return make_transformation(
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
    """Burn's ``RmsPropConfig``: PyTorch's rule, but with a default momentum of 0.9.

    In Burn the learning rate is an argument of ``step``; here it comes first. For
    ``GradientClippingConfig::Norm(1.0)``, which clips each tensor separately, see
    ``clipnorm`` in `keras`; for ``Value(1.0)`` write
    ``optax.chain(optax.clip(1.0), dialects.burn(...))``.

    Args:
        learning_rate: The learning rate.
        alpha: The decay rate of the second moment (and of the gradient mean).
        momentum: The decay rate of the momentum buffer.
        epsilon: Added to the square root of the second moment.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        weight_decay: The penalty of ``WeightDecayConfig``: times the parameter, added
            to the gradient (coupled). None means 0.

    References:
        Burn, ``crates/burn-optim/src/optim/rmsprop.rs`` at 0212f8e2. We read it and
        compared with the numbers in its own tests, but did not run it.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=alpha,
            eps=epsilon,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            names={"eps": "epsilon"},
        )
    )
