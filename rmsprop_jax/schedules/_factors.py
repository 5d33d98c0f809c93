"""The schedulers that multiply: the base learning rate η₀ times a factor.

With the step count t:

    StepLR             γ^⌊t/step_size⌋
    MultiStepLR        γ^(the number of milestones up to t)
    ConstantLR         factor until total_iters, then 1
    LinearLR           from start_factor to end_factor in total_iters
    ExponentialLR      γ^t
    PolynomialLR       (1 − t/total_iters)^power, then 0
    MultiplicativeLR   λ(1)·λ(2)·…·λ(t)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rmsprop_jax.schedules._arguments import (
    validate_integer,
    validate_learning_rate,
    validate_real,
)
from rmsprop_jax.schedules._counting import NumpyArray, power, to_real
from rmsprop_jax.schedules._schedule import (
    Formula,
    Multiplier,
    Schedule,
    make_factor_schedule,
    widen,
)


def step_lr(learning_rate: ArrayLike, step_size: int, gamma: float = 0.1) -> Schedule:
    """Multiply by ``gamma`` every ``step_size`` steps: ``StepLR``.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        step_size: The number of steps between two multiplications.
        gamma: What it is multiplied by.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.step_lr(0.5, step_size=30, gamma=0.25)
        >>> schedule(29), schedule(30)
        (Array(0.5, dtype=float32), Array(0.125, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    size = validate_integer("step_size", step_size)
    gamma = validate_real("gamma", gamma)

    def factor(count: jax.Array) -> jax.Array:
        return power(gamma, count // size)

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return power(gamma, count // size - since // size)

    def multiply(counts: NumpyArray) -> NumpyArray:
        return np.where((counts % size == 0) & (counts > 0), gamma, 1.0)

    call = f"step_lr({base}, step_size={size}, gamma={gamma})"
    multiplier = Multiplier(multiply, settled=0, period=size)
    return make_factor_schedule(call, base, factor, growth, multiplier=multiplier)


def multi_step_lr(
    learning_rate: ArrayLike, milestones: Iterable[int], gamma: float = 0.1
) -> Schedule:
    """Multiply by ``gamma`` at each of the ``milestones``: ``MultiStepLR``.

    A milestone that is listed twice multiplies twice.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        milestones: The step counts at which the learning rate falls, in any order.
        gamma: What it is multiplied by.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.multi_step_lr(0.5, [30, 80], gamma=0.5)
        >>> schedule(29), schedule(80)
        (Array(0.5, dtype=float32), Array(0.125, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    places = sorted(validate_integer("milestones", place, 0) for place in milestones)
    gamma = validate_real("gamma", gamma)
    sorted_places = np.array(places, np.int32)

    def count_passed(count: jax.Array) -> jax.Array:
        found = jnp.searchsorted(jnp.asarray(sorted_places), count, side="right")
        return found.astype(jnp.int32)

    def factor(count: jax.Array) -> jax.Array:
        return power(gamma, count_passed(count))

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return power(gamma, count_passed(count) - count_passed(since))

    def multiply(counts: NumpyArray) -> NumpyArray:
        passed = np.searchsorted(sorted_places, counts, side="right")
        before = np.searchsorted(sorted_places, counts, side="left")
        return np.power(gamma, (passed - before).astype(float))

    call = f"multi_step_lr({base}, milestones={places}, gamma={gamma})"
    multiplier = Multiplier(multiply, settled=max(places, default=0))
    return make_factor_schedule(call, base, factor, growth, multiplier=multiplier)


def constant_lr(
    learning_rate: ArrayLike, factor: float = 1.0 / 3, total_iters: int = 5
) -> Schedule:
    """Multiply by ``factor`` until ``total_iters``: ``ConstantLR``.

    With ``total_iters=0``, PyTorch's optimizer keeps the small learning rate forever,
    although PyTorch's ``_get_closed_form_lr`` returns the base learning rate. This
    schedule keeps the small one too, except after a milestone of `sequential_lr`, where
    PyTorch uses the closed form.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        factor: What it is multiplied by at first, more than 0 and at most 1.
        total_iters: The number of steps with the factor.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range, also for a factor of 0, by which
            PyTorch divides.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.constant_lr(0.5, factor=0.25, total_iters=5)
        >>> schedule(4), schedule(5)
        (Array(0.125, dtype=float32), Array(0.5, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    first = _validate_first("factor", factor)
    steps = validate_integer("total_iters", total_iters, 0)

    def compute_factor(count: jax.Array) -> jax.Array:
        is_over = (count >= steps) & (steps > 0)
        return jnp.where(is_over, to_real(1.0), to_real(first))

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return compute_factor(count) / compute_factor(since)

    def continue_from(start: jax.Array) -> Formula:
        del start
        return lambda count: widen(base) * jnp.ones(count.shape, jnp.result_type(float))

    def multiply(counts: NumpyArray) -> NumpyArray:
        return np.select([counts == 0, counts == steps], [first, 1 / first], 1.0)

    call = f"constant_lr({base}, factor={first}, total_iters={steps})"
    return make_factor_schedule(
        call,
        base,
        compute_factor,
        growth,
        None if steps else continue_from,
        Multiplier(multiply, settled=steps),
    )


def linear_lr(
    learning_rate: ArrayLike,
    start_factor: float = 1.0 / 3,
    end_factor: float = 1.0,
    total_iters: int = 5,
) -> Schedule:
    """Change the factor linearly until ``total_iters``: ``LinearLR``.

    With ``total_iters=0``, PyTorch's optimizer keeps the first learning rate forever,
    and so does this schedule.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        start_factor: What it is multiplied by at first, more than 0 and at most 1.
        end_factor: What it is multiplied by at the end, from 0 to 1.
        total_iters: The number of steps until then.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.linear_lr(0.5, start_factor=0.25, total_iters=4)
        >>> schedule(0), schedule(2), schedule(4)
        (Array(0.125, dtype=float32), Array(0.3125, dtype=float32),
         Array(0.5, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    first = _validate_first("start_factor", start_factor)
    last = validate_real("end_factor", end_factor, 0.0, 1.0)
    steps = validate_integer("total_iters", total_iters, 0)

    def factor(count: jax.Array) -> jax.Array:
        # From both ends, because the factor at the last step is then exact.
        done = to_real(jnp.minimum(count, steps)) / max(steps, 1)
        left = to_real(steps - jnp.minimum(count, steps)) / max(steps, 1)
        return first * (left if steps else 1.0) + last * done

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return _divide_or_stay(factor(count), factor(since))

    def refuse(start: jax.Array) -> Formula:
        del start
        raise ValueError(
            "total_iters of linear_lr must be at least 1 after a milestone of "
            "sequential_lr, where PyTorch divides by it, but it was 0."
        )

    def evaluate(counts: NumpyArray) -> NumpyArray:
        done = np.clip(counts, 0, steps) / max(steps, 1)
        return first * (1 - done) + last * done

    def multiply(counts: NumpyArray) -> NumpyArray:
        return np.where(counts == 0, first, _divide_steps(evaluate, counts))

    call = (
        f"linear_lr({base}, start_factor={first}, end_factor={last}, "
        f"total_iters={steps})"
    )
    return make_factor_schedule(
        call,
        base,
        factor,
        growth,
        None if steps else refuse,
        Multiplier(multiply, settled=steps),
    )


def exponential_lr(learning_rate: ArrayLike, gamma: float) -> Schedule:
    """Multiply by ``gamma`` at every step: ``ExponentialLR``.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        gamma: What it is multiplied by.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedules.exponential_lr(0.5, gamma=0.5)(3)
        Array(0.0625, dtype=float32)
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    gamma = validate_real("gamma", gamma)

    def factor(count: jax.Array) -> jax.Array:
        return power(gamma, count)

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return power(gamma, count - since)

    def multiply(counts: NumpyArray) -> NumpyArray:
        return np.where(counts > 0, gamma, 1.0)

    call = f"exponential_lr({base}, gamma={gamma})"
    return make_factor_schedule(
        call,
        base,
        factor,
        growth,
        multiplier=Multiplier(multiply, settled=0, period=1),
        repeat=lambda: gamma,
    )


def polynomial_lr(
    learning_rate: ArrayLike, total_iters: int = 5, power: float = 1.0
) -> Schedule:
    """Fall to 0 at ``total_iters`` by a power: ``PolynomialLR``.

    With ``total_iters=0``, PyTorch's optimizer keeps the base learning rate forever,
    and so does this schedule.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        total_iters: The number of steps in which it falls.
        power: The power of the fraction of the steps that is left.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedules.polynomial_lr(0.5, total_iters=4, power=2.0)(2)
        Array(0.125, dtype=float32)
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    steps = validate_integer("total_iters", total_iters, 0)
    exponent = validate_real("power", power)

    def factor(count: jax.Array) -> jax.Array:
        if steps == 0:
            return jnp.ones(count.shape, jnp.result_type(float))
        # Integers are subtracted, because in float32 1 − t/T would lose digits in the
        # last steps.
        left = to_real(jnp.maximum(steps - count, 0)) / float(steps)
        return left**exponent

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        return _divide_or_stay(factor(count), factor(since))

    def refuse(start: jax.Array) -> Formula:
        del start
        raise ValueError(
            "total_iters of polynomial_lr must be at least 1 after a milestone of "
            "sequential_lr, where PyTorch divides by it, but it was 0."
        )

    def evaluate(counts: NumpyArray) -> NumpyArray:
        return (np.clip(steps - counts, 0, steps) / max(steps, 1)) ** exponent

    def multiply(counts: NumpyArray) -> NumpyArray:
        return _divide_steps(evaluate, counts)

    def repeat() -> float:
        if steps == 0:
            raise ValueError(
                "total_iters of polynomial_lr must be at least 1 in a chain that is "
                "the first of sequential_lr, where PyTorch divides by it, but it was 0."
            )
        return (steps / (steps + 1)) ** exponent

    call = f"polynomial_lr({base}, total_iters={steps}, power={exponent})"
    return make_factor_schedule(
        call,
        base,
        factor,
        growth,
        None if steps else refuse,
        Multiplier(multiply, settled=steps),
        repeat=repeat,
    )


def multiplicative_lr(
    learning_rate: ArrayLike, lr_lambda: Callable[[jax.Array], ArrayLike]
) -> Schedule:
    """Multiply by ``lr_lambda(count)`` at every step: ``MultiplicativeLR``.

    The product of an arbitrary function has no formula, so each value takes a compiled
    loop of as many multiplications as the step count. The product's relative rounding
    error grows with the count: in float32, it is about 1e-6 after 1,000 steps. If you
    know a formula, `lambda_lr` or `exponential_lr` avoids both.

    After a milestone of `sequential_lr`, it multiplies the learning rate that it finds,
    first by ``lr_lambda(0)``, as PyTorch does.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        lr_lambda: A function from the step count (starting at 1) to what the learning
            rate is multiplied by, which JAX can trace.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If the learning rate is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedules.multiplicative_lr(0.5, lambda count: 1 / count)(4)
        Array(0.02083333, dtype=float32)
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    validate_function("lr_lambda", lr_lambda)

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        wide = jnp.result_type(float)
        since, count = jnp.broadcast_arrays(since, count)

        def multiply(
            carry: tuple[jax.Array, jax.Array],
        ) -> tuple[jax.Array, jax.Array]:
            done, product = carry
            is_next = done < count
            following = jnp.where(is_next, done + 1, done)
            new = product * jnp.asarray(lr_lambda(following), wide)
            return following, jnp.where(is_next, new, product)

        start = (since, jnp.ones(since.shape, wide))
        return lax.while_loop(lambda c: jnp.any(c[0] < count), multiply, start)[1]

    def factor(count: jax.Array) -> jax.Array:
        return growth(jnp.zeros_like(count), count)

    def repeat() -> jax.Array:
        return to_real(lr_lambda(jnp.zeros((), jnp.int32)))

    def continue_from(start: jax.Array) -> Formula:
        first = start * repeat()
        return lambda count: first * factor(count)

    call = f"multiplicative_lr({base}, {lr_lambda!r})"
    return make_factor_schedule(
        call, base, factor, growth, continue_from, repeat=repeat
    )


def validate_function(name: str, value: object) -> None:
    """Raise if it is not a function."""
    if not callable(value):
        raise TypeError(
            f"{name} must be a function from the step count to a factor, but it was "
            f"{value!r}."
        )


def _validate_first(name: str, value: object) -> float:
    number = validate_real(name, value, 0.0, 1.0)
    if number == 0:
        raise ValueError(
            f"{name} must be more than 0 and at most 1, because PyTorch divides by it, "
            f"but it was {value}."
        )
    return number


def _divide_or_stay(factor: jax.Array, before: jax.Array) -> jax.Array:
    """Return the quotient; 1 where both are 0, because 0 no longer changes."""
    is_zero = before == 0
    return jnp.where(is_zero, 1, factor / jnp.where(is_zero, 1, before))


def _divide_steps(
    evaluate: Callable[[NumpyArray], NumpyArray], counts: NumpyArray
) -> NumpyArray:
    """Return the quotient of a factor and the one a step before; 1 where both are 0."""
    before = evaluate(counts - 1)
    is_zero = before == 0
    return np.where(is_zero, 1.0, evaluate(counts) / np.where(is_zero, 1.0, before))
