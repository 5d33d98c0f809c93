"""The hyperparameters at one step: evaluated schedules, α_t, (1 − α)/α and η·λ.

They stay Python floats as long as all of them are, so that no digits are lost: in
float32, 1 − 0.999 is off by 1.3·10⁻⁵.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.options import Hyperparams
from rmsprop_jax._optimizer.rule import Number, Rule, StepNumbers

# `StepNumbers` as one vector.
NumbersVector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.floating]] | jax.Array

# With α below float32's precision, α·(g − m)² is negligible compared with g².
_SMALLEST_ALPHA = float(jnp.finfo(jnp.float32).eps)
_TINY = float(jnp.finfo(jnp.float32).tiny)


def compute_step_numbers(
    rule: Rule, hyperparams: Hyperparams, count: jax.Array, names: Mapping[str, str]
) -> NumbersVector:
    """Compute `StepNumbers` as one vector, in JAX's widest real dtype.

    Args:
        rule: Which equations apply.
        hyperparams: Numbers and schedules.
        count: int32 scalar, the steps before this one.
        names: What the user calls the hyperparameters, if not by these names.
    """

    def evaluate_option(option: str) -> Number:
        name = names.get(option, option)
        return evaluate(name, getattr(hyperparams, option), count)

    learning_rate = evaluate_option("learning_rate")
    # Below 0 and above 1, finite gradients would give NaN.
    alpha = clip(evaluate_option("alpha"), 0.0, 1.0)
    one_minus_alpha = 1 - alpha
    if rule.bias_correction:
        alpha, one_minus_alpha = _correct_bias(alpha, count)
    weight_decay = evaluate_option("weight_decay")
    if rule.decoupled_weight_decay:
        weight_decay = weight_decay * learning_rate
    numbers = StepNumbers(
        learning_rate=learning_rate,
        alpha=alpha,
        one_minus_alpha=one_minus_alpha,
        one_minus_alpha_over_alpha=_divide_by_alpha(one_minus_alpha, alpha),
        eps=clip(evaluate_option("eps"), 0.0),
        weight_decay=weight_decay,
        momentum=evaluate_option("momentum"),
    )
    wide = jnp.result_type(float)
    if all(isinstance(number, float) for number in numbers):
        return np.array(numbers, wide)
    return jnp.stack([jnp.asarray(number, wide) for number in numbers])


def evaluate(name: str, value: Number | optax.Schedule, count: ArrayLike) -> Number:
    """Return the number itself, or the value of the schedule at this step count.

    Args:
        name: What the user calls it, for errors.
        value: A validated number, or a schedule.
        count: int32 scalar, the steps before this one.

    Raises:
        ValueError: If the schedule does not return a real scalar.
    """
    wide = jnp.result_type(float)
    if not callable(value):
        return value if isinstance(value, float) else jnp.asarray(value, wide)
    returned: object = value(count)
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


def clip(number: Number, smallest: float, largest: float = math.inf) -> Number:
    """Return the number within bounds; its derivative at a bound is 1."""
    if isinstance(number, float):
        return min(max(number, smallest), largest)
    number = jnp.where(number < smallest, smallest, number)
    return jnp.where(number > largest, largest, number)


def _correct_bias(alpha: Number, count: jax.Array) -> tuple[Number, Number]:
    """Return α_t = α(1−α^(t−1))/(1−α^t), and 1 − α_t.

    The powers are computed by expm1 because α^t is close to 1 while t is small. A
    traced α is kept below 1, and away from the logarithm's pole at 0.
    """
    if isinstance(alpha, float):
        log_alpha = math.log(max(alpha, _TINY))
    else:
        alpha = jnp.minimum(alpha, 1 - _SMALLEST_ALPHA)
        log_alpha = jnp.log(jnp.maximum(alpha, _TINY))
    t = count.astype(jnp.result_type(float))
    one_minus_power = -jnp.expm1((t + 1) * log_alpha)
    alpha_t = alpha * -jnp.expm1(t * log_alpha) / one_minus_power
    return alpha_t, (1 - alpha) / one_minus_power


def _divide_by_alpha(one_minus_alpha: Number, alpha: Number) -> Number:
    if isinstance(alpha, float):
        return one_minus_alpha / alpha if alpha > _SMALLEST_ALPHA else 0.0
    is_positive = alpha > _SMALLEST_ALPHA
    return jnp.where(is_positive, one_minus_alpha / jnp.where(is_positive, alpha, 1), 0)
