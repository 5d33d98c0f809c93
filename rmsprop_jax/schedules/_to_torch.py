"""Export a scheduler to PyTorch: its state_dict after more steps.

PyTorch's scheduler keeps its progress in ``last_epoch`` and ``_step_count``, a
CosineAnnealingWarmRestarts also in ``T_cur`` and ``T_i``. ``_last_lr`` is the learning
rate that it left in each group of the optimizer, from which most classes continue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._arguments import validate_integer
from rmsprop_jax.schedules._schedule import (
    AbsoluteSchedule,
    CosineSchedule,
    FactorSchedule,
    Schedule,
)
from rmsprop_jax.schedules._state_dict import (
    MakeSchedule,
    Scheduler,
    evaluate,
    read_scheduler,
    validate_arguments,
)
from rmsprop_jax.schedules._torch_classes import ParamGroups, StateDict

# From how often a scheduler stepped to a learning rate of each group.
_LearningRates: TypeAlias = Callable[[int], list[float]]


def to_torch(
    state_dict: StateDict,
    step_count: int,
    *,
    updates_per_step: int = 1,
    offset: int = 0,
    param_groups: ParamGroups | None = None,
    lambdas: Sequence[MakeSchedule] = (),
) -> dict[str, Any]:
    """Export a scheduler: return PyTorch's state_dict at a later step count.

    Most of PyTorch's schedulers continue from the learning rate of the optimizer, so
    restore that too:

        # optimizer.load_state_dict(checkpoints.to_torch(state, like=…))
        # scheduler.load_state_dict(new)
        # for group, lr in zip(optimizer.param_groups, new["_last_lr"]):
        #     group["lr"] = lr

    A OneCycleLR and a CyclicLR set the momentum at their next step. For the one update
    before that, put ``float(momentum(step_count))`` into ``group["momentum"]``, with
    the schedule that `from_torch` makes.

    Args:
        state_dict: The scheduler's earlier state_dict, which `from_torch` takes. It is
            not changed.
        step_count: The optimizer's step count now: ``int(state.count)``, or with
            several groups ``int(back["state"][0]["step"])``, where ``back`` is what
            `rmsprop_jax.checkpoints.to_torch` returned.
        updates_per_step: As in `from_torch`.
        offset: As in `from_torch`.
        param_groups: As in `from_torch`.
        lambdas: As in `from_torch`.

    Returns:
        A new dictionary for ``scheduler.load_state_dict``, as PyTorch's scheduler would
        make it after ``(step_count + offset) // updates_per_step`` steps. Its learning
        rates are float32 unless x64 is enabled.

    Raises:
        ValueError: As in `from_torch`; also if the scheduler has already made more
            steps, or can't make as many.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> state_dict = {"step_size": 30, "gamma": 0.5, "base_lrs": [0.5]}
        >>> state_dict |= {"last_epoch": 45, "_step_count": 46, "_last_lr": [0.25]}
        >>> new = schedules.to_torch(state_dict, step_count=60)
        >>> new["last_epoch"], new["_step_count"], new["_last_lr"]
        (60, 61, [0.125])

    References:
        torch 2.13.0, ``torch/optim/lr_scheduler.py`` and ``torch/optim/swa_utils.py``.
    """
    validate_arguments(state_dict, lambdas, param_groups)
    per_step = validate_integer("updates_per_step", updates_per_step)
    shift = validate_integer("offset", offset, -LARGEST_COUNT)
    count = validate_integer("step_count", step_count, 0)
    scheduler = read_scheduler("state_dict", state_dict, param_groups, lambdas)
    steps = max(count + shift, 0) // per_step
    if steps < scheduler.last_epoch:
        raise ValueError(
            "step_count must not be before the state_dict, but at "
            f"{count} the scheduler has made {steps} steps, and in state_dict "
            f"{scheduler.last_epoch} already. Give the optimizer's count of all "
            "updates, not only of those since."
        )

    def learning_rates(count: int) -> list[float]:
        return [evaluate(x.learning_rate, [count])[0] for x in scheduler.groups]

    return _advance(
        state_dict,
        scheduler,
        scheduler.last_epoch,
        steps,
        lambda n: learning_rates(n - 1),
        learning_rates,
    )


def _advance(
    state_dict: StateDict,
    scheduler: Scheduler,
    before: int,
    after: int,
    found: _LearningRates,
    learning_rates: _LearningRates,
) -> dict[str, Any]:
    """Return the state_dict after more steps.

    Args:
        state_dict: The state_dict of a scheduler, which may be nested in another one.
        scheduler: What was read from it.
        before: How many steps it has made; -1 before its milestone in a SequentialLR.
        after: How many steps it is to have made.
        found: From a step to the learning rates that it finds in the groups.
        learning_rates: From a step to the learning rates that it leaves there.
    """
    new = dict(state_dict)
    if after == before:
        return new
    if after > state_dict.get("total_steps", math.inf):
        raise ValueError(
            f"step_count must be at most that of a OneCycleLR's 'total_steps', "
            f"{state_dict['total_steps']}, after which torch raises an error, but "
            f"the scheduler would make {after} steps."
        )
    # At its milestone, torch sets 'last_epoch' to 0, and does not count it as a step.
    steps = after - max(before, 0)
    if "last_epoch" in new:
        new["last_epoch"] = after if before < 0 else new["last_epoch"] + steps
    if scheduler.name == "CosineAnnealingWarmRestarts":  # it has its own step()
        new |= _restart(new["T_cur"] + steps, new.get("T_i", new["T_0"]), new["T_mult"])
    elif "_step_count" in new and not scheduler.parts:  # nested ones don't count
        new["_step_count"] += steps
    if "_last_lr" in new:
        new["_last_lr"] = learning_rates(after)
    if scheduler.name == "SequentialLR":
        bounds = [0, *map(int, state_dict["_milestones"]), LARGEST_COUNT + 1]
        new["_schedulers"] = [
            _advance(
                part,
                read,
                max(min(before, end - 1) - start, -1),
                max(min(after, end - 1) - start, -1),
                lambda n, start=start: learning_rates(start + n - 1),
                lambda n, start=start: learning_rates(start + n),
            )
            for part, read, (start, end) in zip(
                state_dict["_schedulers"],
                scheduler.parts,
                pairwise(bounds),
                strict=True,
            )
        ]
    elif scheduler.parts:
        new["_schedulers"] = [
            _advance(
                part,
                read,
                before,
                after,
                lambda n, i=i: _step_chain(scheduler.parts[:i], found(n), n),
                lambda n, i=i: _step_chain(scheduler.parts[: i + 1], found(n), n),
            )
            for i, (part, read) in enumerate(
                zip(state_dict["_schedulers"], scheduler.parts, strict=True)
            )
        ]
    return new


def _restart(done: float, length: float, multiplier: float) -> dict[str, float]:
    """Return where a CosineAnnealingWarmRestarts is in its cycle."""
    if multiplier == 1:
        return {"T_cur": done % length, "T_i": length}
    while done >= length:
        done, length = done - length, length * multiplier
    return {"T_cur": done, "T_i": length}


def _step_chain(
    parts: Sequence[Scheduler], learning_rates: list[float], count: int
) -> list[float]:
    """Return what the first parts of a ChainedScheduler leave, one after the other."""
    for part in parts:
        if part.name == "ChainedScheduler":
            learning_rates = _step_chain(part.parts, learning_rates, count)
        else:
            learning_rates = [
                _step(group.learning_rate, rate, count)
                for group, rate in zip(part.groups, learning_rates, strict=True)
            ]
    return learning_rates


def _step(schedule: Schedule, learning_rate: float, count: int) -> float:
    """Return what a scheduler makes of the learning rate that it finds."""
    if isinstance(schedule, AbsoluteSchedule):
        return evaluate(schedule, [count])[0]
    if isinstance(schedule, CosineSchedule):
        half, smallest = schedule.T_max, schedule.eta_min
        if (count - 1 - half) % (2 * half) == 0:  # it rises from the lowest point
            height = np.asarray(schedule.learning_rate).item() - smallest
            return learning_rate + height * (1 - math.cos(math.pi / half)) / 2
        ratio = 1 + math.cos(math.pi * count / half)
        ratio /= 1 + math.cos(math.pi * (count - 1) / half)
        return ratio * (learning_rate - smallest) + smallest
    assert isinstance(schedule, FactorSchedule)
    growth = schedule.growth(
        jnp.array(count - 1, jnp.int32), jnp.array(count, jnp.int32)
    )
    return learning_rate * np.asarray(growth).item()
