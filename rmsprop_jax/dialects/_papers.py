"""RMSProp as papers and reference systems used it, with their numbers as defaults.

Each function is a framework's rule under that system's settings; each docstring says
where every number comes from, and says "unverified" where we could not read the source.
"""

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options
from rmsprop_jax._transform import transformation
from rmsprop_jax.dialects._tensorflow_order import tensorflow


def hinton(
    learning_rate: ScalarOrSchedule, decay: ScalarOrSchedule = 0.9
) -> GradientTransformationExtraArgs:
    """Lecture 6e, slide 29: the gradient over the root of its mean square, no ε.

    MeanSquare(w, t) = 0.9·MeanSquare(w, t−1) + 0.1·(∂E/∂w)². The slide gives no rate,
    no ε, no momentum and no beginning of the mean square; here it begins at 0, and
    where the gradient is 0 the step is 0.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the mean square a step keeps.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Tieleman and Hinton, *Lecture 6.5: RMSProp*, Neural Networks for Machine
        Learning, Coursera, 2012; unverified: quoted by others, the slide was not read.
    """
    return transformation(
        Options(
            learning_rate=learning_rate, alpha=decay, eps=0.0, names={"alpha": "decay"}
        )
    )


def graves(
    lr: ScalarOrSchedule = 1e-4,
    alpha: ScalarOrSchedule = 0.95,
    momentum: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-4,
) -> GradientTransformationExtraArgs:
    """Graves 2013, equations 38 to 45: centered, with momentum.

    n = 0.95·n + 0.05·g²; m = 0.95·m + 0.05·g; Δ = 0.9·Δ − 1e-4·g/√(n − m² + 1e-4);
    w = w + Δ. The arguments are those of ``chainer.optimizers.RMSpropGraves``, which
    has the same numbers.

    Args:
        lr: The rate, or a schedule (ℶ_l in the paper).
        alpha: How much of the moments a step keeps (ℵ).
        momentum: How much of the momentum buffer, which holds the rate, a step keeps
            (ℶ_m).
        eps: Added to the variance, inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        Graves, *Generating Sequences With Recurrent Neural Networks*, arXiv:1308.0850,
        2013; unverified: the equations and numbers are those of Chainer's
        ``rmsprop_graves.py`` at a8e15cb, which cites it and which we compared with.
    """
    return transformation(
        Options(
            learning_rate=lr,
            alpha=alpha,
            eps=eps,
            momentum=momentum,
            centered=True,
            eps_in_sqrt=True,
            rate_in_momentum=True,
            names={"learning_rate": "lr"},
        )
    )


def efficientnet(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    epsilon: ScalarOrSchedule = 0.001,
    momentum: ScalarOrSchedule = 0.9,
) -> GradientTransformationExtraArgs:
    """EfficientNet: TensorFlow's rule, momentum 0.9, ε of 0.001 inside the root.

    There the rate is 0.016 per 256 images of a batch (unverified), rises for 5 epochs
    and is then times 0.97 every 2.4 epochs. The decay of 1e-5 (unverified) is in the
    loss: ``optax.chain(optax.add_decayed_weights(1e-5, mask),
    dialects.efficientnet(rate))``.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment a step keeps.
        epsilon: Added to the second moment, inside the root.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        tensorflow/tpu, ``models/official/efficientnet/utils.py`` at 139e1f4,
        ``build_optimizer`` and ``build_learning_rate``; read.
        Tan and Le, *EfficientNet*, arXiv:1905.11946, 2019.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon)


def tf_slim(
    learning_rate: ScalarOrSchedule = 0.01,
    rmsprop_decay: ScalarOrSchedule = 0.9,
    rmsprop_momentum: ScalarOrSchedule = 0.9,
    opt_epsilon: ScalarOrSchedule = 1.0,
) -> GradientTransformationExtraArgs:
    """TF-Slim's trainer (Inception, MobileNet): TensorFlow's rule, ε of 1 inside.

    There the rate is times 0.94 every 2 epochs, and the decay of 4e-5 is in the loss:
    ``optax.chain(optax.add_decayed_weights(4e-5), dialects.tf_slim(rate))``.

    Args:
        learning_rate: The rate, or a schedule.
        rmsprop_decay: How much of the second moment a step keeps.
        rmsprop_momentum: How much of the momentum buffer, which holds the rate, a step
            keeps.
        opt_epsilon: Added to the second moment, inside the root.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        tensorflow/models, flags of ``slim/train_image_classifier.py`` at 07ed366; read.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rmsprop_decay,
            eps=opt_epsilon,
            momentum=rmsprop_momentum,
            eps_in_sqrt=True,
            initial_scale=1.0,
            rate_in_momentum=True,
            names={
                "alpha": "rmsprop_decay",
                "eps": "opt_epsilon",
                "momentum": "rmsprop_momentum",
            },
        )
    )
