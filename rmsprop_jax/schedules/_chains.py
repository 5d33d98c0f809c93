"""``ChainedScheduler``, which steps several schedulers at once.

Each step of ``ChainedScheduler`` steps its schedulers in their order, and each of them
maps the learning rate η that it finds:

    a factor            η·g(t)
    CosineAnnealingLR   η_min + (η − η_min)·r(t); η + (η₀ − η_min)·h where it rises
    others              a value that does not depend on η

If a chain is the first scheduler of a ``SequentialLR``, PyTorch takes the first step of
all schedulers in it twice: see `repeat_first_step`.

At its lowest point a cosine has r = 0, so earlier values no longer matter. If the
factors repeat, so do the learning rates from there on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._annealing import fold
from rmsprop_jax.schedules._counting import NumpyArray, half_cosine, to_real
from rmsprop_jax.schedules._schedule import (
    AbsoluteSchedule,
    CosineSchedule,
    FactorSchedule,
    Formula,
    LearningRateAndMomentum,
    Multiplier,
    Schedule,
    make_factor_schedule,
    widen,
)

_Link: TypeAlias = FactorSchedule | CosineSchedule
_LARGEST_TABLE = 100_000


@overload
def chained_scheduler(schedulers: Sequence[Schedule]) -> Schedule: ...


@overload
def chained_scheduler(
    schedulers: Sequence[Schedule | LearningRateAndMomentum],
) -> Schedule | LearningRateAndMomentum: ...


def chained_scheduler(
    schedulers: Sequence[Schedule | LearningRateAndMomentum],
) -> Schedule | LearningRateAndMomentum:
    """Step several schedules at once, in their order: ``ChainedScheduler``.

    Each of PyTorch's schedulers changes the learning rate that it finds:

    - `step_lr`, `multi_step_lr`, `constant_lr`, `linear_lr`, `exponential_lr`,
      `polynomial_lr` and `multiplicative_lr` multiply it.
    - `cosine_annealing_lr` multiplies the part above ``eta_min``, and adds to it where
      a rise begins. So at its lowest point, what the others did before is lost.
    - `lambda_lr`, `cosine_annealing_warm_restarts`, `cyclic_lr` and `one_cycle_lr`
      replace it. So schedulers before the last of these have no effect. A factor g(t)
      after it multiplies its value at step t by g(t)/g(t − 1).

    As in PyTorch, schedulers after a ``OneCycleLR`` have its first learning rate as
    their base learning rate, and a ``CyclicLR`` that is not the first scheduler leaves
    the optimizer's learning rate unchanged for the first update.

    With an ``eta_min`` or several cosines, the learning rates are computed once, when
    the schedule is made, until they repeat. If there is only one cosine and the factors
    stop changing, they are computed at most up to the next lowest point of the cosine.

    Args:
        schedulers: Schedules of this module with the same base learning rate, in
            PyTorch's order, or what `cyclic_lr` and `one_cycle_lr` return. If their
            learning rates are arrays, the first one counts.

    Returns:
        A schedule: a function from the step count to the learning rate. If one of the
        schedulers moves the momentum, ``(learning_rate, momentum)``.

    Raises:
        ValueError: If there are no schedulers, if their base learning rates differ, if
            one is not among those above, or if more than 100,000 learning rates would
            have to be computed once.
        TypeError: If a scheduler is not a schedule of this module.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> warmup = schedules.linear_lr(0.5, start_factor=0.25, total_iters=5)
        >>> decay = schedules.exponential_lr(0.5, gamma=0.5)
        >>> schedule = schedules.chained_scheduler([warmup, decay])
        >>> schedule(0), schedule(5)
        (Array(0.125, dtype=float32), Array(0.015625, dtype=float32))
    """
    if len(schedulers) == 0:
        raise ValueError(
            "schedulers must have at least one schedule, but it was empty."
        )
    pairs = [_validate_part(scheduler) for scheduler in schedulers]
    chain: list[_Link | AbsoluteSchedule] = []
    for schedule, _ in pairs:
        for part in schedule.parts or (schedule,):
            if not isinstance(part, FactorSchedule | CosineSchedule | AbsoluteSchedule):
                raise ValueError(
                    "schedulers must multiply the learning rate that they find, "
                    f"replace it, or be cosine_annealing_lr, but one was {part!r}. "
                    "Write the learning rate as a function of the step count instead."
                )
            chain.append(part)
    call = f"chained_scheduler({[*schedulers]!r})"
    momenta = [pair.momentum for pair in pairs if pair.momentum is not None]
    if not momenta:
        return _chain(call, chain)
    learning_rate = _chain(f"{call}.learning_rate", chain)
    # Each of PyTorch's schedulers replaces the momentum, so the last one wins.
    momentum = dataclasses.replace(momenta[-1], call=f"{call}.momentum")
    return LearningRateAndMomentum(learning_rate, momentum)


def repeat_first_step(schedule: Schedule) -> Schedule:
    """Return a chain with its first step taken twice, or another schedule as it is.

    Raises:
        ValueError: If PyTorch divides by 0 there.
    """
    if not schedule.parts:
        return schedule
    return _chain(schedule.call, [_repeat_first_step(part) for part in schedule.parts])


def _repeat_first_step(part: Schedule) -> _Link | AbsoluteSchedule:
    if isinstance(part, CosineSchedule):
        return dataclasses.replace(part, is_ahead=True)
    if isinstance(part, AbsoluteSchedule):
        return dataclasses.replace(part, starts_at_base=False)
    assert isinstance(part, FactorSchedule)
    factor, repeat, multiplier = part.factor, part.repeat, part.multiplier
    if multiplier is not None:
        evaluate = multiplier.evaluate
        multiplier = multiplier._replace(
            evaluate=lambda counts: (
                evaluate(counts) * np.where(counts == 0, repeat(), 1.0)
            )
        )
    return dataclasses.replace(
        part, factor=lambda count: factor(count) * repeat(), multiplier=multiplier
    )


def _validate_part(part: object) -> LearningRateAndMomentum:
    if isinstance(part, LearningRateAndMomentum):
        return part
    if not isinstance(part, Schedule):
        raise TypeError(
            "schedulers must be schedules of rmsprop_jax.schedules, which know their "
            f"base learning rate, but one was {part!r}."
        )
    return LearningRateAndMomentum(part)


def _chain(call: str, chain: Sequence[_Link | AbsoluteSchedule]) -> Schedule:
    """Return the schedule of the learning rate."""
    parts = tuple(chain)
    links: list[_Link] = []
    replaced: AbsoluteSchedule | None = None
    for part in chain:
        if isinstance(part, AbsoluteSchedule):
            replaced, links = part, []
        else:
            links.append(part)
    if replaced is not None:
        # CyclicLR has its own base_lr only after its first step.
        is_late = replaced.starts_at_base and replaced is not chain[0]
        first = chain[0].learning_rate if is_late else None
        return Schedule(call, _step_from(replaced, first, links), parts=parts)
    base = links[0].learning_rate
    for link in links:
        its = link.learning_rate
        # Arrays may be traced, and are not read.
        if isinstance(its, float) and isinstance(base, float) and its != base:
            raise ValueError(
                "schedulers must have the same base learning rate, which each of them "
                f"changes, but {link!r} and {links[0]!r} differ."
            )
    factors = [x for x in links if isinstance(x, FactorSchedule)]
    cosines = [x for x in links if isinstance(x, CosineSchedule)]
    if not cosines:
        return _multiply(call, base, factors, parts)
    if len(cosines) == 1 and cosines[0].eta_min == 0:
        place = links.index(cosines[0])
        formula = _multiply_cosine(cosines[0], factors[:place], factors[place:])
        return Schedule(call, formula, parts=parts)
    multipliers = [_get_multiplier(factor) for factor in factors]
    if len(cosines) == 1 and all(x.period is None for x in multipliers):
        settled = max((x.settled for x in multipliers), default=0)
        formula = _continue_cosine(base, links, cosines[0], settled)
    else:
        formula = _repeat(base, links, cosines, multipliers)
    return Schedule(call, formula, parts=parts)


def _multiply(
    call: str,
    base: Number,
    factors: Sequence[FactorSchedule],
    parts: tuple[Schedule, ...],
) -> FactorSchedule:
    """Return the product of factors."""

    def factor(count: jax.Array) -> jax.Array:
        product = factors[0].factor(count)
        for other in factors[1:]:
            product = product * other.factor(count)
        return product

    def growth(since: jax.Array, count: jax.Array) -> jax.Array:
        product = factors[0].growth(since, count)
        for other in factors[1:]:
            product = product * other.growth(since, count)
        return product

    return make_factor_schedule(call, base, factor, growth, parts=parts)


def _multiply_cosine(
    cosine: CosineSchedule,
    earlier: Sequence[FactorSchedule],
    later: Sequence[FactorSchedule],
) -> Formula:
    """Return the product with a cosine whose ``eta_min`` is 0.

    At its lowest point the learning rate is 0, whatever the others are, and the next
    step adds the cosine's own height to it. From there on, the others multiply that.
    """
    half = cosine.T_max
    period = 2 * half
    if cosine.is_ahead and half == 1:
        raise ValueError(
            "T_max of cosine_annealing_lr must be at least 2 in a chain that comes "
            "first in sequential_lr, because PyTorch takes its first step twice, but "
            "it was 1."
        )

    def formula(count: jax.Array) -> jax.Array:
        value = widen(cosine.learning_rate) * half_cosine(fold(count, half), half)
        has_risen = count > half
        if cosine.is_ahead:
            ahead = 1 / math.cos(math.pi / 2 / half) ** 2
            value = value * jnp.where(has_risen, 1.0, to_real(ahead))
        past = jnp.maximum(count - half - 1, 0)
        rises = past // period if period <= LARGEST_COUNT else jnp.zeros_like(past)
        rise = jnp.where(has_risen, rises * period + half + 1, 0)
        for part in earlier:
            grown = part.growth(rise, jnp.maximum(count, rise))
            value = value * jnp.where(has_risen, grown, part.factor(count))
        # A later one also multiplies what the cosine has just added.
        before = jnp.maximum(rise - 1, 0)
        for part in later:
            grown = part.growth(before, jnp.maximum(count, before))
            value = value * jnp.where(has_risen, grown, part.factor(count))
        return value

    return formula


# --- After a schedule that replaces the learning rate: one step of each later one.


def _step_from(
    replaced: AbsoluteSchedule, first: Number | None, links: Sequence[_Link]
) -> Formula:
    """Return what the links make of the learning rate that a schedule sets.

    At step 0 the schedule sets `first` instead, unless that is None.
    """

    def formula(count: jax.Array) -> jax.Array:
        value = replaced.formula(count)
        if first is not None:
            value = jnp.where(count == 0, widen(first), value)
        for link in links:
            if isinstance(link, CosineSchedule):
                value = _step_cosine(link, value, count)
            else:
                grown = link.growth(jnp.maximum(count - 1, 0), count)
                initial = link.factor(jnp.zeros_like(count))
                value = value * jnp.where(count == 0, initial, grown)
        return value

    return formula


def _step_cosine(
    cosine: CosineSchedule, found: jax.Array, count: jax.Array
) -> jax.Array:
    """Return the learning rate after a step of a cosine."""
    half, smallest = cosine.T_max, cosine.eta_min

    def height(count: jax.Array) -> jax.Array:
        # Not 1 + cos, which loses its digits near the lowest point.
        left = (half - fold(count, half)).astype(found.dtype)
        return jnp.sin(left * (math.pi / 2 / half)) ** 2

    # The height of the step before is 0 where it rises.
    before = height(jnp.abs(count - 1))
    is_rise = before == 0
    ratio = height(count) / jnp.where(is_rise, 1, before)
    added = (widen(cosine.learning_rate) - smallest) * math.sin(math.pi / 2 / half) ** 2
    stepped = jnp.where(is_rise, found + added, smallest + (found - smallest) * ratio)
    is_kept = (count == 0) & (not cosine.is_ahead)
    return jnp.where(is_kept, found, stepped)


# --- If none replaces it: the learning rates of the first steps, computed once.


def _get_multiplier(factor: FactorSchedule) -> Multiplier:
    if factor.multiplier is None:
        raise ValueError(
            "schedulers may have a multiplicative_lr only with one "
            "cosine_annealing_lr, whose eta_min is 0, because the learning rates can't "
            f"be computed once from a function that JAX traces, but {factor!r} was "
            "among others. Use multi_step_lr instead, which multiplies at given steps, "
            "or write the learning rate as a function of the step count."
        )
    return factor.multiplier


def _continue_cosine(
    base: Number, links: Sequence[_Link], cosine: CosineSchedule, settled: int
) -> Formula:
    """Return a cosine that is alone from the step at which its factors settle."""
    half = cosine.T_max
    lowest = _find_lowest(half, settled + 1)
    # The first fall continues by its formula, and a rise is computed to its fall's end.
    last = settled if settled < half else lowest
    look_up = _compute_once(base, links, last + 1)

    def formula(count: jax.Array) -> jax.Array:
        value = look_up(jnp.minimum(count, last))
        if last < lowest:
            ratio = half_cosine(fold(count, half), half) / half_cosine(
                jnp.array(last, jnp.int32), half
            )
            fallen = cosine.eta_min + (value - cosine.eta_min) * ratio
            value = jnp.where(count > last, fallen, value)
        return jnp.where(count > lowest, cosine.formula(count), value)

    return formula


def _repeat(
    base: Number,
    links: Sequence[_Link],
    cosines: Sequence[CosineSchedule],
    multipliers: Sequence[Multiplier],
) -> Formula:
    """Return learning rates that repeat from the lowest point of a cosine on."""
    settled = max((x.settled for x in multipliers), default=0)
    # At this point the factors already repeat.
    lowest = min(_find_lowest(cosine.T_max, settled + 1) for cosine in cosines)
    periods = [x.period for x in multipliers if x.period is not None]
    period = math.lcm(*(2 * cosine.T_max for cosine in cosines), *periods)
    look_up = _compute_once(base, links, lowest + period)
    return lambda count: look_up(
        jnp.where(count < lowest, count, lowest + (count - lowest) % period)
    )


def _find_lowest(half: int, start: int) -> int:
    """Return the first lowest point of a cosine that is not before the start."""
    return half + 2 * half * max(-((half - start) // (2 * half)), 0)


def _compute_once(
    base: Number, links: Sequence[_Link], size: int
) -> Callable[[jax.Array], jax.Array]:
    """Return a function from a step count to its learning rate, from a table.

    Raises:
        ValueError: If the table would be too large.
    """
    if size > _LARGEST_TABLE:
        raise ValueError(
            f"schedulers must need at most {_LARGEST_TABLE} learning rates that are "
            "computed once: those until the factors stop changing or, with several "
            "cosines or factors that never stop changing, until all repeat. But they "
            f"needed {size}. Give fewer steps and a T_max that has a small common "
            "multiple with the others, or write the learning rate as a function of the "
            "step count."
        )
    # Linear in the base learning rate, which may be traced.
    slope, offset = 1.0, 0.0
    slopes: list[float] = []
    offsets: list[float] = []
    with np.errstate(all="ignore"):  # overflow is infinite, as in PyTorch
        for gain, height, added in zip(*_compose(links, size), strict=True):
            slope, offset = gain * slope + height, gain * offset + added
            slopes.append(slope)
            offsets.append(offset)

    def look_up(count: jax.Array) -> jax.Array:
        wide = jnp.result_type(float)
        with np.errstate(all="ignore"):
            tables = [np.array(x).astype(wide) for x in (slopes, offsets)]
        found, added = (jnp.asarray(table)[count] for table in tables)
        return widen(base) * found + added

    return look_up


def _compose(links: Sequence[_Link], size: int) -> list[list[float]]:
    """Return what all links do at each step, one after the other.

    They are lists of a, b and c. The learning rate η becomes a·η + b·η₀ + c, with the
    base learning rate η₀.
    """
    counts = np.arange(size, dtype=float)
    gains, heights, added = np.ones(size), np.zeros(size), np.zeros(size)
    for link in links:
        if isinstance(link, CosineSchedule):
            gain, height = _compute_cosine_steps(link, counts)
        else:
            gain, height = _get_multiplier(link).evaluate(counts), np.zeros(size)
        smallest = link.eta_min if isinstance(link, CosineSchedule) else 0.0
        heights = gain * heights + height
        added = gain * added + smallest * (1 - gain - height)
        gains = gain * gains
    return [gains.tolist(), heights.tolist(), added.tolist()]


def _compute_cosine_steps(
    cosine: CosineSchedule, counts: NumpyArray
) -> tuple[NumpyArray, NumpyArray]:
    """Return by what a cosine multiplies at each step, and what it adds.

    The first is of what is above ``eta_min``; the second is a part of its range.
    """
    half = cosine.T_max
    # The same formula as PyTorch's, because its rounding lasts from a rise to its fall.
    height = [
        1 + math.cos(math.pi * (count - 1) / half) for count in range(counts.size + 1)
    ]
    is_first = (counts == 0) & (not cosine.is_ahead)
    is_rise = ((counts - 1 - half) % (2 * half) == 0) & ~is_first
    is_kept = is_rise | is_first
    before = np.where(is_kept, 1.0, height[:-1])
    gain = np.where(is_kept, 1.0, np.array(height[1:]) / before)
    rise = (1 - math.cos(math.pi / half)) / 2
    return gain, np.where(is_rise, rise, 0.0)
