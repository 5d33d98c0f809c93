"""Read the parameters of a state_dict: their names, groups and buffers."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.checkpoints._convert.arrays import (
    NumpyArray,
    Value,
    cast_like,
    describe_missing_data,
    is_complex,
    to_real_numbers,
)
from rmsprop_jax.checkpoints._convert.run import Group, Moment, ParamState, Settings
from rmsprop_jax.checkpoints._readers.source import read_each
from rmsprop_jax.checkpoints._torch_family.locate import (
    Id,
    StateDict,
    split_state_dict,
    strip_wrapper_prefixes,
)
from rmsprop_jax.checkpoints._torch_family.optimizers import (
    MOMENT_KEYS,
    STEP,
    Buffers,
    OptimizerSpec,
    identify_optimizer,
)

# Names that are more similar than this differ by a typing error: one letter in ten.
_SIMILAR = 0.85
# How to list the names of several groups' parameters, by identity.
_NAMES_BY_IDENTITY = (
    "[name_of[p] for group in optimizer.param_groups for p in group['params']], where "
    "name_of = {p: name for name, p in model.named_parameters()}."
)
_WITH_SEVERAL_GROUPS = (
    "(With several groups, put the names of each into it as 'param_names' first.)"
)

Names: TypeAlias = Iterable[str] | Mapping[str, Value]


class Parameter(NamedTuple):
    """One parameter of the optimizer.

    Attributes:
        id: What the groups' ``params`` and the ``state`` call it.
        name: Its name in the model.
        group: The index of its group.
        step_count: The number of its updates.
        buffers: Its state; empty before its first gradient.
        weight: The weight itself, if it is known.
    """

    id: Id
    name: str
    group: int
    step_count: int
    buffers: Buffers
    weight: Value | None


class OptimizerState(NamedTuple):
    """A state_dict, whichever form it has.

    Attributes:
        what: What errors call it.
        spec: The optimizer that made it.
        params: The parameters, in the optimizer's order.
        settings: The settings of each group, as they are in the state_dict.
        groups: The settings of each group, as arguments of the dialect.
        moments: Which moments each group keeps.
    """

    what: str
    spec: OptimizerSpec
    params: list[Parameter]
    settings: list[Settings]
    groups: list[Group]
    moments: list[tuple[Moment, ...]]

    @property
    def step_count(self) -> int:
        """The largest step count of any parameter, because some may join late."""
        return max((param.step_count for param in self.params), default=0)


def validate_names(names: Names | None) -> Names | None:
    """Return names as a list, or as a dictionary if they come with weights."""
    if names is not None and not isinstance(names, Mapping):
        names = [names] if isinstance(names, str) else [*names]
    given: list[object] = [] if names is None else [*names]
    odd = [name for name in given if not isinstance(name, str)]
    if odd:
        raise TypeError(
            "names must be strings, or a dictionary from strings to weights, but one "
            f"was a {type(odd[0])}. Give dict(model.named_parameters())."
        )
    return names


def read_state_dict(
    what: str,
    state_dict: StateDict,
    wanted: OptimizerSpec,
    names: Names | None,
    weights: Mapping[str, Value],
) -> OptimizerState:
    """Read the parameters and groups of a state_dict.

    Args:
        what: What errors call the state_dict.
        state_dict: The optimizer's part of a checkpoint.
        wanted: The optimizer that must have made it.
        names: The names that the user gave.
        weights: The weights in the same checkpoint, if any.

    Raises:
        ValueError: If it is incomplete, is another optimizer's, or has invalid numbers.
            It names the parameter and the key.
    """
    state, settings = split_state_dict(what, state_dict)
    ids = [i for group in settings for i in group["params"]]
    _check_ids(what, ids, state)
    if isinstance(names, Mapping):
        weights = dict(zip(strip_wrapper_prefixes(names), names.values(), strict=True))
    flat = _describe_flat_buffers(settings, state)
    found = _find_names(what, settings, ids, names, flat)
    for i, name in zip(ids, found or ids, strict=True):
        _check_keys(what, name, state.get(i, {}), wanted)
    spec = identify_optimizer(what, settings, state, wanted)
    if found is None:
        example = "dict(model.named_parameters())."
        raise ValueError(
            f"names must be given, because {what} holds no 'param_names'. Give the "
            f"names of the optimizer's {len(ids)} parameters in its order, such as "
            + (_NAMES_BY_IDENTITY if _count_nonempty(settings) > 1 else example)
            + flat
        )
    if names is not None:
        _check_spelling(what, zip(ids, found, strict=True), state, weights)
    group_of = {i: g for g, group in enumerate(settings) for i in group["params"]}
    groups = [
        spec.make_group(group, f"group {g} of {what}")
        for g, group in enumerate(settings)
    ]
    params = [
        Parameter(i, name, group_of[i], 0, state.get(i, {}), weights.get(name))
        for i, name in zip(ids, found, strict=True)
    ]
    read = OptimizerState(
        what, spec, params, settings, groups, [group.moments for group in groups]
    )
    _check_whole(
        {
            f"{what}: {key!r} of parameter {param.name!r}": buffer
            for param in params
            for key, buffer in param.buffers.items()
        }
    )
    for param in params:
        if param.buffers:
            _check_buffers(read, param)
    return read._replace(params=_read_steps(what, params))


def _read_steps(what: str, params: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters with their step counts.

    A step beyond int32 becomes the largest int32, as in ``update``.
    """
    steps = to_real_numbers([param.buffers.get(STEP, 0) for param in params])
    for param, step in zip(params, steps, strict=True):
        if not step >= 0 or (step != math.inf and step != int(step)):
            (was,) = read_each([param.buffers[STEP]])
            raise ValueError(
                f"{what}: {STEP!r} of parameter {param.name!r} must be a whole number, "
                f"not negative, but it was {was!r}."
            )
    return [
        param._replace(step_count=int(min(step, LARGEST_COUNT)))
        for param, step in zip(params, steps, strict=True)
    ]


