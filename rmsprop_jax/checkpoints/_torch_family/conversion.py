"""Convert a state_dict like PyTorch's to ``(tx, opt_state)``, and export it back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy.typing as npt
import optax

from rmsprop_jax._error_text import warn_user
from rmsprop_jax.checkpoints._convert.arrays import to_numpy
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import (
    ErrorHints,
    FromParams,
    Override,
    Run,
    Settings,
    ToParams,
    make_run,
    split_run,
)
from rmsprop_jax.checkpoints._readers import read_file
from rmsprop_jax.checkpoints._readers.source import File, explain_content_errors
from rmsprop_jax.checkpoints._torch_family.locate import (
    Id,
    NewStateDict,
    StateDict,
    find_only_weights,
    find_state_dict,
    replace_state,
    split_state_dict,
)
from rmsprop_jax.checkpoints._torch_family.optimizers import (
    MOMENT_KEYS,
    SCHEDULER_TRACES,
    Buffers,
    OptimizerSpec,
)
from rmsprop_jax.checkpoints._torch_family.schedulers import (
    Counting,
    describe_scheduler,
    describe_unread_learning_rate,
    resume_scheduler,
)
from rmsprop_jax.checkpoints._torch_family.state_dict import (
    Names,
    OptimizerState,
    check_fits,
    make_buffers,
    make_param_states,
    read_state_dict,
    validate_names,
)

# From the groups and the weights in the same checkpoint to the names in the order of a
# framework's own script, or None if that script did not make the groups.
GuessNames: TypeAlias = Callable[
    [list[Settings], Mapping[str, npt.ArrayLike]], list[str] | None
]

_HINTS = ErrorHints(
    keys=MOMENT_KEYS,
    to_drop="take them out of the state and the groups' 'params'.",
    to_join="Give them the same settings first.",
)


def resume(
    wanted: OptimizerSpec,
    source: StateDict | File,
    to_params: ToParams | None,
    names: Names | None,
    learning_rate: Override | Literal["checkpoint"] | None,
    momentum: Override | None,
    guess_names: GuessNames | None = None,
    counting: Counting | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Return the transformation and the state that resume a run.

    Args:
        wanted: The optimizer that must have made it.
        source: The optimizer's state_dict, a checkpoint that contains one, or a file.
        to_params: As in `from_torch`, like the arguments below.
        names: The names of the parameters.
        learning_rate: Replaces the groups' learning rates.
        momentum: Replaces the groups' momenta.
        guess_names: Finds the names if none are given.
        counting: How to resume the checkpoint's scheduler if the learning rate is
            "checkpoint".
        shardings: Where the leaves belong.

    Raises:
        ValueError: If ``counting`` is given with another learning rate.
    """
    what, content = "checkpoint", source
    if isinstance(source, str | os.PathLike):
        what = repr(os.fspath(source))
        content = read_file(source, "torch", "stable_baselines3").content
    names = validate_names(names)
    with explain_content_errors(what):
        state_dict = find_state_dict(what, content)
        weights = find_only_weights(content)
        if names is None and guess_names is not None:
            names = guess_names(split_state_dict(what, state_dict).groups, weights)
        state = read_state_dict(what, state_dict, wanted, names, weights)
        params = make_param_states(state)
        hint = ""
        if isinstance(learning_rate, str):
            if learning_rate != "checkpoint":
                raise ValueError(
                    "learning_rate must be a number, a schedule, a list of one for "
                    "each group, or 'checkpoint', but it was "
                    f"{learning_rate!r}."
                )
            resumed = resume_scheduler(
                what, content, state.settings, state.step_count, counting or Counting()
            )
            learning_rate = resumed.learning_rate
            momentum = resumed.momentum if momentum is None else momentum
        elif counting is not None:
            raise ValueError(
                "learning_rate must be 'checkpoint' with updates_per_step or offset, "
                "which say how to resume the checkpoint's scheduler, but it was "
                f"{learning_rate!r}."
            )
        elif learning_rate is None:
            hint = describe_scheduler(what, content, state.settings, state.step_count)
    if learning_rate is None:
        _warn_of_scheduler(state, "learning_rate", "lr", hint)
        if why := describe_unread_learning_rate(content):
            warn_user(
                f"learning_rate is not given, but in {what} {why}. Here it stays at "
                f"{state.groups[0].learning_rate}. Give learning_rate: a schedule of "
                "the step count, or a number to keep it constant."
            )
    if momentum is None:
        _warn_of_scheduler(state, "momentum", "momentum", hint)
    return make_run(
        what,
        params,
        state.groups,
        to_params,
        _HINTS,
        learning_rate,
        momentum,
        shardings,
    )


def export(
    wanted: OptimizerSpec,
    opt_state: optax.OptState,
    from_params: FromParams | None,
    like: StateDict,
    names: Names | None,
) -> NewStateDict:
    """Return a state_dict of the form of `like` that resumes the run there."""
    names = validate_names(names)
    with explain_content_errors("like"):
        state_dict = find_state_dict("like", like)
        state = read_state_dict("like", state_dict, wanted, names, {})
    group_of = {param.name: param.group for param in state.params}
    params = split_run(opt_state, from_params, group_of)
    made: dict[Id, Buffers] = {}
    for param, new in zip(state.params, params, strict=True):
        check_fits(state, param, new)
        moments = [x for x in (new.nu, new.mu, new.grad_mean) if x is not None]
        # If ν is initialized to 0, only a gradient can change it.
        if param.buffers or any(to_numpy(x).any() for x in moments):
            updates = new.step_count - state.step_count
            made[param.id] = make_buffers(state, param, new, updates)
    return replace_state(state_dict, made, state.settings)


def _warn_of_scheduler(state: OptimizerState, name: str, key: str, hint: str) -> None:
    """Warn if a scheduler changed a setting that is to stay constant here."""
    trace = SCHEDULER_TRACES[key]
    scheduled = [g for g, settings in enumerate(state.settings) if trace in settings]
    if scheduled:
        group = state.groups[scheduled[0]]
        value = group.learning_rate if key == "lr" else group.settings[key]
        warn_user(
            f"{name} is not given, but {trace!r} in group {scheduled[0]} of "
            f"{state.what} shows that a scheduler changed it. Here it stays at "
            f"{value}. Give {name}: a schedule of the step count, or a number to keep "
            f"it constant.{hint}"
        )
