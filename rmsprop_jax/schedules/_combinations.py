"""``SequentialLR``, which uses one scheduler after the other."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import TypeAlias, overload

import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer.options import is_schedule
from rmsprop_jax.schedules._arguments import validate_integer
from rmsprop_jax.schedules._chains import repeat_first_step
from rmsprop_jax.schedules._schedule import (
    AbsoluteSchedule,
    CosineSchedule,
    FactorSchedule,
    Formula,
    LearningRateAndMomentum,
    Schedule,
    SequentialSchedule,
    SWASchedule,
    to_schedule,
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

    Each counts from its milestone on, and has its own base learning rate. Three
    schedulers are exceptions, as in PyTorch: they continue from the learning rate
    before the milestone, or use another formula there. See `swa_lr`,
    `multiplicative_lr` and `constant_lr`.

    If a ``ChainedScheduler`` comes first, PyTorch takes the first step of all
    schedulers in it twice, so an ``ExponentialLR`` in it is a step ahead. This schedule
    does the same. PyTorch raises an error when it reaches a chain after a milestone;
    here, the chain counts from 0.

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
        ValueError: If there are not as many milestones, or they don't ascend. If
            PyTorch changes the schedulers: a ``OneCycleLR``, or a ``CyclicLR`` that
            comes first, makes its first learning rate the base learning rate of most
            others; a ``OneCycleLR`` takes the limits of a later ``OneCycleLR``, and the
            momenta of a later ``CyclicLR``; and a ``SequentialLR`` that comes first is
            stepped twice at the start. The error says what to write instead.
        TypeError: If something in ``schedulers`` is not a schedule.

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
    learning_rates = [part.learning_rate for part in parts]
    _check_limits([x for rate in learning_rates for x in rate.parts or (rate,)])
    _check_limits([part.momentum for part in parts if part.momentum is not None])
    first = bisect.bisect_right(starts, 0) - 1
    _check_base_learning_rates(learning_rates, first)
    if isinstance(learning_rates[first], SequentialSchedule):
        raise ValueError(
            "schedulers must not begin with a sequential_lr, because PyTorch steps it "
            "twice at the start, so that each of its milestones comes one step early. "
            "To do the same, put its schedulers into this sequential_lr, with "
            "milestones that are one smaller."
        )
    learning_rates[first] = repeat_first_step(learning_rates[first])
    formula = _join(learning_rates, starts)
    if all(part.momentum is None for part in parts):
        return SequentialSchedule(call, formula)
    momentum = _hold_between([part.momentum for part in parts], starts)
    return LearningRateAndMomentum(
        SequentialSchedule(f"{call}.learning_rate", formula),
        Schedule(f"{call}.momentum", momentum),
    )


def _validate_part(name: str, part: _Part) -> LearningRateAndMomentum:
    if isinstance(part, LearningRateAndMomentum):
        return part
    if not is_schedule(part):
        raise TypeError(f"{name} must be schedules, but one was {part!r}.")
    return LearningRateAndMomentum(to_schedule(part))


def _check_limits(parts: Sequence[Schedule]) -> None:
    """Raise if a ``OneCycleLR`` would read the limits of a later scheduler."""
    owners = {name: part for part in parts for name in part.limits}
    for part in parts:
        if not part.reads_limits:
            continue
        for name, own in part.limits.items():
            owner = owners[name]
            stored = owner.limits[name]
            # Arrays may be traced.
            if not isinstance(own, float) or not isinstance(stored, float):
                continue
            if not math.isclose(own, stored):
                raise ValueError(
                    f"schedulers must have {name} = {stored} in {part}, because "
                    f"PyTorch keeps it in the optimizer's groups, where {owner} "
                    f"replaces it, but it was {own}. Give {stored} to do the same, or "
                    "use optax.join_schedules, which does not change it."
                )


def _check_base_learning_rates(parts: Sequence[Schedule], first: int) -> None:
    """Raise if PyTorch changes the base learning rate of a schedule.

    PyTorch makes the schedulers in their order. A ``OneCycleLR``, and a ``CyclicLR``
    that is made first, set the learning rate of the optimizer, from which the first
    scheduler then starts, and the base learning rate that most schedulers after them
    read.
    """
    for i, cycle in enumerate(parts):
        if not isinstance(cycle, AbsoluteSchedule):
            continue
        if not cycle.sets_base and not (cycle.starts_at_base and i == 0):
            continue
        changed = [part for part in parts[i + 1 :] if _reads_base(part)]
        if first < i:
            begins = parts[first].parts or (parts[first],)
            kinds = FactorSchedule | CosineSchedule | SWASchedule
            changed += [x for x in begins if isinstance(x, kinds)]
        own = cycle.learning_rate
        for part in changed:
            base: object = getattr(part, "learning_rate", None)
            # Arrays may be traced.
            if not isinstance(own, float) or not isinstance(base, float):
                continue
            if not math.isclose(own, base):
                raise ValueError(
                    f"schedulers must have {own} as the base learning rate of {part}, "
                    f"because PyTorch makes the first learning rate of {cycle} that of "
                    f"the optimizer, but it was {base}. Give {own} to do the same, or "
                    "use optax.join_schedules, which does not change it."
                )


def _reads_base(part: Schedule) -> bool:
    """Whether PyTorch's scheduler computes from the optimizer's base learning rate."""
    if isinstance(part, AbsoluteSchedule):
        return not (part.starts_at_base or part.sets_base)
    # MultiplicativeLR continues from the learning rate before its milestone.
    if isinstance(part, FactorSchedule):
        return part.multiplier is not None
    return isinstance(part, CosineSchedule)


def _shift(formula: Formula, start: int) -> Formula:
    """Return the formula, counting from a milestone on."""
    return lambda count: formula(jnp.maximum(count - start, 0))


def _join(parts: Sequence[Schedule], starts: Sequence[int]) -> Formula:
    """Return the formula of each schedule from its milestone on."""
    joined = parts[0].formula
    for part, start in zip(parts[1:], starts[1:], strict=True):
        own = part.formula
        # At step 0 PyTorch initializes a scheduler as if it were alone.
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