def make_param_states(state: OptimizerState) -> list[ParamState]:
    """Describe the parameters; without a gradient yet, they have the initial state."""
    return [_make_param_state(state, param) for param in state.params]


def _make_param_state(state: OptimizerState, param: Parameter) -> ParamState:
    if param.buffers:
        kept = state.moments[param.group]
        moments = {moment: param.buffers[MOMENT_KEYS[moment]] for moment in kept}
        return ParamState(param.name, param.group, param.step_count, **moments)
    if param.weight is None:
        raise ValueError(
            "names must be a dictionary from names to weights, such as "
            f"dict(model.named_parameters()), because parameter {param.name!r} never "
            "had a gradient. torch has no state for it, so only its weight knows its "
            "shape. "
            f"{_WITH_SEVERAL_GROUPS}"
        )
    dtype = str(getattr(param.weight, "dtype", "")).removeprefix("torch.")
    dtype = dtype if dtype in ("float64", "complex64", "complex128") else "float32"
    initial = state.spec.initial_nu * (1 + 1j if "complex" in dtype else 1)
    nu = np.full(np.shape(param.weight), initial, dtype)
    return ParamState(param.name, param.group, 0, nu)


def make_buffers(
    state: OptimizerState, param: Parameter, new: ParamState, updates: int
) -> dict[str, Value]:
    """Return torch's buffers of a parameter after more updates.

    Each is a tensor, an array or a number, as in the old state. Buffers that the
    settings no longer use do not change.
    """
    steps = (p.buffers[STEP] for p in (param, *state.params) if p.buffers)
    step_count = max(param.step_count + updates, 0)
    made: dict[str, Value] = {STEP: cast_like(next(steps, 0.0), step_count)}
    for moment, key in MOMENT_KEYS.items():
        array = getattr(new, moment)
        if array is not None:
            like = param.buffers.get(key)
            like = _find_buffer_template(state, param, array) if like is None else like
            made[key] = cast_like(like, array)
    return {**param.buffers, **made}


def check_fits(state: OptimizerState, param: Parameter, new: ParamState) -> None:
    """Raise if the new state has other moments, or other shapes, than `like` has."""
    kept = state.moments[param.group]
    known = param.weight
    if known is None:
        known = param.buffers.get(MOMENT_KEYS["nu"], new.nu)
    shape = tuple(np.shape(known))
    for moment, key in MOMENT_KEYS.items():
        array = getattr(new, moment)
        if (moment in kept) != (array is not None):
            there, here = ("has", "has no") if moment in kept else ("has no", "has")
            raise ValueError(
                "like must be of an optimizer with the settings that the state was "
                f"made with, but for {param.name!r} like {there} {key!r}, and the "
                f"state {here} {moment}. Check momentum and centered of group "
                f"{param.group}."
            )
        if array is not None and np.shape(array) != shape:
            raise ValueError(
                f"from_params must make arrays of the shapes in like, but {key!r} of "
                f"{param.name!r} had shape {np.shape(array)} instead of {shape}."
            )


