"""Find the scheduler in an optimizer's checkpoint, and count its steps in updates.

PyTorch's scheduler counts its own steps, ``last_epoch``, but a schedule here is a
function of the optimizer's updates. The two counts are equal if the scheduler steps
after each update. Otherwise their quotient or difference shows which argument to give.
The scheduler made

    fewer steps   if it steps once per epoch (updates_per_step) or was made later
                  (offset < 0)
    more steps    if GradScaler skipped updates, which the scheduler counted (offset)
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rmsprop_jax._error_text import warn_user
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._torch_family.locate import find_schedulers
from rmsprop_jax.schedules._arguments import validate_integer
from rmsprop_jax.schedules._state_dict import (
    ResumedSchedules,
    count_updates,
    read_scheduler,
)

# In characters. An agent's settings take some 10 kB, and more with large observations.
_LARGEST_SETTINGS = 2**22


class Counting(NamedTuple):
    """How a scheduler's steps follow from the optimizer's updates.

    Attributes:
        updates_per_step: The number of updates per step of the scheduler.
        offset: What is added to the step count first.
    """

    updates_per_step: int = 1
    offset: int = 0


def validate_counting(
    updates_per_step: int | None, offset: int | None
) -> Counting | None:
    """Return the two arguments with their defaults, or None if neither was given."""
    if updates_per_step is None and offset is None:
        return None
    per_step = 1 if updates_per_step is None else updates_per_step
    return Counting(
        validate_integer("updates_per_step", per_step),
        validate_integer("offset", offset or 0, -LARGEST_COUNT),
    )


def resume_scheduler(
    what: str,
    content: object,
    groups: Sequence[Settings],
    step_count: int,
    counting: Counting,
) -> ResumedSchedules:
    """Return the schedules of the only scheduler in a checkpoint.

    Args:
        what: What errors call the checkpoint.
        content: What it holds.
        groups: The optimizer's groups.
        step_count: The optimizer's updates.
        counting: What the user gave.

    Raises:
        ValueError: If there is not exactly one scheduler, if it can't be read, or if
            the number of its steps does not follow from ``counting``.
    """
    found = find_schedulers(content)
    if not found:
        raise ValueError(
            f"learning_rate can't be 'checkpoint', because {what} holds no "
            "state_dict of a scheduler. If another file has it, give "
            "rmsprop_jax.schedules.from_torch(read(path)) or a schedule."
        )
    if len(found) > 1:
        raise ValueError(
            f"learning_rate can't be 'checkpoint', because {what} holds several "
            f"schedulers, {', '.join([*found][:8])}. Give "
            "rmsprop_jax.schedules.from_torch(...) of one of them; read(path) reads a "
            "file."
        )
    place, state_dict = next(iter(found.items()))
    scheduler = read_scheduler(f"{place} of {what}", state_dict, groups)
    if len(scheduler.groups) != len(groups):
        raise ValueError(
            f"{place} of {what} must have a base learning rate for each of the "
            f"optimizer's {len(groups)} groups, but it had {len(scheduler.groups)}."
        )
    per_step, offset = counting
    schedules = count_updates(scheduler, per_step, offset)
    if max(step_count + offset, 0) // per_step != scheduler.last_epoch:
        raise ValueError(
            f"updates_per_step and offset must be such that (step + offset) // "
            f"updates_per_step is the scheduler's 'last_epoch', but they were "
            f"{per_step} and {offset}, and {_suggest(scheduler.last_epoch, step_count)}"
        )
    _warn_of_near_miss(scheduler.last_epoch, step_count + offset, per_step)
    return schedules


def _warn_of_near_miss(last_epoch: int, updates: int, per_step: int) -> None:
    """Warn if the updates make whole epochs, but epochs of another length.

    It is only a warning, because a checkpoint may be saved in the middle of an epoch.
    """
    if last_epoch == 0 or updates % last_epoch or updates == last_epoch * per_step:
        return
    warn_user(
        f"updates_per_step={per_step} fits if the checkpoint was saved "
        f"{updates - last_epoch * per_step} updates after the scheduler's last step. "
        f"If it was saved right after that step, updates_per_step must be "
        f"{updates // last_epoch}, because then {updates} updates (step + offset) are "
        f"{last_epoch} ('last_epoch') times as many."
    )


def describe_unread_learning_rate(content: object) -> str:
    """Describe the learning rate of a Stable-Baselines3 agent if it is not a number.

    The file stores other objects as the name of their class and a pickle, which is not
    read. It is only for a warning, so settings that are not JSON are ignored.
    """
    data = content.get("data") if isinstance(content, Mapping) else None
    if not isinstance(data, str) or len(data) > _LARGEST_SETTINGS:
        return ""
    try:
        settings: Any = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    rate = settings.get("learning_rate") if isinstance(settings, dict) else None
    if not isinstance(rate, dict) or ":type:" not in rate:
        return ""
    named = re.fullmatch(r"<class '([\w.]{1,99})'>", str(rate[":type:"]))
    kind = f"a {named[1]}" if named else "an object"
    return f"the agent's learning_rate is {kind}, which may be a schedule"


def describe_scheduler(
    what: str, content: object, groups: Sequence[Settings], step_count: int
) -> str:
    """Describe how to resume the scheduler in a checkpoint; empty if there is none."""
    found = find_schedulers(content)
    if len(found) != 1:
        return ""
    place, state_dict = next(iter(found.items()))
    with warnings.catch_warnings():
        # Resuming the scheduler warns.
        warnings.simplefilter("ignore")
        try:
            scheduler = read_scheduler(f"{place} of {what}", state_dict, groups)
        except ValueError as error:
            return f" The checkpoint has a scheduler that can't be resumed: {error}"
    arguments = "learning_rate='checkpoint'"
    if scheduler.last_epoch == step_count:
        return f" To resume its {scheduler.name}, give {arguments}."
    return (
        f" To resume its {scheduler.name}, give {arguments} and more: "
        f"{_suggest(scheduler.last_epoch, step_count)}"
    )


def _suggest(last_epoch: int, step_count: int) -> str:
    """Return a sentence with the arguments that fit the two counts."""
    counts = f"its 'last_epoch' is {last_epoch} and the optimizer's step {step_count}. "
    if last_epoch > step_count:
        return (
            f"{counts}If GradScaler skipped the difference, give "
            f"offset={last_epoch - step_count}."
        )
    if last_epoch == step_count:
        return f"{counts}It steps with every update: give neither argument."
    if last_epoch == 0:
        return (
            f"{counts}If it steps less often than once in {step_count} updates, give "
            f"updates_per_step, more than {step_count}; if it was made later, give "
            f"offset=-{step_count}."
        )
    largest, smallest = step_count // last_epoch, step_count // (last_epoch + 1) + 1
    per_step = f"updates_per_step={largest}"
    if smallest < largest and step_count % last_epoch:
        per_step = f"updates_per_step, from {smallest} to {largest}"
    elif smallest < largest:
        per_step += (
            f" if the checkpoint was saved at the end of an epoch, otherwise a value "
            f"from {smallest} to {largest - 1}"
        )
    return (
        f"{counts}If it steps once per epoch, give {per_step}; if it was made later, "
        f"give offset={last_epoch - step_count}."
    )
