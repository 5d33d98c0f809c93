"""timm's RMSpropTF, with its three kinds of weight decay and its caution."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import (
    Options,
    is_schedule,
    to_python_number,
    validate_flag,
    validate_number,
)
from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.step_numbers import evaluate
from rmsprop_jax._optimizer.transform import make_transformation


def timm(
    lr: ScalarOrSchedule = 0.01,
    alpha: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-10,
    weight_decay: ScalarOrSchedule | None = None,
    momentum: ScalarOrSchedule | None = None,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    *,
    max_lr: ArrayLike | None = None,
) -> GradientTransformationExtraArgs:
    """``timm.optim.RMSpropTF``: TensorFlow 1's rule, with weight decay.

    The second moment is initialized to 1, and ε is inside the root. ``foreach`` is left
    out. ``timm.optim.create_optimizer_v2`` calls the optimizer ``rmsproptf``,
    ``rmsproptfw`` (with ``decoupled_decay``), ``rmsproptfc`` (and
    ``corrected_weight_decay``) or ``crmsproptf`` (``caution``). It also excludes biases
    and norms from the weight decay; use ``optax.partition`` for that.

    For ``--clip-grad 1.0`` write ``optax.chain(optax.clip_by_global_norm(1.0),
    dialects.timm(...))``; for ``--model-ema`` see ``use_ema`` in `keras`.

    Args:
        lr: The learning rate.
        alpha: The decay rate of the second moment (and of the gradient mean).
        eps: Added to the second moment, inside the root.
        weight_decay: Times the parameter, added to the gradient (coupled), unless
            ``decoupled_decay`` is true.
        momentum: The decay rate of the momentum buffer.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        decoupled_decay: Whether to subtract ``lr·weight_decay`` times the parameter
            from the parameter instead.
        corrected_weight_decay: Whether decoupled decay subtracts
            ``lr²/max_lr·weight_decay`` times the parameter instead.
        lr_in_momentum: Whether the learning rate is applied inside the momentum buffer,
            as in TensorFlow.
        caution: Whether to zero the elements of the step whose sign is not that of the
            gradient, and to enlarge the others to make up for them (Liang et al. 2024).
            The momentum buffer is not changed. Real leaves only.
        max_lr: The largest learning rate of the run, for ``corrected_weight_decay``
            only. By default it is ``lr``, as in timm, so give it if ``lr`` is a
            schedule or an array (as under ``optax.inject_hyperparams``).

    Raises:
        ValueError: As from `rmsprop`; also if an argument would have no effect, even if
            timm accepts it: ``corrected_weight_decay`` without ``decoupled_decay``,
            ``caution`` without momentum, ``max_lr`` without ``corrected_weight_decay``;
            or if ``max_lr`` is missing or 0. From ``update``, if a leaf is complex and
            ``caution`` is true.

    References:
        timm 1.0.31, ``timm/optim/rmsprop_tf.py``. Tested against it.
        Liang et al., *Cautious Optimizers*, arXiv:2411.16085, 2024.
    """
    validate_flag("corrected_weight_decay", corrected_weight_decay)
    validate_flag("decoupled_decay", decoupled_decay)
    validate_flag("caution", caution)
    if corrected_weight_decay and not decoupled_decay:
        raise ValueError(
            "corrected_weight_decay must come with decoupled_decay=True, which it "
            "corrects, but decoupled_decay was False."
        )
    if max_lr is not None and not corrected_weight_decay:
        raise ValueError(
            "max_lr must come with corrected_weight_decay=True, which alone uses it. "
            "Leave it out."
        )
    momentum = to_python_number(momentum)
    is_number = isinstance(momentum, int | float)
    if caution and (momentum is None or (is_number and momentum == 0)):
        raise ValueError(
            "caution must come with momentum, because timm ignores it without. Leave "
            "caution out, or give a momentum."
        )
    if corrected_weight_decay:
        decay = 0.0 if weight_decay is None else weight_decay
        weight_decay = _correct_weight_decay(decay, lr, max_lr)
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
            decoupled_weight_decay=decoupled_decay,
            learning_rate_in_momentum=lr_in_momentum,
            cautious=caution,
            names={
                "learning_rate": "lr",
                "decoupled_weight_decay": "decoupled_decay",
                "learning_rate_in_momentum": "lr_in_momentum",
                "cautious": "caution",
            },
        )
    )


def _correct_weight_decay(
    weight_decay: ScalarOrSchedule, lr: ScalarOrSchedule, max_lr: ArrayLike | None
) -> ScalarOrSchedule:
    """Return λ·lr/max_lr, which decoupled weight decay multiplies with lr."""
    weight_decay = _validate("weight_decay", weight_decay)
    lr = _validate("lr", lr)
    largest = _find_max_lr(lr, max_lr)
    if isinstance(weight_decay, float) and isinstance(lr, float):
        return weight_decay * (lr / largest)

    def corrected_weight_decay(count: ArrayLike) -> Number:
        ratio = evaluate("lr", lr, count) / evaluate("max_lr", largest, count)
        return evaluate("weight_decay", weight_decay, count) * ratio

    return corrected_weight_decay


def _validate(name: str, value: ScalarOrSchedule) -> ScalarOrSchedule:
    return value if is_schedule(value) else validate_number(name, value)


def _find_max_lr(lr: ScalarOrSchedule, max_lr: ArrayLike | None) -> Number:
    if max_lr is not None:
        largest = validate_number("max_lr", max_lr)
    elif isinstance(lr, float):
        largest = lr
    else:
        # An injected learning rate is that of the current step, not the largest.
        raise ValueError(
            "max_lr must be given with corrected_weight_decay if lr is a schedule or "
            "an array. It is the largest learning rate of the run."
        )
    if isinstance(largest, float) and not largest > 0:
        raise ValueError(
            "max_lr (or else lr) must be greater than 0 with corrected_weight_decay, "
            f"but it was {largest}."
        )
    return largest
