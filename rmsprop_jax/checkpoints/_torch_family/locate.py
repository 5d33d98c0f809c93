"""Find the parts of a checkpoint: the optimizer's state_dict and the weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._convert.arrays import (
    Tensor,
    to_numpy_exactly,
)
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._readers.source import StoredArray, read_each
from rmsprop_jax.checkpoints._torch_family.optimizers import Buffers

# Nested dictionaries of tensors, lists and numbers, which torch types like this too.
StateDict: TypeAlias = Mapping[str, Any]
NewStateDict: TypeAlias = dict[str, Any]
# How a parameter is identified: by a number, or by its name in
# torch.distributed.checkpoint.
Id: TypeAlias = int | str

# A part with this word in its name has moving averages.
_AVERAGED = re.compile(r"(?<![a-z])ema(?![a-z])")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Parts of names that torch.compile and activation checkpointing insert.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


class Parts(NamedTuple):
    """The optimizer's state_dict, whichever form it has.

    Attributes:
        state: The buffers of each parameter, by its `Id`.
        groups: The settings of each group, with its ``params``.
    """

    state: Mapping[Id, Buffers]
    groups: list[Settings]


def find_state_dict(what: str, checkpoint: object) -> StateDict:
    """Return the optimizer's state_dict of a whole checkpoint, if it holds only one."""
    found = find_state_dicts(checkpoint)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(
            f"{what} must hold one optimizer's state_dict, but it holds "
            f"{', '.join(found)}. Give one of these; read(path) reads a file."
        )
    was, hint = repr(type(checkpoint)), ""
    if isinstance(checkpoint, Mapping):
        was = f"a dictionary of {[*checkpoint][:8]}"
        hint = "For a safetensors file, add the 'param_groups' of its metadata."
    elif isinstance(checkpoint, str | os.PathLike):
        hint = "Read the file first: read(path), or torch.load(path) for tensors."
    raise ValueError(
        f"{what} must be the state_dict() of an RMSprop of torch, which has "
        f"'param_groups', or a checkpoint that contains one, but it was {was}. {hint}"
    )


def find_state_dicts(checkpoint: object) -> dict[str, StateDict]:
    """Return the state_dicts of optimizers in a whole checkpoint, by their places."""
    return dict(_find(checkpoint, _is_state_dict))


def find_schedulers(checkpoint: object) -> dict[str, StateDict]:
    """Return the state_dicts of schedulers in a whole checkpoint, by their places."""
    return dict(_find(checkpoint, _is_scheduler))


def find_weights(
    what: str, checkpoint: object, *, ema: bool
) -> Mapping[str, npt.ArrayLike]:
    """Return the weights of a whole checkpoint, by name, or their moving averages."""
    found = find_models(checkpoint, ema=ema)
    if len(found) != 1:
        raise ValueError(
            f"{what} must hold the {'averaged ' * ema}weights of one model, but it "
            f"holds {', '.join(found) or 'none'}. Give the part that you mean; "
            "read(path) reads a file."
        )
    return next(iter(found.values()))


def find_only_weights(checkpoint: object) -> dict[str, npt.ArrayLike]:
    """Return the weights in a whole checkpoint; empty unless it holds one model's."""
    found = find_models(checkpoint, ema=False)
    return next(iter(found.values())) if len(found) == 1 else {}


def find_trainable_names(weights: Mapping[str, npt.ArrayLike]) -> list[str]:
    """Return the names of possible parameters: shared memory once, no statistics."""
    names: list[str] = []
    memories: set[object] = set()
    for name, weight in weights.items():
        memory = _memory_of(weight)
        if not name.endswith(_STATISTICS) and memory not in memories:
            names.append(name)
        memories |= {memory} if np.prod(np.shape(weight)) else set()
    return names


def strip_wrapper_prefixes(names: Iterable[str]) -> list[str]:
    """Return the names without the prefixes that wrappers of a model add.

    DistributedDataParallel adds ``module.``. A layer may have this name too, so it is
    removed only if all names begin with it.
    """
    names = list(names)
    for wrapper in _WRAPPERS:
        names = [name.replace(wrapper, "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def split_state_dict(what: str, state_dict: StateDict) -> Parts:
    """Return the state by parameter, and the groups, from any form of a state_dict.

    Raises:
        ValueError: If it is not a state_dict. It names the key.
    """
    if "param_groups" not in state_dict:
        return _split_flattened(what, state_dict)
    groups = _read_groups(what, state_dict["param_groups"])
    if "state" in state_dict:
        own_state = state_dict["state"]
        if not isinstance(own_state, Mapping):
            raise ValueError(
                f"{what} must have a dictionary under 'state', but it was "
                f"{own_state!r}."
            )
        return Parts(_match_ids(own_state, groups), groups)
    ids = {str(i): i for group in groups for i in group["params"]}
    state: dict[Id, NewStateDict] = {}
    for path, value in state_dict.items():
        prefix, i, key = _split_path(str(path))
        if prefix == "state" and i in ids:
            state.setdefault(ids[i], {})[key] = value
        elif path != "param_groups":
            raise ValueError(
                f"{what} must be flat with keys like 'state.0.square_avg', where 0 is "
                f"among the 'params' of a group, but it has the key {path!r}."
            )
    return Parts(state, groups)


def _match_ids(
    state: Mapping[Id, Buffers], groups: Sequence[Settings]
) -> Mapping[Id, Buffers]:
    """Return the state by the ids of the groups.

    torch.distributed.checkpoint turns torch's numbers into text in the state, but not
    in the groups.
    """
    number_of = {str(i): i for group in groups for i in group["params"]}
    return {number_of.get(i, i) if isinstance(i, str) else i: state[i] for i in state}


def replace_state(
    state_dict: StateDict, state: Mapping[Id, Buffers], groups: list[Settings]
) -> NewStateDict:
    """Return a state_dict of the same form with another state."""
    if "state" in state_dict:
        return {**state_dict, "state": state, "param_groups": groups}
    others = {k: v for k, v in state_dict.items() if not k.startswith("state.")}
    return others | {
        f"state.{i}.{key}": value
        for i, buffers in state.items()
        for key, value in buffers.items()
    }


def _read_groups(what: str, groups: object) -> list[Settings]:
    if isinstance(groups, str):
        try:
            groups = json.loads(groups)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{what} must have JSON under 'param_groups' if it is text, but the "
                f"text was not JSON ({error})."
            ) from error
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) for group in groups
    ):
        raise ValueError(
            f"{what} must have a list of dictionaries under 'param_groups', but it was "
            f"{type(groups).__name__}."
        )
    for g, group in enumerate(groups):
        if "params" not in group:
            raise ValueError(
                f"{what} must have 'params' in every group, but group {g} has only "
                f"{[*group]}."
            )
        params = group["params"]
        if not isinstance(params, list | tuple) or not all(
            isinstance(i, int | str) for i in params
        ):
            raise ValueError(
                f"{what} must have a list of numbers or names as the 'params' of group "
                f"{g}, but it was {params!r}."
            )
    return [dict(group) for group in groups]


