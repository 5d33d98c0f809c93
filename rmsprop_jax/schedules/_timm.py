"""timm's schedulers ``CosineLRScheduler`` and ``StepLRScheduler``.

Both warm up from warmup_lr_init to the base learning rate in warmup_t steps. After
that, t is the step count, less warmup_t with warmup_prefix.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.options import validate_flag
from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax.schedules._arguments import (
    validate_integer,
    validate_learning_rate,
    validate_real,
)
from rmsprop_jax.schedules._counting import (
    Cycles,
    divide,
    find_cycle,
    half_cosine,
    list_cycles,
    power,
    to_real,
)
from rmsprop_jax.schedules._schedule import Formula, Schedule, blend, widen


def cosine_lr_scheduler(
    learning_rate: ArrayLike,
    t_initial: int,
    lr_min: float = 0.0,
    cycle_mul: float = 1.0,
    cycle_decay: float = 1.0,
    cycle_limit: int = 1,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = False,
    k_decay: float = 1.0,
) -> Schedule:
    """Fall by a cosine, after a warm-up, and start again: ``CosineLRScheduler``.

    timm computes the number of the cycle by a logarithm. At a restart, its rounding may
    give the end of the old cycle. This schedule does the same.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        t_initial: The steps of the first cycle.
        lr_min: The smallest learning rate.
        cycle_mul: How many times longer each cycle takes than the one before, at least
            1.
        cycle_decay: What the largest learning rate is multiplied by at each restart.
        cycle_limit: The number of cycles, after which it stays at ``lr_min``.
        warmup_t: The steps of the warm-up.
        warmup_lr_init: The learning rate at which the warm-up starts.
        warmup_prefix: Whether the first cycle starts after the warm-up instead of at
            step 0.
        k_decay: The power of the fraction of a cycle that is done.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.cosine_lr_scheduler(
        ...     0.5, t_initial=100, warmup_t=10, warmup_prefix=True
        ... )
        >>> schedule(5), schedule(10), schedule(110)
        (Array(0.25, dtype=float32), Array(0.5, dtype=float32),
         Array(0., dtype=float32))

    References:
        timm 1.0.31, ``timm/scheduler/cosine_lr.py``.
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    first = validate_integer("t_initial", t_initial)
    smallest = validate_real("lr_min", lr_min)
    multiplier = validate_real("cycle_mul", cycle_mul, 1.0)
    decay = validate_real("cycle_decay", cycle_decay)
    limit = validate_integer("cycle_limit", cycle_limit, 0)
    warmup = validate_integer("warmup_t", warmup_t, 0)
    lowest = validate_real("warmup_lr_init", warmup_lr_init)
    has_prefix = validate_flag("warmup_prefix", warmup_prefix)
    exponent = validate_real("k_decay", k_decay)
    cycles = _list_cycles(first, multiplier) if multiplier > 1 else None

    def formula(count: jax.Array) -> jax.Array:
        if cycles is None:
            cycle, done, _ = divide(count, first)
        else:
            cycle, done = find_cycle(count, cycles)
        largest = widen(base) * power(decay, cycle)
        height = half_cosine(done**exponent, 1)
        return jnp.where(
            cycle < limit, smallest * (1 - height) + largest * height, smallest
        )

    call = (
        f"cosine_lr_scheduler({base}, t_initial={first}, lr_min={smallest}, "
        f"cycle_mul={multiplier}, cycle_decay={decay}, cycle_limit={limit}, "
        f"warmup_t={warmup}, warmup_lr_init={lowest}, warmup_prefix={warmup_prefix}, "
        f"k_decay={exponent})"
    )
    return Schedule(
        call, _warm_up(base, formula, warmup, lowest, has_prefix=has_prefix)
    )


def step_lr_scheduler(
    learning_rate: ArrayLike,
    decay_t: float,
    decay_rate: float = 1.0,
    warmup_t: int = 0,
    warmup_lr_init: float = 0.0,
    warmup_prefix: bool = True,
) -> Schedule:
    """Multiply by ``decay_rate`` every ``decay_t``, after a warm-up.

    This is ``StepLRScheduler``, which timm's recipes for RMSpropTF use: ``--sched step
    --decay-epochs 2.4 --decay-rate 0.97``.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        decay_t: The number of steps between two multiplications, at least 1.
        decay_rate: What it is multiplied by.
        warmup_t: The steps of the warm-up.
        warmup_lr_init: The learning rate at which the warm-up starts.
        warmup_prefix: Whether the steps are counted from the end of the warm-up.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.step_lr_scheduler(0.5, 2.5, decay_rate=0.5)
        >>> schedule(2), schedule(3), schedule(5)
        (Array(0.5, dtype=float32), Array(0.25, dtype=float32),
         Array(0.125, dtype=float32))

    References:
        timm 1.0.31, ``timm/scheduler/step_lr.py``.
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    length = validate_real("decay_t", decay_t, 1.0)
    rate = validate_real("decay_rate", decay_rate)
    warmup = validate_integer("warmup_t", warmup_t, 0)
    lowest = validate_real("warmup_lr_init", warmup_lr_init)
    has_prefix = validate_flag("warmup_prefix", warmup_prefix)

    def formula(count: jax.Array) -> jax.Array:
        return widen(base) * power(rate, divide(count, length)[0])

    call = (
        f"step_lr_scheduler({base}, decay_t={length}, decay_rate={rate}, "
        f"warmup_t={warmup}, warmup_lr_init={lowest}, warmup_prefix={warmup_prefix})"
    )
    return Schedule(
        call, _warm_up(base, formula, warmup, lowest, has_prefix=has_prefix)
    )


def _warm_up(
    base: Number, after: Formula, warmup: int, lowest: float, *, has_prefix: bool
) -> Formula:
    """Return the formula with a linear warm-up before it."""

    def formula(count: jax.Array) -> jax.Array:
        if not warmup:
            return after(count)
        rising = blend(lowest, base, to_real(count) / float(warmup))
        since = jnp.maximum(count - warmup, 0) if has_prefix else count
        return jnp.where(count < warmup, rising, after(since))

    return formula


def _list_cycles(first: int, multiplier: float) -> Cycles:
    """Return the cycles, each from where timm's logarithm is not below its number."""
    cycles = list_cycles("cycle_mul", first, multiplier)
    late = [
        math.floor(math.log(1 - start / first * (1 - multiplier), multiplier)) < n
        for n, start in enumerate(cycles.firsts.tolist())
    ]
    return cycles._replace(firsts=cycles.firsts + np.array(late))
