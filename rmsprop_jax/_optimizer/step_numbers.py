"""The numbers of one step: schedules asked, α_t, (1 − α)/α, and the decay's rate.

They stay Python floats as long as all of them are, so that no digit is lost: in
float32, 1 − 0.999 is off by 1.3·10⁻⁵.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rmsprop_jax._options import SCHEDULED, Options

# Below the arithmetic's precision α·(g − m)² is nothing beside g².
_LEAST = float(jnp.finfo(jnp.float32).eps)
_TINY = float(jnp.finfo(jnp.float32).tiny)

Number = float | jax.Array


def of_step(options: Options, count: jax.Array) -> np.ndarray | jax.Array:
    """`Numbers` as one vector, in the widest real dtype that JAX has.

    Args:
        options: Checked ones.
        count: int32 scalar, the steps before this one.
    """
    rate, alpha, eps, decay, momentum = (
        value_of(options.name(option), getattr(options, option), count)
        for option in SCHEDULED
    )
    weight = 1 - alpha
    if options.bias_correction:
        alpha, weight = _corrected(alpha, count)
    if options.decoupled_weight_decay:
        # η·λ, or η²/max_rate·λ.
        decay = decay * rate
        if options.max_rate is not None:
            largest = value_of(options.name("max_rate"), options.max_rate, count)
            decay = decay * (rate / largest)
    # In the order of `Numbers`.
    numbers = [rate, alpha, weight, _ratio(alpha, weight), eps, decay, momentum]
    wide = jnp.result_type(float)
    if all(isinstance(number, float) for number in numbers):
        return np.array(numbers, wide)
    return jnp.stack([jnp.asarray(number, wide) for number in numbers])


def value_of(
    name: str, value: optax.ScalarOrSchedule | ArrayLike, count: jax.Array
) -> Number:
    """The number itself, or what the schedule makes of the count."""
    wide = jnp.result_type(float)
    if not callable(value):
        return value if isinstance(value, float) else jnp.asarray(value, wide)
    returned: Any = value(count)
    if isinstance(returned, int | float):
        return float(returned)
    is_array = isinstance(returned, jax.Array | np.ndarray | np.number)
    if is_array and returned.shape == () and jnp.isrealobj(returned):
        return jnp.asarray(returned, wide)
    was = f"{returned!r}"
    if is_array:
        was = f"an array of shape {returned.shape} and dtype {returned.dtype}"
    raise ValueError(
        f"{name} must be a schedule that returns a real scalar, but it returned {was}."
    )


def _corrected(alpha: Number, count: jax.Array) -> tuple[Number, Number]:
    """α_t = α(1−α^(t−1))/(1−α^t), and 1 − α_t.

    By expm1, as α^t is close to 1 while t is small. A traced α is kept off 1 and out
    of the logarithm's pole at 0; the products stay right.
    """
    if isinstance(alpha, float):
        log_alpha = math.log(max(alpha, _TINY))
    else:
        alpha = jnp.minimum(alpha, 1 - _LEAST)
        log_alpha = jnp.log(jnp.maximum(alpha, _TINY))
    t = count.astype(jnp.result_type(float))
    whole = -jnp.expm1((t + 1) * log_alpha)
    return alpha * -jnp.expm1(t * log_alpha) / whole, (1 - alpha) / whole


def _ratio(alpha: Number, weight: Number) -> Number:
    if isinstance(alpha, float):
        return weight / alpha if alpha > _LEAST else 0.0
    counts = alpha > _LEAST
    return jnp.where(counts, weight / jnp.where(counts, alpha, 1), 0)
