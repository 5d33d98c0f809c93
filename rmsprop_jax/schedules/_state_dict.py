"""PyTorch's schedulers from their state_dicts.

A state_dict holds the settings of a scheduler but not its class, so the class is
recognized by the keys. Because another class may have the same keys, or another
scheduler may have changed the same learning rate, the schedule's value at
``last_epoch`` must be the ``_last_lr`` of the state_dict.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._arguments import validate_integer
from rmsprop_jax.schedules._chains import chained_scheduler
from rmsprop_jax.schedules._combinations import sequential_lr
from rmsprop_jax.schedules._schedule import (
    LearningRateAndMomentum,
    Schedule,
    to_schedule,
)
from rmsprop_jax.schedules._torch_classes import (
    LAMBDA,
    PLATEAU,
    READERS,
    WITH_OWN_LEARNING_RATES,
    NamedError,
    ParamGroups,
    Source,
    StateDict,
    Unchecked,
    describe_plateau,
    recognize,
    to_number,
    wrap,
)

# From a base learning rate to the schedule of a LambdaLR or a MultiplicativeLR.
MakeSchedule: TypeAlias = Callable[[float], optax.Schedule]

_MOST_NESTED = 8
_MOST_SCHEDULERS = 100


class ResumedSchedules(NamedTuple):
    """The schedules that `from_torch` returns, for an optimizer's arguments.

    Attributes:
        learning_rate: The schedule of the learning rate; for several groups a list.
        momentum: The same for the momentum, or None if the scheduler leaves it alone.
    """

    learning_rate: Schedule | list[Schedule]
    momentum: Schedule | list[Schedule] | None = None

    @property
    def groups(self) -> list[LearningRateAndMomentum]:
        """The two schedules of each group, as a list even if there is one group."""
        rates, momenta = self
        rates = [rates] if isinstance(rates, Schedule) else rates
        momenta = [momenta] if isinstance(momenta, Schedule) else momenta
        pairs = zip(rates, momenta or [None] * len(rates), strict=True)
        return [LearningRateAndMomentum(*pair) for pair in pairs]


class Scheduler(NamedTuple):
    """A scheduler that was read.

    Attributes:
        name: PyTorch's class.
        last_epoch: The number of its steps.
        groups: The schedules of each group, as functions of the number of its steps.
        parts: The schedulers in it.
    """

    name: str
    last_epoch: int
    groups: list[LearningRateAndMomentum]
    parts: Sequence[Scheduler] = ()


def from_torch(
    state_dict: StateDict,
    *,
    updates_per_step: int = 1,
    offset: int = 0,
    param_groups: ParamGroups | None = None,
    lambdas: Sequence[MakeSchedule] = (),
) -> ResumedSchedules:
    """Resume a scheduler of PyTorch: make its schedules from its state_dict.

    The class is recognized by the keys, also in nested state_dicts. As a check, the
    schedule must reproduce the last learning rate of the state_dict.

    Args:
        state_dict: ``scheduler.state_dict()``.
        updates_per_step: The number of updates per step of the scheduler: 1 if it steps
            with the optimizer, or the updates of an epoch if it steps once per epoch.
        offset: What is added to the step count: the number of steps that GradScaler
            skipped, because the scheduler counted them and the optimizer did not. It is
            −n for a scheduler that was made after n updates.
        param_groups: ``optimizer.state_dict()["param_groups"]``, in which OneCycleLR
            and SWALR keep their learning rates.
        lambdas: For each LambdaLR and each MultiplicativeLR, in the order of the
            state_dict, a function from the base learning rate to its schedule:
            ``lambda base_lr: schedules.lambda_lr(base_lr, lr_lambda)``. PyTorch does
            not store the functions.

    Returns:
        ``(learning_rate, momentum)``: schedules of the optimizer's step count, for
        several groups lists of them. The momentum is None if the scheduler leaves it
        alone. The attribute ``groups`` is always a list of ``(learning_rate,
        momentum)``, one for each group, which a type checker can follow.

    Raises:
        ValueError: If the keys are not those of a scheduler of PyTorch, if a number is
            missing or invalid, if ``param_groups`` or ``lambdas`` are needed, or if the
            schedule does not reproduce the last learning rate.
        TypeError: If an argument is of the wrong type.

    Warns:
        UserWarning: If it is a CyclicLR, because PyTorch does not store whether it had
            a ``scale_fn``.

    Examples:
        >>> from rmsprop_jax import rmsprop, schedules
        >>> state_dict = {"step_size": 30, "gamma": 0.5, "base_lrs": [0.5]}
        >>> state_dict |= {"last_epoch": 45, "_last_lr": [0.25]}
        >>> learning_rate, momentum = schedules.from_torch(state_dict)
        >>> learning_rate
        step_lr(0.5, step_size=30, gamma=0.5)
        >>> tx = rmsprop(learning_rate)

    `to_torch` exports the scheduler back, at a later step count.

    References:
        torch 2.13.0, ``torch/optim/lr_scheduler.py`` and ``torch/optim/swa_utils.py``.
    """
    validate_arguments(state_dict, lambdas, param_groups)
    scheduler = read_scheduler("state_dict", state_dict, param_groups, lambdas)
    return count_updates(scheduler, updates_per_step, offset)


def validate_arguments(
    state_dict: StateDict,
    lambdas: Sequence[MakeSchedule] = (),
    param_groups: ParamGroups | None = None,
) -> None:
    """Raise if an argument is of the wrong type."""
    if isinstance(state_dict, str | os.PathLike):
        raise TypeError(
            "state_dict must be a dictionary, such as scheduler.state_dict(), but it "
            f"was the path {os.fspath(state_dict)!r}. Read the file first: "
            "checkpoints.read(path)[key], with the key under which you saved it."
        )
    if not _is_mapping(state_dict):
        raise TypeError(
            "state_dict must be a dictionary, such as scheduler.state_dict(), but it "
            f"was {type(state_dict)}."
        )
    if isinstance(param_groups, Mapping):
        raise TypeError(
            "param_groups must be a list of dictionaries, but it was one dictionary. "
            "Give the optimizer.state_dict()['param_groups']."
        )
    for make in lambdas:
        if not callable(make):
            raise TypeError(
                "lambdas must be functions from a base learning rate to a schedule, "
                f"but one was {make!r}."
            )


def read_scheduler(
    what: str,
    state_dict: StateDict,
    param_groups: ParamGroups | None,
    lambdas: Sequence[MakeSchedule] = (),
) -> Scheduler:
    """Return the schedules of a scheduler, as functions of the number of its steps.

    Args:
        what: What errors call the state_dict.
        state_dict: The scheduler's state_dict.
        param_groups: The groups of the optimizer's state_dict, if they are known.
        lambdas: As in `from_torch`.

    Raises:
        ValueError: As from `from_torch`.
    """
    reader = _Reader(what, param_groups, [*lambdas])
    scheduler = reader.read(state_dict)
    if reader.lambdas:
        raise ValueError(
            f"lambdas must have one function for each LambdaLR and MultiplicativeLR of "
            f"{what}, but there were {len(reader.lambdas)} too many."
        )
    _check_last(what, state_dict, scheduler)
    return scheduler


def count_updates(
    scheduler: Scheduler, updates_per_step: int, offset: int
) -> ResumedSchedules:
    """Return the schedules as functions of the optimizer's step count."""
    per_step = validate_integer("updates_per_step", updates_per_step)
    shift = validate_integer("offset", offset, -LARGEST_COUNT)
    # One object for groups with the same schedule, so that their parameters may share
    # an array.
    unique: dict[str, Schedule] = {}

    def convert(schedule: Schedule) -> Schedule:
        converted = _count_updates(schedule, per_step, shift)
        return unique.setdefault(repr(converted), converted)

    rates = [convert(group.learning_rate) for group in scheduler.groups]
    momenta = [convert(x.momentum) for x in scheduler.groups if x.momentum is not None]
    if len(rates) == 1:
        return ResumedSchedules(rates[0], momenta[0] if momenta else None)
    return ResumedSchedules(rates, momenta or None)


