"""Where a checkpoint of torch's form has its parts: the optimizer's, weights, names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._arrays import Tensor, as_exact

# Dictionaries of dictionaries of tensors, lists and numbers, as torch itself types it.
StateDict: TypeAlias = Mapping[str, Any]
Settings: TypeAlias = dict[str, Any]
# torch's own are numbers. torch.distributed.checkpoint puts the names there.
Id: TypeAlias = int | str
Buffers: TypeAlias = Mapping[str, npt.ArrayLike]


# A part with this word in its name has moving averages.
_AVERAGED = re.compile(r"(?<![a-z])ema(?![a-z])")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Part(NamedTuple):
    """The optimizer's part of a checkpoint, whichever form it has.

    Attributes:
        state: The buffers of each parameter, by its `Id`.
        groups: The settings of each group, with its ``params``.
    """

    state: Mapping[Any, Buffers]
    groups: list[Settings]


def state_dict_in(what: str, checkpoint: Any) -> StateDict:
    """The optimizer's state_dict of a whole checkpoint, where it holds only one."""
    found = dict(_parts_of(checkpoint, _is_state_dict))
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(
            f"{what} must hold one optimizer's state_dict, but it holds "
            f"{', '.join(found)}. Give one of them; read(path) reads a file."
        )
    given = (
        f"a dictionary of {[*checkpoint][:8]}"
        if isinstance(checkpoint, Mapping)
        else repr(type(checkpoint))
    )
    raise ValueError(
        f"{what} must be the state_dict() of an RMSprop of torch, which has "
        f"'param_groups', or a checkpoint that has one in it, but it was {given}. Of a "
        "safetensors file, add the 'param_groups' of its metadata."
    )


def weights_in(what: str, checkpoint: Any, *, ema: bool) -> dict[str, np.ndarray]:
    """The weights of a whole checkpoint, by name, or their moving averages."""
    found = _models_in(checkpoint, ema=ema)
    if len(found) != 1:
        raise ValueError(
            f"{what} must hold the {'averaged ' * ema}weights of one model, but it "
            f"holds {', '.join(found) or 'none'}. Give the part that is meant; "
            "read(path) reads a file."
        )
    return next(iter(found.values()))


def weights_beside(checkpoint: Any) -> dict[str, np.ndarray]:
    """Those of the model in a whole checkpoint, if it holds one."""
    found = _models_in(checkpoint, ema=False)
    return next(iter(found.values())) if len(found) == 1 else {}


def trained(weights: Mapping[str, np.ndarray]) -> list[str]:
    """The names of those that an optimizer may have: each once, and no statistics."""
    names, memories = [], set()
    for name, array in weights.items():
        memory = array.__array_interface__["data"], array.shape
        if not name.endswith(_STATISTICS) and memory not in memories:
            names.append(name)
        memories |= {memory} if array.size else set()
    return names


def plain(names: Iterable[str]) -> list[str]:
    """The names without what DistributedDataParallel and torch.compile add."""
    names = [name.replace("_orig_mod.", "") for name in names]
    if all(name.startswith("module.") for name in names):
        return [name.removeprefix("module.") for name in names]
    return names


def part_of(what: str, state_dict: StateDict) -> Part:
    """The state by parameter, and the groups."""
    if "param_groups" not in state_dict:
        return _by_name(what, state_dict)
    groups = state_dict["param_groups"]
    if isinstance(groups, str):
        groups = json.loads(groups)
    groups = [dict(group) for group in groups]
    for g, group in enumerate(groups):
        if "params" not in group:
            raise ValueError(
                f"{what} must have the 'params' of every group, but group {g} has only "
                f"{[*group]}."
            )
    if "state" in state_dict:
        return Part(dict(state_dict["state"]), groups)
    spelled = {str(i): i for group in groups for i in group["params"]}
    state: dict[Id, dict[str, npt.ArrayLike]] = {}
    for path, value in state_dict.items():
        if path == "param_groups":
            continue
        prefix, i, key = _split(path)
        if prefix != "state" or i not in spelled:
            raise ValueError(
                f"{what} must be flat with keys like 'state.0.square_avg', where 0 is "
                f"among the 'params' of a group, but it has the key {path!r}."
            )
        state.setdefault(spelled[i], {})[key] = value
    return Part(state, groups)


def put_back(
    state_dict: StateDict, state: Mapping[Id, Buffers], groups: list[Settings]
) -> dict[str, Any]:
    """A state_dict of the same form with another state."""
    if "state" in state_dict:
        return {**state_dict, "state": state, "param_groups": groups}
    others = {k: v for k, v in state_dict.items() if not k.startswith("state.")}
    return others | {
        f"state.{i}.{key}": value
        for i, buffers in state.items()
        for key, value in buffers.items()
    }


def _by_name(what: str, state_dict: StateDict) -> Part:
    """The flat form of torch.distributed.checkpoint: settings by parameter too."""
    found: dict[str, dict[str, dict[str, Any]]] = {"state": {}, "param_groups": {}}
    for path, value in state_dict.items():
        prefix, name, key = _split(path)
        if prefix not in found:
            raise ValueError(
                f"{what} must be flat with keys like 'state.weight.square_avg' and "
                f"'param_groups.weight.lr', but it has the key {path!r}."
            )
        found[prefix].setdefault(name, {})[key] = value
    groups: list[Settings] = []
    for name, settings in found["param_groups"].items():
        for group in groups:
            if {k: v for k, v in group.items() if k != "params"} == settings:
                group["params"].append(name)
                break
        else:
            groups.append({**settings, "params": [name]})
    return Part(found["state"], groups)


def _split(path: str) -> tuple[str, str, str]:
    """A flat key's prefix, its parameter (which may have dots) and its last part."""
    prefix, _, rest = path.partition(".")
    name, _, key = rest.rpartition(".")
    return prefix, name, key


def _parts_of(
    tree: Any, is_one: Callable[[Any], bool], where: str = ""
) -> Iterator[tuple[str, Any]]:
    """The parts of a nested checkpoint that are of a kind, each by its place."""
    if is_one(tree):
        yield where or "all of it", tree
    elif isinstance(tree, Mapping) and not _is_state_dict(tree):
        for key, value in tree.items():
            yield from _parts_of(value, is_one, f"{where}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _parts_of(value, is_one, f"{where}[{i}]")


def _models_in(checkpoint: Any, *, ema: bool) -> dict[str, dict[str, np.ndarray]]:
    """The dictionaries of tensors in a checkpoint, by their places."""
    return {
        where: dict(zip(plain(tensors), map(as_exact, tensors.values()), strict=True))
        for where, tensors in _parts_of(checkpoint, _is_of_tensors)
        if bool(_AVERAGED.search(where.lower())) == ema
    }


def _is_state_dict(tree: Any) -> bool:
    return isinstance(tree, Mapping) and any(
        key == "param_groups" or str(key).startswith("param_groups.") for key in tree
    )


def _is_of_tensors(tree: Any) -> bool:
    tensors = isinstance(tree, Mapping) and [
        isinstance(key, str) and isinstance(value, np.ndarray | Tensor)
        for key, value in tree.items()
    ]
    return bool(tensors) and all(tensors)
