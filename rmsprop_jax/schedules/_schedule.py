"""The schedules that the functions of this folder return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax.schedules._counting import NumpyArray, to_count, to_real

# From the step count, int32 and not negative, to a real number.
Formula: TypeAlias = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """An optax schedule: a pure function of the step count.

    Attributes:
        call: The call that makes it, for `repr`.
        formula: Its values.
        continue_from: From the learning rate before a milestone of ``SequentialLR`` to
            the values after it, or None if PyTorch restarts it there.
        parts: The schedules in it if it is of a ``ChainedScheduler``.
        group_settings: What PyTorch's scheduler writes into the optimizer's groups, by
            the names of the arguments. A scheduler that is made later overwrites it.
        reads_group_settings: Whether PyTorch's scheduler reads these settings at each
            step.
    """

    call: str
    formula: Formula
    continue_from: Callable[[jax.Array], Formula] | None = None
    parts: tuple[Schedule, ...] = ()
    group_settings: Mapping[str, Number] = dataclasses.field(
        default_factory=dict[str, Number]
    )
    reads_group_settings: bool = False

    def __call__(self, count: ArrayLike) -> jax.Array:
        """Return the value at a step count: an integer, or an array of integers."""
        return self.formula(to_count(count))

    def __repr__(self) -> str:
        return self.call


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AbsoluteSchedule(Schedule):
    """A schedule that does not depend on the optimizer's current learning rate.

    Attributes:
        learning_rate: The base learning rate.
        starts_at_base: Whether PyTorch's starts at the optimizer's base learning rate
            instead if another scheduler was made before it.
        sets_base: Whether PyTorch's makes its own the optimizer's base learning rate.
    """

    learning_rate: Number = 0.0
    starts_at_base: bool = False
    sets_base: bool = False


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SWASchedule(Schedule):
    """``SWALR``, which starts from the optimizer's current learning rate.

    Attributes:
        learning_rate: The learning rate that it starts from.
    """

    learning_rate: Number = 0.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SequentialSchedule(Schedule):
    """One schedule after the other, each from its milestone on."""


class Multiplier(NamedTuple):
    """The factors by which PyTorch multiplies step by step, in float64 NumPy.

    Attributes:
        evaluate: From step counts to numbers; at 0 PyTorch makes the scheduler.
        settled: The step count after which the numbers are 1, or repeat.
        period: After how many steps they repeat, or None if they are 1.
    """

    evaluate: Callable[[NumpyArray], NumpyArray]
    settled: int
    period: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FactorSchedule(Schedule):
    """A learning rate times a factor, which ``ChainedScheduler`` can multiply.

    Attributes:
        learning_rate: The base learning rate.
        factor: The factor at a step count.
        growth: How much the factor grows from a step count to a later one. It is not
            the quotient of two factors, because both may be 0 by underflow.
        multiplier: What PyTorch multiplies by, or None if it comes from a function of
            the user that is traced.
        repeat: What PyTorch multiplies by in addition if it takes the first step twice.
    """

    learning_rate: Number = 0.0
    factor: Formula = to_real
    growth: Callable[[jax.Array, jax.Array], jax.Array] = lambda since, count: count
    multiplier: Multiplier | None = None
    repeat: Callable[[], Number] = lambda: 1.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CosineSchedule(Schedule):
    """``CosineAnnealingLR``, which ``ChainedScheduler`` treats in its own way.

    Attributes:
        learning_rate: The base learning rate.
        T_max: Half of a period.
        eta_min: The smallest learning rate.
        is_ahead: Whether PyTorch takes its first step twice.
    """

    learning_rate: Number = 0.0
    T_max: int = 1
    eta_min: float = 0.0
    is_ahead: bool = False


class LearningRateAndMomentum(NamedTuple):
    """The two schedules of a scheduler that moves the momentum as well.

    Attributes:
        learning_rate: The schedule of the learning rate.
        momentum: The schedule of the momentum, or None if the scheduler leaves it
            alone.
    """

    learning_rate: Schedule
    momentum: Schedule | None = None


def make_factor_schedule(
    call: str,
    learning_rate: Number,
    factor: Formula,
    growth: Callable[[jax.Array, jax.Array], jax.Array],
    continue_from: Callable[[jax.Array], Formula] | None = None,
    multiplier: Multiplier | None = None,
    parts: tuple[Schedule, ...] = (),
    repeat: Callable[[], Number] = lambda: 1.0,
) -> FactorSchedule:
    """Return the schedule ``learning_rate * factor(count)``."""

    def formula(count: jax.Array) -> jax.Array:
        return widen(learning_rate) * factor(count)

    return FactorSchedule(
        call,
        formula,
        continue_from,
        parts,
        learning_rate=learning_rate,
        factor=factor,
        growth=growth,
        multiplier=multiplier,
        repeat=repeat,
    )


def widen(number: Number) -> Number:
    """Return a Python float as it is, and an array in JAX's widest real dtype."""
    return number if isinstance(number, float) else to_real(number)


def blend(first: Number, last: Number, part: jax.Array) -> jax.Array:
    """Return the part of the way from the first number to the last; exact at both."""
    return widen(first) * (1 - part) + widen(last) * part


def to_schedule(schedule: optax.Schedule) -> Schedule:
    """Return a schedule of optax, or a function, as one of this module."""
    if isinstance(schedule, Schedule):
        return schedule
    return Schedule(repr(schedule), lambda count: to_real(schedule(count)))