def _find_buffer_template(
    state: OptimizerState, param: Parameter, array: NumpyArray
) -> Value:
    """Return a tensor whose type and dtype a parameter's new buffers should have."""
    near = sorted(state.params, key=lambda p: p.group != param.group)
    for like in (param.weight, *(p.buffers.get(MOMENT_KEYS["nu"]) for p in near)):
        if like is not None and is_complex(like) == is_complex(array):
            _check_whole({f"the weight of parameter {param.name!r} in names": like})
            return like
    raise ValueError(
        "names must be a dictionary from names to weights, such as "
        "dict(model.named_parameters()), because like has no state that shows the "
        f"dtype for parameter {param.name!r}. {_WITH_SEVERAL_GROUPS}"
    )


def _describe_flat_buffers(
    groups: Sequence[Settings], state: Mapping[Id, Buffers]
) -> str:
    """Describe what to do if each group has one long vector, as with flat fp16.

    Such an optimizer (DeepSpeed's, fairseq's, Apex's) joins all weights of a group.
    """
    of_groups = [group["params"] for group in groups if group["params"]]
    sizes: list[int] = []
    for ids in of_groups:
        buffers = state.get(ids[0])
        nu = buffers.get(MOMENT_KEYS["nu"]) if isinstance(buffers, Mapping) else None
        shape: tuple[int, ...] = tuple(getattr(nu, "shape", ()))
        if len(ids) > 1 or len(shape) != 1:
            return ""
        sizes += shape
    if not sizes:
        return ""
    names = ["flat"] if len(sizes) == 1 else [f"flat_{g}" for g in range(len(sizes))]
    return (
        f" If the optimizer joined the weights of a group into one vector, of "
        f"{' and '.join(map(str, sizes))} elements, give names={names} and a to_params "
        "that splits it, with the padding at its end under its own key."
    )


def _find_names(
    what: str,
    groups: Sequence[Settings],
    ids: Sequence[Id],
    names: Names | None,
    flat: str,
) -> list[str] | None:
    """Return the parameters' names in the optimizer's order; None if nobody knows."""
    own = _find_own_names(what, groups, ids)
    if names is None:
        return own
    given = strip_wrapper_prefixes(names)
    if own is None and isinstance(names, Mapping) and _count_nonempty(groups) > 1:
        raise ValueError(
            f"names must be a list in the optimizer's order, because {what} has "
            f"{len(groups)} groups and no 'param_names'. A model's dictionary has "
            "another order, in which parameters would get each other's state. Give "
            + _NAMES_BY_IDENTITY
        )
    if own is not None and isinstance(names, Mapping) and set(own) <= set(given):
        return own  # only the dictionary's weights are needed, in any order
    if own is not None and isinstance(names, Mapping):
        missing = [name for name in own if name not in {*given}]
        raise ValueError(
            f"names must be a dictionary that has the 'param_names' in {what}, but it "
            f"lacks {missing[:4]}, and has {given[:4]}. A model's dictionary may not "
            "be in the optimizer's order, so to rename the parameters, give "
            + _NAMES_BY_IDENTITY
        )
    if len(given) != len(ids) or len(set(given)) != len(given):
        raise ValueError(
            f"names must be {len(ids)} different names, one for each parameter of "
            f"{what} in the optimizer's order, but there were {len(given)}, of which "
            f"{len(set(given))} were different: {given[:8]}"
            + (", …" if len(given) > 8 else "")
            + ". Leave out what the optimizer does not optimize."
            + flat
        )
    known = set(own or given)
    for position, (name, own_name) in enumerate(zip(given, own or given, strict=True)):
        if name != own_name and name in known:
            raise ValueError(
                f"names must be in the order of the 'param_names' in {what}, but at "
                f"position {position} it has {name!r} instead of {own_name!r}."
            )
    return given


def _check_spelling(
    what: str,
    names: Iterable[tuple[Id, str]],
    state: Mapping[Id, Buffers],
    weights: Mapping[str, Value],
) -> None:
    """Raise if a name is nearly that of a weight of the same shape in the checkpoint.

    An optimizer may also have parameters that the model does not, such as those of a
    loss, so a name that no weight has is not wrong by itself.

    Args:
        what: What errors call the state_dict.
        names: The parameters with the names that the user gave.
        state: The buffers of each parameter.
        weights: The weights in the same checkpoint, if any.
    """
    given = dict(names)
    spare = [name for name in weights if name not in given.values()]
    for i, name in given.items():
        nu = state.get(i, {}).get(MOMENT_KEYS["nu"])
        if nu is None or name in weights:
            continue
        # Names that differ in a number belong to different layers.
        numbers = re.findall(r"\d+", name)
        like = [
            other
            for other in spare
            if np.shape(weights[other]) == np.shape(nu)
            and re.findall(r"\d+", other) == numbers
        ]
        close = difflib.get_close_matches(name, like, 1, _SIMILAR)
        if close:
            raise ValueError(
                f"names must be names of the model's weights, such as {close[0]!r} in "
                f"{what}, but one was {name!r}."
            )


