"""The schedulers of schedulers: one after the other, or all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, overload

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer.options import is_schedule
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._annealing import fold
from rmsprop_jax.schedules._arguments import validate_integer
from rmsprop_jax.schedules._counting import half_cosine
from rmsprop_jax.schedules._schedule import (
    CosineSchedule,
    FactorSchedule,
    Formula,
    LearningRateAndMomentum,
    Schedule,
    make_factor_schedule,
    to_schedule,
    widen,
)

_Part: TypeAlias = optax.Schedule | LearningRateAndMomentum


@overload
def sequential_lr(
    schedulers: Sequence[optax.Schedule], milestones: Sequence[int]
) -> Schedule: ...


@overload
def sequential_lr(
    schedulers: Sequence[_Part], milestones: Sequence[int]
) -> Schedule | LearningRateAndMomentum: ...


def sequential_lr(
    schedulers: Sequence[_Part], milestones: Sequence[int]
) -> Schedule | LearningRateAndMomentum:
    """Use one schedule after the other: ``SequentialLR``.

    Each counts from its milestone on, and has its own base learning rate. PyTorch does
    the same but for three schedulers, which continue from the learning rate before the
    milestone or use another formula: see `swa_lr`, `multiplicative_lr` and
    `constant_lr`.

    PyTorch can't put a ``ChainedScheduler`` after a milestone. Where one is the first,
    PyTorch takes the first step of an ``ExponentialLR`` in it twice. Here it is taken
    once.

    Args:
        schedulers: Schedules of this module or of optax, or what `cyclic_lr` and
            `one_cycle_lr` return.
        milestones: The step counts at which the next one begins, in ascending order:
            one fewer than the schedulers.

    Returns:
        A schedule: a function from the step count to the learning rate. If one of the
        schedulers moves the momentum, ``(learning_rate, momentum)``; where another is
        active, the momentum stays as it was.

    Raises:
        ValueError: If there are not as many milestones, or they don't ascend.
        TypeError: If a scheduler is not one.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> warmup = schedules.linear_lr(0.5, start_factor=0.25, total_iters=5)
        >>> decay = schedules.exponential_lr(0.5, gamma=0.5)
        >>> schedule = schedules.sequential_lr([warmup, decay], milestones=[5])
        >>> schedule(0), schedule(5), schedule(6)
        (Array(0.125, dtype=float32), Array(0.5, dtype=float32),
         Array(0.25, dtype=float32))
    """
    parts = [_validate_part("schedulers", part) for part in schedulers]
    starts = [0, *(validate_integer("milestones", place, 0) for place in milestones)]
    if len(parts) != len(starts):
        raise ValueError(
            "milestones must be one fewer than the schedulers, but there were "
            f"{len(starts) - 1} and {len(parts)}."
        )
    if starts != sorted(starts):
        raise ValueError(f"milestones must ascend, but they were {starts[1:]}.")
    call = f"sequential_lr({[*schedulers]!r}, milestones={starts[1:]})"
    formula = _join([part.learning_rate for part in parts], starts)
    if all(part.momentum is None for part in parts):
        return Schedule(call, formula)
    momentum = _hold_between([part.momentum for part in parts], starts)
    return LearningRateAndMomentum(
        Schedule(f"{call}.learning_rate", formula),
        Schedule(f"{call}.momentum", momentum),
    )


def chained_scheduler(schedulers: Sequence[optax.Schedule]) -> Schedule:
    """Multiply the factors of several schedules: ``ChainedScheduler``.

    PyTorch steps the schedulers in their order, and each changes the learning rate that
    it finds. This is a product for `step_lr`, `multi_step_lr`, `constant_lr`,
    `linear_lr`, `exponential_lr`, `polynomial_lr`, `multiplicative_lr` and other
    chains. One `cosine_annealing_lr` with ``eta_min=0`` may be among them; where it
    rises again, the others count from there, as in PyTorch. All other schedulers set
    the learning rate anew, or add to it, so that there is no such formula.

    Args:
        schedulers: Schedules of this module with the same base learning rate, in
            PyTorch's order. If they are arrays, the first one counts.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If there are none, if their base learning rates differ, or if one
            does not multiply.
        TypeError: If a scheduler is not one of this module.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> warmup = schedules.linear_lr(0.5, start_factor=0.25, total_iters=5)
        >>> decay = schedules.exponential_lr(0.5, gamma=0.5)
        >>> schedule = schedules.chained_scheduler([warmup, decay])
        >>> schedule(0), schedule(5)
        (Array(0.125, dtype=float32), Array(0.015625, dtype=float32))
    """
    if len(schedulers) == 0:
        raise ValueError("schedulers must not be empty.")
    chain: list[FactorSchedule | CosineSchedule] = []
    for scheduler in schedulers:
        if not isinstance(scheduler, FactorSchedule | CosineSchedule):
            if not isinstance(scheduler, Schedule):
                raise TypeError(
                    "schedulers must be schedules of rmsprop_jax.schedules, which know "
                    f"their base learning rate, but one was {scheduler!r}."
                )
            raise ValueError(
                "schedulers must be such that multiply the learning rate which they "
                f"find, but {scheduler!r} sets it anew."
            )
        if isinstance(scheduler, CosineSchedule) and scheduler.eta_min != 0:
            raise ValueError(
                "schedulers may have a cosine_annealing_lr only with eta_min=0, "
                f"because otherwise it adds to the learning rate, but {scheduler!r} "
                "was among them."
            )
        chain.append(scheduler)
    base = chain[0].learning_rate
    for scheduler in chain:
        its = scheduler.learning_rate
        # Arrays may be traced, and are not read.
        if isinstance(its, float) and isinstance(base, float) and its != base:
            raise ValueError(
                "schedulers must have the same base learning rate, which is multiplied "
                f"by the factors of all, but {scheduler!r} and {chain[0]!r} differ."
            )
    cosines = [n for n, x in enumerate(chain) if isinstance(x, CosineSchedule)]
    if len(cosines) > 1:
        raise ValueError(
            "schedulers may have one cosine_annealing_lr, because each adds to the "
            f"learning rate where it rises, but there were {len(cosines)}."
        )
    call = f"chained_scheduler({[*schedulers]!r})"
    factors = [x for x in chain if isinstance(x, FactorSchedule)]
    if not cosines:

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

        return make_factor_schedule(call, base, factor, growth)
    (position,) = cosines
    cosine = chain[position]
    assert isinstance(cosine, CosineSchedule)
    formula = _chain_with_cosine(cosine, factors[:position], factors[position:])
    return Schedule(call, formula)


def _chain_with_cosine(
    cosine: CosineSchedule,
    earlier: Sequence[FactorSchedule],
    later: Sequence[FactorSchedule],
) -> Formula:
    """Return the product with a cosine.

    At its lowest point the learning rate is 0, whatever the others are, and the next
    step adds the cosine's own height to it. From there on, the others multiply that.
    """
    half = cosine.T_max
    period = 2 * half

    def formula(count: jax.Array) -> jax.Array:
        value = widen(cosine.learning_rate) * half_cosine(fold(count, half), half)
        has_risen = count > half
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


def _validate_part(name: str, part: _Part) -> LearningRateAndMomentum:
    if isinstance(part, LearningRateAndMomentum):
        return part
    if not is_schedule(part):
        raise TypeError(f"{name} must be schedules, but one was {part!r}.")
    return LearningRateAndMomentum(to_schedule(part))


def _shift(formula: Formula, start: int) -> Formula:
    """Return the formula, counting from a milestone on."""
    return lambda count: formula(jnp.maximum(count - start, 0))


def _join(parts: Sequence[Schedule], starts: Sequence[int]) -> Formula:
    """Return the formula of each schedule from its milestone on."""
    joined = parts[0].formula
    for part, start in zip(parts[1:], starts[1:], strict=True):
        own = part.formula
        # At the very start PyTorch initializes a scheduler, as if it were alone.
        if start > 0 and part.continue_from is not None:
            own = part.continue_from(joined(jnp.array(start - 1, jnp.int32)))
        joined = _choose(joined, _shift(own, start), start)
    return joined


def _choose(before: Formula, after: Formula, start: int) -> Formula:
    return lambda count: jnp.where(count >= start, after(count), before(count))


def _hold_between(momenta: Sequence[Schedule | None], starts: Sequence[int]) -> Formula:
    """Return the momentum, which stays as it was where no schedule moves it."""
    # PyTorch makes all schedulers first, and the last one leaves its first momentum.
    last = next(x for x in reversed(momenta) if x is not None)
    initial = last.formula
    joined: Formula = lambda count: initial(jnp.zeros_like(count))  # noqa: E731
    for part, start in zip(momenta, starts, strict=True):
        if part is not None:
            joined = _choose(joined, _shift(part.formula, start), start)
        elif start > 0:
            joined = _choose(joined, _hold(joined, start - 1), start)
    return joined


def _hold(formula: Formula, last: int) -> Formula:
    return lambda count: formula(jnp.full_like(count, last))