def _count_updates(schedule: Schedule, per_step: int, offset: int) -> Schedule:
    if per_step == 1 and offset == 0:
        return schedule

    def formula(count: jax.Array) -> jax.Array:
        # Avoid a sum beyond int32's largest value.
        count = jnp.minimum(count, LARGEST_COUNT - max(offset, 0))
        return schedule(jnp.maximum(count + offset, 0) // per_step)

    shifted = f"(count + {offset})" if offset else "count"
    divided = f"{shifted} // {per_step}" if per_step > 1 else shifted
    return Schedule(f"lambda count: {schedule!r}({divided})", formula)


def _check_last(what: str, state_dict: StateDict, scheduler: Scheduler) -> None:
    """Raise if a schedule does not have the learning rate that the file has."""
    last = state_dict.get("_last_lr")
    if last is None:  # before PyTorch 1.4
        return
    if not isinstance(last, list | tuple) or len(last) != len(scheduler.groups):
        raise ValueError(
            f"{what} must have a list of {len(scheduler.groups)} numbers as its "
            f"'_last_lr', one for each base learning rate, but it was {last!r}."
        )
    for g, group in enumerate(scheduler.groups):
        theirs = to_number(last[g])
        with contextlib.suppress(OverflowError):  # of an integer like 10**400
            theirs = float(theirs) if type(theirs) is int else theirs
        if not isinstance(theirs, float):
            raise ValueError(
                f"{what} must have numbers as its '_last_lr', but one was {theirs!r}."
            )
        ours, start = evaluate(group.learning_rate, [scheduler.last_epoch, 0])
        if not abs(ours - theirs) <= 1e-5 * max(abs(ours), abs(theirs), abs(start)):
            raise ValueError(
                f"{what} has the keys of torch's {scheduler.name}, whose learning rate "
                f"is {ours:g} in group {g} after {scheduler.last_epoch} steps, but its "
                f"'_last_lr' is {theirs:g}. Something else set the learning rate too, "
                "or it is of another class. Make the schedule with the functions of "
                "rmsprop_jax.schedules, or as a function of the step count."
            )


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def evaluate(schedule: Schedule, counts: list[int]) -> list[float]:
    """Return the values of a schedule at step counts, as Python numbers."""
    return [
        np.asarray(schedule(jnp.array(count, jnp.int32))).item() for count in counts
    ]


class _Start(NamedTuple):
    """How the first scheduler of a ``SequentialLR`` with a ``OneCycleLR`` starts.

    PyTorch starts it from the learning rate that the ``OneCycleLR`` has set, but does
    not write that into its ``"base_lrs"``.

    Attributes:
        learning_rates: The learning rates of the optimizer's groups.
        milestone: The step count at which another scheduler begins.
    """

    learning_rates: list[Unchecked]
    milestone: Unchecked


@dataclasses.dataclass
class _Reader:
    """Reads a state_dict and the state_dicts in it.

    Attributes:
        what: What errors call the state_dict.
        param_groups: The groups of the optimizer, if they are known.
        lambdas: The functions that are not used yet.
        schedulers: How many schedulers were read.
    """

    what: str
    param_groups: ParamGroups | None
    lambdas: list[MakeSchedule]
    schedulers: int = 0

    def read(
        self,
        state_dict: StateDict,
        depth: int = 0,
        start: _Start | None = None,
    ) -> Scheduler:
        """Return the schedules of a state_dict, which may be in another one.

        Args:
            state_dict: The state_dict.
            depth: How many state_dicts enclose it.
            start: How it starts, if not from its ``"base_lrs"``.
        """
        self.schedulers += 1
        if depth > _MOST_NESTED or self.schedulers > _MOST_SCHEDULERS:
            raise ValueError(
                f"{self.what} must have at most {_MOST_SCHEDULERS} schedulers, nested "
                f"at most {_MOST_NESTED} deep, but it had more."
            )
        name = recognize(self.what, state_dict)
        if name == PLATEAU:
            raise ValueError(describe_plateau(self.what))
        if "_schedulers" in state_dict:
            return self._read_nested(name, state_dict, depth, start)
        source = Source(self.what, name, state_dict, self.param_groups)
        if start is not None and name not in WITH_OWN_LEARNING_RATES:
            _check_start(source, start)
            changed = {**state_dict, "base_lrs": start.learning_rates}
            source = dataclasses.replace(source, state_dict=changed)
        bases = source.read_list("base_lrs")
        last_epoch = source.read_epoch(depth)
        if name == LAMBDA:
            groups = self._read_lambda(source, bases)
        else:
            groups = [
                source.make(lambda g=g: READERS[name](source, g, depth))
                for g in range(len(bases))
            ]
        return Scheduler(name, last_epoch, groups)

    def _read_nested(
        self,
        name: str,
        state_dict: StateDict,
        depth: int,
        start: _Start | None,
    ) -> Scheduler:
        source = Source(self.what, name, state_dict, self.param_groups)
        parts = state_dict["_schedulers"]
        if (
            not isinstance(parts, list | tuple)
            or not parts
            or not all(isinstance(part, Mapping) for part in parts)
        ):
            raise ValueError(
                f"{self.what} must have a list of dictionaries as its '_schedulers', "
                f"but it was {type(parts).__name__}."
            )
        starts = [start] * len(parts)
        if name == "SequentialLR":
            milestones = source.read_list("_milestones")
            first = sum(isinstance(x, int | float) and x == 0 for x in milestones)
            later = [recognize(self.what, part) for part in parts[first + 1 :]]
            if "OneCycleLR" in later and self.param_groups is not None:
                groups = range(len(self.param_groups))
                cycle = dataclasses.replace(source, name="OneCycleLR")
                rates = [cycle.read_setting("initial_lr", g) for g in groups]
                starts[first] = _Start(rates, [*milestones, None][first])
        read = [
            self.read(part, depth + 1, one)
            for part, one in zip(parts, starts, strict=True)
        ]
        sizes = {len(part.groups) for part in read}
        if len(sizes) > 1:
            raise ValueError(
                f"{self.what} must have the same number of base learning rates in each "
                f"of its '_schedulers', but they had {sorted(sizes)}."
            )
        columns = zip(*(part.groups for part in read), strict=True)
        if name == "SequentialLR":
            milestones = source.read_list("_milestones")
            groups = [source.make(lambda c=c: _join(c, milestones)) for c in columns]
            return Scheduler(name, source.read_epoch(depth), groups, read)
        epochs = {part.last_epoch for part in read}
        if len(epochs) > 1:
            raise ValueError(
                f"{self.what} must have the same 'last_epoch' in each of the "
                f"'_schedulers' of a ChainedScheduler, but they were {sorted(epochs)}."
            )
        groups = [source.make(lambda c=c: _chain(c)) for c in columns]
        return Scheduler(name, epochs.pop(), groups, read)

    def _read_lambda(
        self, source: Source, bases: Sequence[Unchecked]
    ) -> list[LearningRateAndMomentum]:
        if not self.lambdas:
            raise ValueError(
                f"lambdas must be given, because {self.what} has a LambdaLR or a "
                "MultiplicativeLR, which have the same keys, and whose functions torch "
                "does not store. Give lambdas=[lambda base_lr: "
                "schedules.lambda_lr(base_lr, lr_lambda)] to "
                "rmsprop_jax.schedules.from_torch, or the same with multiplicative_lr, "
                "one for each in the order of the state_dict. Pass the schedule that "
                "it returns as learning_rate to rmsprop_jax.checkpoints.from_torch."
            )
        make = self.lambdas.pop(0)
        numbers = [source.read_real("base_lrs", base) for base in bases]
        made = [make(number) for number in numbers]
        odd = [schedule for schedule in made if not callable(schedule)]
        if odd:
            raise TypeError(
                "lambdas must be functions from a base learning rate to a schedule, "
                "such as lambda base_lr: schedules.lambda_lr(base_lr, lr_lambda), but "
                f"one returned {odd[0]!r}."
            )
        return [wrap(to_schedule(schedule)) for schedule in made]


def _check_start(source: Source, start: _Start) -> None:
    """Raise if a scheduler can't start from these learning rates."""
    bases, rates = (
        [source.read_real("base_lrs", rate) for rate in of]
        for of in (source.read_list("base_lrs"), start.learning_rates)
    )
    if len(bases) != len(rates):
        raise NamedError(
            f"param_groups must have {len(bases)} groups, as many as {source.what} has "
            f"base learning rates, but it had {len(rates)}."
        )
    if source.name != "CosineAnnealingLR" or bases == rates:
        return
    steps = source.read_real("T_max", source.read("T_max"))
    if steps < source.read_real("_milestones", start.milestone):
        raise NamedError(
            f"{source.what}, a {source.name}, can't be resumed, because a OneCycleLR "
            f"changed the learning rates from {bases} to {rates} before the first "
            "step, and after T_max steps PyTorch uses both. Make the schedule as a "
            "function of the step count."
        )


def _join(
    parts: Sequence[LearningRateAndMomentum], milestones: Sequence[Unchecked]
) -> LearningRateAndMomentum:
    return _wrap(sequential_lr(_unwrap(parts), milestones))


def _chain(parts: Sequence[LearningRateAndMomentum]) -> LearningRateAndMomentum:
    return _wrap(chained_scheduler(_unwrap(parts)))


def _unwrap(
    parts: Sequence[LearningRateAndMomentum],
) -> list[Schedule | LearningRateAndMomentum]:
    return [x if x.momentum is not None else x.learning_rate for x in parts]


def _wrap(made: Schedule | LearningRateAndMomentum) -> LearningRateAndMomentum:
    return made if isinstance(made, LearningRateAndMomentum) else wrap(made)
