"""The RMSProps of JAX's own libraries: optax and jax.example_libraries."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from rmsprop_jax._optimizer.options import Options
from rmsprop_jax._optimizer.transform import make_transformation


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
    """``optax.rmsprop``: the learning rate is applied inside the momentum buffer.

    Even with ``eps_in_sqrt=False``, this is not PyTorch's order: with momentum and a
    schedule, the two give different runs. Three things differ from optax on purpose:

    - The real and the imaginary part of a complex leaf have a second moment each.
    - ``centered`` with ``bias_correction`` is finite from the first step on.
    - ``initial_scale`` with ``bias_correction`` is refused, because optax divides it by
      1 − decay^t too: in the first step it would be 1/(1 − decay) times as large. (A
      traced ``initial_scale`` can't be checked.)

    Args:
        learning_rate: The learning rate.
        decay: The decay rate of the second moment (and of the gradient mean).
        eps: Added to the second moment inside the root, or to the root.
        initial_scale: What the second moment is initialized to.
        eps_in_sqrt: Whether ``eps`` is added inside the root.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square.
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate. None means 0.
        nesterov: Whether to use Nesterov momentum.
        bias_correction: Whether to correct the bias of the moments as Adam does.

    Raises:
        ValueError: As from `rmsprop`; also if ``initial_scale`` is a number other than
            0 and ``bias_correction`` is true.

    References:
        optax 0.2.8, ``optax.rmsprop``. Tested against it.
    """
    return make_transformation(
        Options(
            learning_rate=learning_rate,
            alpha=decay,
            eps=eps,
            momentum=momentum,
            centered=centered,
            nesterov=nesterov,
            eps_in_sqrt=eps_in_sqrt,
            initial_scale=initial_scale,
            bias_correction=bias_correction,
            learning_rate_in_momentum=True,
            names={"alpha": "decay"},
        )
    )


def jax_example_libraries(
    step_size: ScalarOrSchedule,
    gamma: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    momentum: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    """``rmsprop`` and ``rmsprop_momentum`` of ``jax.example_libraries.optimizers``.

    ``rmsprop`` has no momentum. ``rmsprop_momentum`` has 0.9 by default, so pass
    ``momentum=0.9`` for it. For ``clip_grads(grads, 1.0)`` write ``optax.chain(
    optax.clip_by_global_norm(1.0), dialects.jax_example_libraries(...))``.

    Args:
        step_size: The learning rate.
        gamma: The decay rate of the second moment.
        eps: Added to the second moment, inside the root.
        momentum: The decay rate of the momentum buffer, which includes the learning
            rate.

    References:
        jax 0.10.2, ``jax/example_libraries/optimizers.py``. Tested against it.
    """
    return make_transformation(
        Options(
            learning_rate=step_size,
            alpha=gamma,
            eps=eps,
            momentum=momentum,
            eps_in_sqrt=True,
            learning_rate_in_momentum=True,
            names={"learning_rate": "step_size", "alpha": "gamma"},
        )
    )
