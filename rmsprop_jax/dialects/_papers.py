"""RMSProp as papers and reference systems used it, with their defaults.

Each function is a framework's rule with that system's settings. Its docstring says
where every number comes from, and says "unverified" if we could not read the source.
"""

from __future__ import annotations

from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import Options
from rmsprop_jax._optimizer.transform import make_transformation
from rmsprop_jax.dialects._tensorflow_order import tensorflow


def hinton(
    learning_rate: ScalarOrSchedule, decay: ScalarOrSchedule = 0.9
) -> GradientTransformationExtraArgs:
    """Lecture 6e, slide 29: the gradient over the root of its mean square, without ε.

    MeanSquare(w, t) = 0.9·MeanSquare(w, t−1) + 0.1·(∂E/∂w)². The slide gives no
    learning rate, no ε, no momentum and no initial mean square. Here it is initialized
    to 0, and where the gradient is 0 the step is 0.

    Args:
        learning_rate: The learning rate.
        decay: The decay rate of the mean square.

    References:
        Tieleman and Hinton, *Lecture 6.5: RMSProp*, Neural Networks for Machine
        Learning, Coursera, 2012. Unverified: we read quotations, not the slide.
    """
    return make_transformation(
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
    has the same defaults.

    Args:
        lr: The learning rate (ℶ_l in the paper).
        alpha: The decay rate of the second moment and of the gradient mean (ℵ).
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate (ℶ_m).
        eps: Added to the variance, inside the root.

    References:
        Graves, *Generating Sequences With Recurrent Neural Networks*, arXiv:1308.0850,
        2013. Unverified: the equations and numbers are those of Chainer's
        ``rmsprop_graves.py`` at a8e15cb, which cites the paper and which we compared
        with.
    """
    return make_transformation(
        Options(
            learning_rate=lr,
            alpha=alpha,
            eps=eps,
            momentum=momentum,
            centered=True,
            eps_in_sqrt=True,
            learning_rate_in_momentum=True,
            names={"learning_rate": "lr"},
        )
    )


def efficientnet(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    epsilon: ScalarOrSchedule = 0.001,
    momentum: ScalarOrSchedule = 0.9,
) -> GradientTransformationExtraArgs:
    """EfficientNet: `tensorflow` with a momentum of 0.9 and an ε of 0.001.

    EfficientNet's learning rate is 0.016 per 256 images of a batch (unverified), warms
    up for 5 epochs, and is then multiplied by 0.97 every 2.4 epochs. The weight decay
    of 1e-5 (unverified) is part of the loss:
    ``optax.chain(optax.add_decayed_weights(1e-5, mask),
    dialects.efficientnet(learning_rate))``.

    References:
        tensorflow/tpu, ``models/official/efficientnet/utils.py`` at 139e1f4,
        ``build_optimizer`` and ``build_learning_rate``. Read, not run.
        Tan and Le, *EfficientNet*, arXiv:1905.11946, 2019.
    """
    return tensorflow(learning_rate, decay, momentum, epsilon)


def tf_slim(
    learning_rate: ScalarOrSchedule = 0.01,
    rmsprop_decay: ScalarOrSchedule = 0.9,
    rmsprop_momentum: ScalarOrSchedule = 0.9,
    opt_epsilon: ScalarOrSchedule = 1.0,
) -> GradientTransformationExtraArgs:
    """TF-Slim's trainer (Inception, MobileNet): `tensorflow` with an ε of 1.

    TF-Slim multiplies the learning rate by 0.94 every 2 epochs. The weight decay of
    4e-5 is part of the loss: ``optax.chain(optax.add_decayed_weights(4e-5),
    dialects.tf_slim(learning_rate))``.

    Args:
        learning_rate: The learning rate.
        rmsprop_decay: ``decay`` of `tensorflow`.
        rmsprop_momentum: ``momentum`` of `tensorflow`.
        opt_epsilon: ``epsilon`` of `tensorflow`.

    References:
        tensorflow/models, flags of ``slim/train_image_classifier.py`` at 07ed366. Read,
        not run.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=rmsprop_decay,
            eps=opt_epsilon,
            momentum=rmsprop_momentum,
            eps_in_sqrt=True,
            initial_scale=1.0,
            learning_rate_in_momentum=True,
            names={
                "alpha": "rmsprop_decay",
                "eps": "opt_epsilon",
                "momentum": "rmsprop_momentum",
            },
        )
    )
