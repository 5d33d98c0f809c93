"""A run with a state_dict of torch's form goes on here, and back there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax.checkpoints._arrays import as_float
from rmsprop_jax.checkpoints._files import File
from rmsprop_jax.checkpoints._pickles import opened
from rmsprop_jax.checkpoints._records import (
    InPlace,
    Wording,
    from_records,
    to_records,
)
from rmsprop_jax.checkpoints._torch_format import Names, read, steps
from rmsprop_jax.checkpoints._torch_kinds import KEYS, Kind, group_of
from rmsprop_jax.checkpoints._torch_layout import (
    Settings,
    StateDict,
    part_of,
    put_back,
    state_dict_in,
    weights_beside,
)
from rmsprop_jax.checkpoints._torch_records import buffers_of, check_fits, record_of

_WORDING = Wording(
    keys=KEYS,
    to_drop="take them out of state_dict's state and its groups' 'params'.",
    to_join="In torch, put them into one group first.",
)


def resumed(
    wanted: Kind,
    source: StateDict | File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None,
    names: Names | None,
    learning_rate: InPlace | None,
    momentum: InPlace | None,
    usual_names: Callable[[list[Settings], Mapping[str, np.ndarray]], list[str] | None]
    | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on.

    Args:
        wanted: The optimizer that must have made it.
        source: The optimizer's state_dict, a checkpoint that has one in it, or a file.
        to_params: As `from_torch` takes it, like the arguments below.
        names: Of the parameters.
        learning_rate: In place of the groups'.
        momentum: In place of the groups'.
        usual_names: Where the framework makes the groups itself: from the groups and
            the weights beside them to the names. It returns None where they differ.
    """
    checkpoint = opened(source, "torch", "stable_baselines3")
    state_dict = state_dict_in("state_dict", checkpoint)
    weights = weights_beside(checkpoint)
    if names is None and usual_names is not None:
        names = usual_names(part_of("state_dict", state_dict).groups, weights)
    saved = read(wanted, "state_dict", state_dict, names, weights)
    _warn_of_scheduler("learning_rate", learning_rate, saved.groups, "lr", "initial_lr")
    _warn_of_scheduler("momentum", momentum, saved.groups, "momentum", "max_momentum")
    groups = [group_of(saved.kind, settings) for settings in saved.groups]
    records = [record_of(saved, parameter) for parameter in saved.parameters]
    return from_records(records, groups, to_params, _WORDING, learning_rate, momentum)


def handed_back(
    wanted: Kind,
    opt_state: optax.OptState,
    from_params: Callable[[Any], Mapping[str, npt.ArrayLike]] | None,
    like: StateDict,
    names: Names | None,
) -> dict[str, Any]:
    """The inverse: a state_dict like the one that torch had."""
    like = state_dict_in("like", like)
    saved = read(wanted, "like", like, names, {})
    theirs = {parameter.name: parameter.group for parameter in saved.parameters}
    records = to_records(opt_state, from_params, theirs)
    before = steps(saved)
    state = {}
    for parameter, record in zip(saved.parameters, records, strict=True):
        check_fits(parameter, saved.groups[parameter.group], record)
        moments = (record.nu, record.mu, record.grad_mean)
        # Where ν begins at 0, only a gradient makes it something else.
        if parameter.buffers or any(x is not None and x.any() for x in moments):
            since = record.steps - before
            state[parameter.id] = buffers_of(saved, parameter, record, since)
    return put_back(like, state, saved.groups)


def _warn_of_scheduler(
    name: str, given: InPlace | None, groups: list[Settings], setting: str, trace: str
) -> None:
    """Warns of a setting that a scheduler changed there, and that stands still here."""
    scheduled = [g for g, settings in enumerate(groups) if trace in settings]
    if given is None and scheduled:
        value = as_float(groups[scheduled[0]][setting])
        warnings.warn(
            f"{name} is not given, but {trace!r} in group {scheduled[0]} of state_dict "
            f"shows a scheduler. Here the {setting} stays at {value}. Give {name}: a "
            "schedule of the count of updates, or the number at which it is to stay.",
            stacklevel=4,
        )
