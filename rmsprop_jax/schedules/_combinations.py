"""``SequentialLR``, which uses one scheduler after the other."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import TypeAlias, TypeGuard, overload

import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer.options import is_schedule
from rmsprop_jax._optimizer.rule import Number
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
_WithBase: TypeAlias = AbsoluteSchedule | FactorSchedule | CosineSchedule | SWASchedule


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
            others; a ``OneCycleLR`` and a ``SWALR`` use settings of later ones (and a
            ``OneCycleLR`` the momenta of a later ``CyclicLR``); and a ``SequentialLR``
            that comes first is stepped twice at the start. The error says what to write
            instead.
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
    first = bisect.bisect_right(starts, 0) - 1
    _check_group_settings(parts, first)
    _check_base_learning_rates(learning_rates, starts, first)
    if isinstance(learning_rates[first], SequentialSchedule):
        raise ValueError(
            "schedulers must not begin with a sequential_lr, because PyTorch steps it "
            "twice at the start, so that each of its milestones comes one step early. "
            "To do the same, put its schedulers into this sequential_lr: the first one "
            "in a chained_scheduler of its own, and each of its own milestones one "
            "smaller."
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


def _flatten(part: Schedule) -> tuple[Schedule, ...]:
    """Return the schedules of a chain, or the schedule itself."""
    return part.parts or (part,)


def _check_group_settings(parts: Sequence[LearningRateAndMomentum], first: int) -> None:
    """Raise if a scheduler would read settings that a later one has overwritten."""
    made = [[*_flatten(x.learning_rate), *filter(None, [x.momentum])] for x in parts]
    stored = {k: v for part in made for x in part for k, v in x.group_settings.items()}
    # The schedulers before the first one are never active.
    for part, schedules in [*zip(parts, made, strict=True)][first:]:
        own = {
            k: v
            for x in schedules
            if x.reads_group_settings
            for k, v in x.group_settings.items()
        }
        changed = [name for name in own if not _agree(own[name], stored[name])]
        if changed:
            call = part.learning_rate.call.removesuffix(".learning_rate")
            wanted, was = (
                ", ".join(f"{name}={of[name]}" for name in changed)
                for of in (stored, own)
            )
            raise ValueError(
                f"schedulers must have {wanted} in {call}, because PyTorch keeps them "
                "in the optimizer's groups, where a later scheduler replaces them, but "
                f"it had {was}."
            )


def _agree(a: Number, b: Number) -> bool:
    """Whether two numbers are equal up to rounding, as far as one can know.

    Arrays may be traced.
    """
    if not isinstance(a, float) or not isinstance(b, float):
        return True
    return math.isclose(a, b)


def _check_base_learning_rates(
    parts: Sequence[Schedule], starts: Sequence[int], first: int
) -> None:
    """Raise if PyTorch changes the base learning rate of a schedule.

    PyTorch makes the schedulers in their order. A ``OneCycleLR``, and a ``CyclicLR``
    that is made first, set the base learning rate of the optimizer, which most
    schedulers after them read, and the learning rate from which the first one starts.
    """
    cycle: AbsoluteSchedule | None = None
    place = first
    for i, part in enumerate(parts):
        if cycle is not None and _reads_base(part):
            _check_base(part, cycle)
        for j, x in enumerate(_flatten(part)):
            if isinstance(x, AbsoluteSchedule) and (
                x.sets_base or (x.starts_at_base and i == j == 0)
            ):
                cycle, place = x, i
    if cycle is None or place <= first:
        return
    for part in _flatten(parts[first]):
        if isinstance(part, AbsoluteSchedule):
            break  # The rest of a chain continues from its learning rate.
        if isinstance(part, FactorSchedule | CosineSchedule | SWASchedule):
            turns = isinstance(part, CosineSchedule) and part.T_max < starts[first + 1]
            _check_base(part, cycle, can_follow=not turns)


def _check_base(
    part: _WithBase, cycle: AbsoluteSchedule, *, can_follow: bool = True
) -> None:
    own, base = cycle.learning_rate, part.learning_rate
    if _agree(own, base):
        return
    changer = "OneCycleLR" if cycle.sets_base else "CyclicLR"
    if can_follow:
        advice = f"Give {own} to follow PyTorch."
    else:
        advice = (
            f"PyTorch then uses both, the second after {part.call.partition('(')[0]}'s "
            "T_max, so only a function of the step count can follow it."
        )
    raise ValueError(
        f"schedulers must have {own} as the base learning rate of {part}, because "
        f"PyTorch's {changer} makes that the optimizer's, but it was {base}. {advice}"
    )


def _reads_base(part: Schedule) -> TypeGuard[_WithBase]:
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