def _find_own_names(
    what: str, groups: Sequence[Settings], ids: Sequence[Id]
) -> list[str] | None:
    """Return the names that the state_dict contains, if it does."""
    lists = [group.get("param_names") for group in groups]
    if groups and all(x is not None for x in lists):
        if not all(isinstance(x, list | tuple) for x in lists):
            odd = next(x for x in lists if not isinstance(x, list | tuple))
            raise ValueError(
                f"{what} must have a list as the 'param_names' of each group, but one "
                f"was {odd!r}."
            )
        own = [name for names in lists if names is not None for name in names]
    elif ids and all(isinstance(i, str) for i in ids):
        own = [str(i) for i in ids]  # as torch.distributed.checkpoint saves them
    else:
        return None
    if len(own) != len(ids) or not all(isinstance(name, str) for name in own):
        raise ValueError(
            f"{what} must have a string in 'param_names' for each of its {len(ids)} "
            f"parameters, but it has {len(own)}, {own[:4]}. Take them out of its "
            "groups, and give the right ones as names."
        )
    return strip_wrapper_prefixes(own)


def _count_nonempty(groups: Sequence[Settings]) -> int:
    return sum(bool(group["params"]) for group in groups)


def _check_ids(what: str, ids: Sequence[Id], state: Mapping[Id, Buffers]) -> None:
    """Raise if a parameter is in no group, or in several."""
    counts = Counter(ids)
    odd = [i for i, count in counts.items() if count > 1]
    odd += [i for i in state if i not in counts]
    if odd:
        raise ValueError(
            f"{what} must have each parameter in one group, but parameter {odd[0]!r} "
            f"is in {counts[odd[0]]} groups."
        )


def _check_keys(
    what: str, name: str | Id, buffers: Buffers, wanted: OptimizerSpec
) -> None:
    """Raise if another optimizer made the buffers."""
    if not hasattr(buffers, "keys"):
        raise ValueError(
            f"{what} must have a dictionary as the state of parameter {name!r}, but it "
            f"was {buffers!r}."
        )
    for key in buffers:
        if key not in (STEP, *MOMENT_KEYS.values()):
            raise ValueError(
                f"{what} must be of {wanted.optimizer}, but parameter {name!r} "
                f"holds {key!r}, where RMSprop keeps only "
                f"{', '.join((STEP, *MOMENT_KEYS.values()))}. The state of another "
                "optimizer can't be converted: start with rmsprop(...).init(params)."
            )


def _check_whole(tensors: Mapping[str, Value]) -> None:
    """Raise if one of the tensors is distributed over processes, or has no data.

    Args:
        tensors: The tensors by what errors call them.
    """
    reasons = describe_missing_data([*tensors.values()])
    for what, reason in zip(tensors, reasons, strict=True):
        if reason:
            raise ValueError(
                f"{what} must be a whole tensor, but it was {reason}. Get whole "
                "tensors on the CPU with torch.distributed.checkpoint.state_dict: "
                "get_optimizer_state_dict(model, optimizer, options=StateDictOptions("
                "full_state_dict=True, cpu_offload=True)). set_optimizer_state_dict "
                "takes them back with options=StateDictOptions(full_state_dict=True)."
            )


def _check_buffers(state: OptimizerState, param: Parameter) -> None:
    """Raise if a buffer is missing, or their shapes differ."""
    kept = state.moments[param.group]
    shape, owner = None, ""
    if param.weight is not None:
        shape, owner = tuple(np.shape(param.weight)), "its weight"
    required = [STEP, *(MOMENT_KEYS[moment] for moment in kept)]
    missing = [key for key in required if key not in param.buffers]
    if missing:
        raise ValueError(
            f"{state.what}: parameter {param.name!r} has no {missing[0]!r}, which "
            f"{state.spec.optimizer} keeps with the settings of its group "
            f"{param.group}. It holds {sorted(param.buffers)}."
        )
    for key in (key for key in MOMENT_KEYS.values() if key in param.buffers):
        its_shape = tuple(np.shape(param.buffers[key]))
        if shape is None:
            shape, owner = its_shape, f"its {key!r}"
        if its_shape != shape:
            raise ValueError(
                f"{state.what}: {key!r} of parameter {param.name!r} must have shape "
                f"{shape}, as {owner} has, but it had {its_shape}. Either the names "
                "are not in the optimizer's order, or the checkpoint is incomplete."
            )
