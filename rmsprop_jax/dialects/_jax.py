"""The RMSProps of JAX itself: optax's, and that of jax.example_libraries."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._options import Options
from rmsprop_jax._transform import transformation


def optax(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformationExtraArgs:
    """``optax.rmsprop``: the rate inside the momentum buffer.

    Even with ``eps_in_sqrt=False`` that is not torch's order: with momentum and a
    schedule the two part. Three things are other than in optax, on purpose:

    - the real and the imaginary part of a complex leaf have a second moment each;
    - ``centered`` with ``bias_correction`` is finite from the first step on;
    - an ``initial_scale`` with ``bias_correction`` is refused, as optax divides it by
      1 − decay^t too: the first step would see it 1/(1 − decay) times as large. A
      traced one is not read then.

    Args:
        learning_rate: The rate, or a schedule.
        decay: How much of the second moment (and of the mean) a step keeps.
        eps: Added to the second moment, inside the root or outside.
        initial_scale: The second moment before the first step.
        eps_in_sqrt: Whether ``eps`` is added inside the root.
        centered: Whether to divide by the gradient's deviation from its mean.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.
            None is 0.
        nesterov: Whether the momentum is Nesterov's.
        bias_correction: Whether the moments are corrected as in Adam.

    Returns:
        A gradient transformation with an `RMSPropState`.

    Raises:
        ValueError: If ``initial_scale`` is a number other than 0 and
            ``bias_correction`` is true, and as `rmsprop` does.

    References:
        optax 0.2.8, ``optax.rmsprop``; compared with it running.
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=eps,
            momentum=0.0 if momentum is None else momentum,
            centered=centered,
            nesterov=nesterov,
            eps_in_sqrt=eps_in_sqrt,
            initial_scale=initial_scale,
            bias_correction=bias_correction,
            rate_in_momentum=True,
            names={"alpha": "decay"},
        )
    )


def jax_example_libraries(
    step_size: ScalarOrSchedule,
    gamma: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    momentum: ScalarOrSchedule = 0.0,
) -> GradientTransformationExtraArgs:
    """``rmsprop`` and ``rmsprop_momentum`` of ``jax.example_libraries.optimizers``.

    ``rmsprop`` has no momentum; that of ``rmsprop_momentum`` is 0.9 unless given, so
    give it here. For ``clip_grads(grads, 1.0)`` write ``optax.chain(
    optax.clip_by_global_norm(1.0), dialects.jax_example_libraries(...))``.

    Args:
        step_size: The rate, or a schedule.
        gamma: How much of the second moment a step keeps.
        eps: Added to the second moment, inside the root.
        momentum: How much of the momentum buffer, which holds the rate, a step keeps.

    Returns:
        A gradient transformation with an `RMSPropState`.

    References:
        jax 0.10.2, ``jax/example_libraries/optimizers.py``; compared with it running.
    """
    return transformation(
        Options(
            learning_rate=step_size,
            alpha=gamma,
            eps=eps,
            momentum=momentum,
            eps_in_sqrt=True,
            rate_in_momentum=True,
            names={"learning_rate": "step_size", "alpha": "gamma"},
        )
    )