def _split_flattened(what: str, state_dict: StateDict) -> Parts:
    """Split torch.distributed.checkpoint's form, which has settings by name too."""
    found: dict[str, dict[Id, NewStateDict]] = {"state": {}, "param_groups": {}}
    for path, value in state_dict.items():
        prefix, name, key = _split_path(str(path))
        if prefix not in found:
            raise ValueError(
                f"{what} must be flat with keys like 'state.weight.square_avg' and "
                f"'param_groups.weight.lr', but it has the key {path!r}."
            )
        found[prefix].setdefault(name, {})[key] = value
    groups: dict[str, Settings] = {}
    for name, unread in found["param_groups"].items():
        settings = dict(zip(unread, read_each([*unread.values()]), strict=True))
        group = groups.setdefault(repr(sorted(settings.items())), settings)
        group.setdefault("params", []).append(name)
    return Parts(found["state"], [*groups.values()])


def _split_path(path: str) -> tuple[str, str, str]:
    """Split a flat key into a prefix, a parameter (with dots) and the last part."""
    prefix, _, rest = path.partition(".")
    name, _, key = rest.rpartition(".")
    return prefix, name, key


def _find(tree: object, is_one: Callable[[object], bool]) -> Iterator[tuple[str, Any]]:
    """Yield the wanted parts of a nested checkpoint, each with its place.

    A part that is in several places is yielded once.
    """
    seen: set[int] = set()
    todo: list[tuple[str, object]] = [("", tree)]
    while todo:
        where, part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if is_one(part):
            yield where or "all of it", part
        elif isinstance(part, Mapping) and not _is_state_dict(part):
            children = [(f"{where}[{key!r}]", x) for key, x in part.items()]
            todo += reversed([x for x in children if isinstance(x[1], _CONTAINERS)])
        elif isinstance(part, list | tuple):
            children = [(f"{where}[{i}]", x) for i, x in enumerate(part)]
            todo += reversed([x for x in children if isinstance(x[1], _CONTAINERS)])


_CONTAINERS = (Mapping, list, tuple)


def find_models(
    checkpoint: object, *, ema: bool
) -> dict[str, dict[str, npt.ArrayLike]]:
    """Return the dictionaries of tensors in a checkpoint, by their places."""
    return {
        where: _clean_names(tensors)
        for where, tensors in _find(checkpoint, _is_of_tensors)
        if bool(_AVERAGED.search(where.lower())) == ema
    }


def _clean_names(tensors: Mapping[str, npt.ArrayLike]) -> dict[str, npt.ArrayLike]:
    # torch's AveragedModel stores the count of its updates among the weights.
    kept = {name: x for name, x in tensors.items() if name != "n_averaged"}
    return dict(zip(strip_wrapper_prefixes(kept), kept.values(), strict=True))


def _is_state_dict(tree: object) -> bool:
    return isinstance(tree, Mapping) and any(
        key == "param_groups" or str(key).startswith("param_groups.") for key in tree
    )


def _is_scheduler(tree: object) -> bool:
    """Whether it is a scheduler's state_dict; ChainedScheduler has no 'last_epoch'."""
    return isinstance(tree, Mapping) and (
        "_schedulers" in tree
        or ("last_epoch" in tree and ("_last_lr" in tree or "base_lrs" in tree))
    )


def _is_of_tensors(tree: object) -> bool:
    return (
        isinstance(tree, Mapping)
        and bool(tree)
        and all(
            isinstance(key, str)
            and isinstance(value, np.ndarray | StoredArray | Tensor)
            for key, value in tree.items()
        )
    )


def _memory_of(weight: npt.ArrayLike) -> object:
    """Return a key that two weights share if they share their memory."""
    if isinstance(weight, StoredArray):
        return weight.layout.identify(), weight.shape
    array = to_numpy_exactly(weight)
    return array.__array_interface__["data"], array.shape
