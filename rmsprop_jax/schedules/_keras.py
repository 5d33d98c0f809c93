"""Keras's learning-rate schedules, ``keras.optimizers.schedules``.

With the step count t, the decay steps T and the learning rates η₀ (initial) and η₁
(end):

    ExponentialDecay         η₀·r^(t/T)                       staircase: ⌊t/T⌋
    InverseTimeDecay         η₀/(1 + r·t/T)                   staircase: ⌊t/T⌋
    PolynomialDecay          (η₀ − η₁)·(1 − t/T)^power + η₁   cycle: T·⌈t/T⌉ for T
    CosineDecay              η₀·((1 − α)·(1 + cos(π·t/T))/2 + α), after a linear warmup
    CosineDecayRestarts      the same again and again, each T k times longer, m times
                             lower
    PiecewiseConstantDecay   the value of the first boundary that is not below t
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.options import validate_flag
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._arguments import validate_learning_rate, validate_real
from rmsprop_jax.schedules._counting import (
    divide,
    find_cycle,
    half_cosine,
    list_cycles,
    power,
    progress,
    to_real,
)
from rmsprop_jax.schedules._schedule import Schedule, blend, widen


def exponential_decay(
    initial_learning_rate: ArrayLike,
    decay_steps: float,
    decay_rate: float,
    staircase: bool = False,
) -> Schedule:
    """Multiply by ``decay_rate`` in ``decay_steps``: Keras's ``ExponentialDecay``.

    Args:
        initial_learning_rate: The first learning rate: a number, or a scalar array.
        decay_steps: The number of steps in which it is multiplied once, at least 1.
        decay_rate: What it is multiplied by.
        staircase: Whether it is multiplied all at once, every ``decay_steps``.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.exponential_decay(0.5, 10, 0.25)
        >>> schedule(5), schedule(10)
        (Array(0.25, dtype=float32), Array(0.125, dtype=float32))
    """
    first = validate_learning_rate("initial_learning_rate", initial_learning_rate)
    steps = _validate_steps("decay_steps", decay_steps)
    rate = validate_real("decay_rate", decay_rate)
    in_stairs = validate_flag("staircase", staircase)

    def formula(count: jax.Array) -> jax.Array:
        if in_stairs:
            return widen(first) * power(rate, divide(count, steps)[0])
        return widen(first) * power(rate, count, steps)

    call = (
        f"exponential_decay({first}, decay_steps={steps}, decay_rate={rate}, "
        f"staircase={staircase})"
    )
    return Schedule(call, formula)


def piecewise_constant_decay(
    boundaries: Sequence[int], values: Sequence[ArrayLike]
) -> Schedule:
    """Take one learning rate after the other: Keras's ``PiecewiseConstantDecay``.

    At a boundary itself, the learning rate is still the previous one.

    Args:
        boundaries: The last step count of each learning rate except the last one, in
            ascending order. A boundary is truncated to an integer, as in Keras.
        values: The learning rates, one more than the boundaries: numbers, or scalar
            arrays.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range, if there are not as many values, or if
            the boundaries don't ascend.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.piecewise_constant_decay([30], [0.5, 0.25])
        >>> schedule(30), schedule(31)
        (Array(0.5, dtype=float32), Array(0.25, dtype=float32))
    """
    places = [int(validate_real("boundaries", place)) for place in boundaries]
    rates = [validate_learning_rate("values", value) for value in values]
    if len(rates) != len(places) + 1:
        raise ValueError(
            "values must be one more than the boundaries, but there were "
            f"{len(rates)} and {len(places)}."
        )
    if places != sorted(places):
        raise ValueError(f"boundaries must ascend, but they were {places}.")
    ends = np.array([min(place, LARGEST_COUNT) for place in places], np.int32)

    def formula(count: jax.Array) -> jax.Array:
        ordered = jnp.stack([to_real(rate) for rate in rates])
        return ordered[jnp.searchsorted(jnp.asarray(ends), count)]

    return Schedule(f"piecewise_constant_decay({places}, {rates})", formula)


def polynomial_decay(
    initial_learning_rate: ArrayLike,
    decay_steps: float,
    end_learning_rate: ArrayLike = 0.0001,
    power: float = 1.0,
    cycle: bool = False,
) -> Schedule:
    """Fall to ``end_learning_rate`` by a power: Keras's ``PolynomialDecay``.

    Args:
        initial_learning_rate: The first learning rate: a number, or a scalar array.
        decay_steps: The number of steps in which it falls, at least 1.
        end_learning_rate: The last learning rate.
        power: The power of the fraction of the steps that is left.
        cycle: Whether it then rises, and falls again by the end of the next
            ``decay_steps``. Each peak is lower than the one before, because it lies on
            a curve that falls from the first step on.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.polynomial_decay(0.5, 100, 0.25)
        >>> schedule(50), schedule(100)
        (Array(0.375, dtype=float32), Array(0.25, dtype=float32))
    """
    first = validate_learning_rate("initial_learning_rate", initial_learning_rate)
    steps = _validate_steps("decay_steps", decay_steps)
    last = validate_learning_rate("end_learning_rate", end_learning_rate)
    exponent = validate_real("power", power)
    again = validate_flag("cycle", cycle)

    def formula(count: jax.Array) -> jax.Array:
        left = jnp.clip(-progress(count, steps, 2 * steps), 0, 1)
        if again:
            cycles, done, rest = divide(count, steps)
            # At the end of a cycle, Keras counts it as the cycle before.
            is_end = (done == 0) & (count > 0)
            left = jnp.where(is_end, 0, rest) / to_real(cycles + 1)
        return blend(last, first, left**exponent)

    call = (
        f"polynomial_decay({first}, decay_steps={steps}, end_learning_rate={last}, "
        f"power={exponent}, cycle={cycle})"
    )
    return Schedule(call, formula)


def inverse_time_decay(
    initial_learning_rate: ArrayLike,
    decay_steps: float,
    decay_rate: float,
    staircase: bool = False,
) -> Schedule:
    """Divide by ``1 + decay_rate * count / decay_steps``: Keras's ``InverseTimeDecay``.

    The argument ``decay=d`` of a legacy optimizer is ``decay_steps=1, decay_rate=d``.

    Args:
        initial_learning_rate: The first learning rate: a number, or a scalar array.
        decay_steps: The number of steps in which the divisor grows by ``decay_rate``,
            at least 1.
        decay_rate: How much it grows.
        staircase: Whether it grows all at once, every ``decay_steps``.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedules.inverse_time_decay(0.5, 10, 2.0)(5)
        Array(0.25, dtype=float32)
    """
    first = validate_learning_rate("initial_learning_rate", initial_learning_rate)
    steps = _validate_steps("decay_steps", decay_steps)
    rate = validate_real("decay_rate", decay_rate)
    in_stairs = validate_flag("staircase", staircase)

    def formula(count: jax.Array) -> jax.Array:
        periods = divide(count, steps)[0] if in_stairs else count
        growth = rate if in_stairs else rate / steps
        return widen(first) / (1 + growth * to_real(periods))

    call = (
        f"inverse_time_decay({first}, decay_steps={steps}, decay_rate={rate}, "
        f"staircase={staircase})"
    )
    return Schedule(call, formula)


def cosine_decay(
    initial_learning_rate: ArrayLike,
    decay_steps: float,
    alpha: float = 0.0,
    warmup_target: ArrayLike | None = None,
    warmup_steps: float = 0,
) -> Schedule:
    """Fall by a cosine, optionally after a warm-up: Keras's ``CosineDecay``.

    Args:
        initial_learning_rate: The first learning rate: a number, or a scalar array.
        decay_steps: The number of steps in which it falls, at least 1.
        alpha: The last learning rate, as a fraction of the one that it falls from.
        warmup_target: The learning rate to which it first rises linearly. If None, it
            falls at once, whatever ``warmup_steps`` is.
        warmup_steps: The number of steps in which it rises.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.cosine_decay(
        ...     0.0, 100, alpha=0.5, warmup_target=0.5, warmup_steps=10
        ... )
        >>> schedule(5), schedule(10), schedule(110)
        (Array(0.25, dtype=float32), Array(0.5, dtype=float32),
         Array(0.25, dtype=float32))
    """
    first = validate_learning_rate("initial_learning_rate", initial_learning_rate)
    steps = _validate_steps("decay_steps", decay_steps)
    alpha = validate_real("alpha", alpha)
    warmup = validate_real("warmup_steps", warmup_steps, 0.0, float(LARGEST_COUNT))
    top = first
    if warmup_target is None:
        warmup = 0.0
    else:
        top = validate_learning_rate("warmup_target", warmup_target)

    def formula(count: jax.Array) -> jax.Array:
        done = jnp.clip(progress(count, warmup, warmup + steps), 0, 1)
        decayed = widen(top) * blend(alpha, 1.0, half_cosine(done, 1))
        if not warmup:
            return decayed
        rising = blend(first, top, to_real(count) / warmup)
        return jnp.where(count < math.ceil(warmup), rising, decayed)

    call = (
        f"cosine_decay({first}, decay_steps={steps}, alpha={alpha}, "
        f"warmup_target={warmup_target}, warmup_steps={warmup})"
    )
    return Schedule(call, formula)


def cosine_decay_restarts(
    initial_learning_rate: ArrayLike,
    first_decay_steps: float,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
) -> Schedule:
    """Fall by a cosine, and start again: Keras's ``CosineDecayRestarts``.

    Keras computes the number of restarts by a logarithm. At a restart, its rounding may
    give the last learning rate of the old cycle, where this schedule has the first of
    the new one.

    Args:
        initial_learning_rate: The first learning rate: a number, or a scalar array.
        first_decay_steps: The number of steps until the first restart, at least 1.
        t_mul: How many times longer each cycle takes than the one before, at least 1.
        m_mul: What the height is multiplied by at each restart.
        alpha: The lowest learning rate, as a fraction of the first.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.cosine_decay_restarts(0.5, 10, m_mul=0.5)
        >>> schedule(0), schedule(10), schedule(30)
        (Array(0.5, dtype=float32), Array(0.25, dtype=float32),
         Array(0.125, dtype=float32))
    """
    first = validate_learning_rate("initial_learning_rate", initial_learning_rate)
    steps = _validate_steps("first_decay_steps", first_decay_steps)
    multiplier = validate_real("t_mul", t_mul, 1.0)
    height = validate_real("m_mul", m_mul)
    alpha = validate_real("alpha", alpha)
    cycles = list_cycles("t_mul", steps, multiplier) if multiplier > 1 else None

    def formula(count: jax.Array) -> jax.Array:
        if cycles is None:
            restarts, done, _ = divide(count, steps)
        else:
            restarts, done = find_cycle(count, cycles)
        heights = (1 - alpha) * power(height, restarts)
        return widen(first) * (heights * half_cosine(done, 1) + alpha)

    call = (
        f"cosine_decay_restarts({first}, first_decay_steps={steps}, "
        f"t_mul={multiplier}, m_mul={height}, alpha={alpha})"
    )
    return Schedule(call, formula)


def _validate_steps(name: str, value: object) -> float:
    return validate_real(name, value, 1.0)
