"""timm's RMSpropTF, with its three kinds of decay and its caution."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options, flag, python_number
from rmsprop_jax._transform import transformation


def timm(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-10,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum: ScalarOrSchedule = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    *,
    max_lr: ArrayLike | None = None,
) -> GradientTransformationExtraArgs:
    """``timm.optim.RMSpropTF``: TensorFlow 1's rule, with decay.

    The second moment begins at 1 and ε is inside the root. ``foreach`` has no
    counterpart. ``timm.optim.create_optimizer_v2`` names it ``rmsproptf``,
    ``rmsproptfw`` (``decoupled_decay``), ``rmsproptfc`` (and
    ``corrected_weight_decay``) and ``crmsproptf`` (``caution``), and leaves biases and
    norms out of the decay: ``optax.multi_transform`` does that here.

    For ``--clip-grad 1.0`` write ``optax.chain(optax.clip_by_global_norm(1.0),
    dialects.timm(...))``; for ``--model-ema`` see `keras`.

    Args:
        lr: The rate, or a schedule.
        alpha: How much of the second moment (and of the mean) a step keeps.
        eps: Added to the second moment, inside the root.
        weight_decay: Times the parameter, added to the gradient (coupled), unless
            ``decoupled_decay``.
        momentum: How much of the momentum buffer a step keeps.
        centered: Whether to divide by the gradient's deviation from its mean.
        decoupled_decay: Whether ``lr·weight_decay`` times the parameter is taken from
            the parameter instead.
        corrected_weight_decay: Whether that is ``lr²/max_lr·weight_decay``.
        lr_in_momentum: Whether the momentum buffer holds the rate, as in TensorFlow.
        caution: Whether the step is 0 where its sign is not the gradient's, and larger
            elsewhere by as much as this leaves out (Liang et al. 2024). The buffer is
            not touched. Real leaves only.
        max_lr: The largest rate, which timm reads from the ``lr`` it is made with. Only
            for ``corrected_weight_decay``, and only needed where ``lr`` is a schedule
            or an array (as under ``optax.inject_hyperparams``).

    Returns:
        A gradient transformation with an `RMSPropState`.

    Raises:
        ValueError: On an argument that would do nothing, though timm accepts it:
            ``corrected_weight_decay`` without ``decoupled_decay``, ``caution`` without
            momentum, ``max_lr`` without ``corrected_weight_decay``. If ``max_lr`` is
            missing or 0. As `rmsprop` does; from ``update`` where a leaf is complex
            and ``caution`` is true.

    References:
        timm 1.0.31, ``timm/optim/rmsprop_tf.py``; compared with it running.
        Liang et al., *Cautious Optimizers*, arXiv:2411.16085, 2024.
    """
    lr, momentum = python_number(lr), python_number(momentum)
    flag("corrected_weight_decay", corrected_weight_decay)
    flag("decoupled_decay", decoupled_decay)
    flag("caution", caution)
    if corrected_weight_decay and not decoupled_decay:
        raise ValueError("corrected_weight_decay must come with decoupled_decay=True.")
    if max_lr is not None and not corrected_weight_decay:
        raise ValueError("max_lr must come with corrected_weight_decay=True.")
    if caution and isinstance(momentum, int | float) and momentum == 0:
        raise ValueError(
            "caution must come with momentum: without it timm ignores it. Leave it out."
        )
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
            decoupled_weight_decay=decoupled_decay,
            rate_in_momentum=lr_in_momentum,
            cautious=caution,
            max_rate=_max_lr(lr, max_lr) if corrected_weight_decay else None,
            names={
                "learning_rate": "lr",
                "decoupled_weight_decay": "decoupled_decay",
                "rate_in_momentum": "lr_in_momentum",
                "cautious": "caution",
                "max_rate": "max_lr",
            },
        )
    )


def _max_lr(lr: ScalarOrSchedule, max_lr: ArrayLike | None) -> ArrayLike:
    max_lr = python_number(max_lr)
    if max_lr is None:
        if not isinstance(lr, int | float):
            # An injected rate is the present one, and its square over itself no
            # correction.
            raise ValueError(
                "max_lr must be given with corrected_weight_decay where lr is a "
                "schedule or an array: the largest rate of the run."
            )
        max_lr = lr
    if isinstance(max_lr, int | float) and not max_lr > 0:
        raise ValueError(
            "max_lr (or else lr) must be greater than 0 with corrected_weight_decay, "
            f"but it was {max_lr}."
        )
    return max_lr
