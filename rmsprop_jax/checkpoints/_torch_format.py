"""What ``torch.optim.RMSprop`` saves: read, checked, and refused in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._arrays import as_float

# What torch calls the fields of RMSPropState; the count is its "step".
KEYS = {"nu": "square_avg", "mu": "momentum_buffer", "grad_mean": "grad_avg"}
STEP = "step"
# Settings of other rules in dictionaries that else look the same. timm's RMSpropTF has
# the first two, whatever their values.
_TIMM = {"decoupled_decay", "lr_in_momentum"}
_FOREIGN = {"nesterov", "decoupled_weight_decay", "caution"}

# Dictionaries of dictionaries of tensors, lists and numbers, as torch itself types it.
StateDict: TypeAlias = Mapping[str, Any]
Settings: TypeAlias = dict[str, Any]
# torch's own are numbers. torch.distributed.checkpoint puts the names there.
Id: TypeAlias = int | str
Buffers: TypeAlias = Mapping[str, npt.ArrayLike]
Names: TypeAlias = Iterable[str] | Mapping[str, npt.ArrayLike]


class Parameter(NamedTuple):
    """One parameter of the optimizer.

    Attributes:
        id: What the groups' ``params`` and the ``state`` call it.
        name: Its name in the model.
        group: The index of its group.
        buffers: What torch keeps of it: nothing before its first gradient.
        weight: The weight itself where the user gave it, or None.
    """

    id: Id
    name: str
    group: int
    buffers: Buffers
    weight: npt.ArrayLike | None


class Saved(NamedTuple):
    """A state_dict, whichever form it has.

    Attributes:
        parameters: In the optimizer's order.
        groups: The settings of each group, with its ``params``.
        is_flat: Whether it came with one key for each tensor, as in safetensors.
    """

    parameters: list[Parameter]
    groups: list[Settings]
    is_flat: bool


def keeps(settings: Settings) -> set[str]:
    """Which fields of RMSPropState torch keeps with these settings."""
    fields = {"nu"}
    if as_float(settings.get("momentum", 0)) > 0:
        fields.add("mu")
    if settings.get("centered", False):
        fields.add("grad_mean")
    return fields


def steps(saved: Saved) -> int:
    """The steps of the optimizer: the most of any parameter, as some join late."""
    states = (p.buffers for p in saved.parameters if p.buffers)
    return max((int(as_float(buffers[STEP])) for buffers in states), default=0)


def read(what: str, state_dict: StateDict, names: Names | None) -> Saved:
    """The parameters and groups of a state_dict, `what` in the errors."""
    state, groups, is_flat = _parts(what, state_dict)
    ids = [i for group in groups for i in group["params"]]
    known = set(ids)
    odd = [i for i in ids if ids.count(i) > 1] if len(known) < len(ids) else []
    odd += [i for i in state if i not in known]
    if odd:
        raise ValueError(
            f"{what} must have each parameter in one group, but parameter {odd[0]!r} "
            f"is in {ids.count(odd[0])}."
        )
    found = _names(what, groups, ids, names)
    for i, name in zip(ids, found or ids, strict=True):
        _check_keys(what, name, state.get(i, {}))
    for g, settings in enumerate(groups):
        _check_settings(what, g, settings)
    if found is None:
        raise ValueError(
            f"names must be given, as {what} holds no 'param_names': the names of the "
            f"optimizer's {len(ids)} parameters in its order, such as "
            "dict(model.named_parameters())."
        )
    weights = names if isinstance(names, Mapping) else {}
    group_of = {i: g for g, group in enumerate(groups) for i in group["params"]}
    parameters = [
        Parameter(i, name, group_of[i], state.get(i, {}), weights.get(name))
        for i, name in zip(ids, found, strict=True)
    ]
    for parameter in parameters:
        if parameter.buffers:
            _check_buffers(what, parameter, keeps(groups[parameter.group]))
    return Saved(parameters, groups, is_flat)


def flattened(state: Mapping[Id, Buffers], groups: object) -> dict[str, Any]:
    """The flat form: one key for each buffer, and the groups as they came."""
    flat = {f"state.{i}.{k}": v for i, of in state.items() for k, v in of.items()}
    return {**flat, "param_groups": groups}


def _parts(
    what: str, state_dict: StateDict
) -> tuple[Mapping[Id, Buffers], list[Settings], bool]:
    """The state by parameter, the groups, and whether they came flat."""
    if not isinstance(state_dict, Mapping) or "param_groups" not in state_dict:
        given = (
            f"a dictionary of {[*state_dict][:8]}"
            if isinstance(state_dict, Mapping)
            else repr(type(state_dict))
        )
        raise ValueError(
            f"{what} must be the state_dict() of torch.optim.RMSprop, which has "
            f"'param_groups', but it was {given}. Of the checkpoint of a whole run, "
            "give the optimizer's part; of a safetensors file, add the 'param_groups' "
            "of its metadata."
        )
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
        return dict(state_dict["state"]), groups, False
    spelled = {str(i): i for group in groups for i in group["params"]}
    state: dict[Id, dict[str, npt.ArrayLike]] = {}
    for path, value in state_dict.items():
        if path == "param_groups":
            continue
        prefix, _, rest = path.partition(".")
        i, _, key = rest.rpartition(".")
        if prefix != "state" or i not in spelled:
            raise ValueError(
                f"{what} must be flat with keys like 'state.0.square_avg', where 0 is "
                f"among the 'params' of a group, but it has the key {path!r}."
            )
        state.setdefault(spelled[i], {})[key] = value
    return state, groups, True


def _names(
    what: str, groups: list[Settings], ids: list[Id], names: Names | None
) -> list[str] | None:
    """The parameters' names in the optimizer's order; None where nobody knows them."""
    own = None
    if groups and all(group.get("param_names") is not None for group in groups):
        own = [name for group in groups for name in group["param_names"]]
    elif ids and all(isinstance(i, str) for i in ids):
        own = [str(i) for i in ids]  # as torch.distributed.checkpoint saves it
    if own is not None and len(own) != len(ids):
        raise ValueError(
            f"{what} has {len(own)} 'param_names' for {len(ids)} parameters. Give the "
            "right ones as names, and take the others out of its groups."
        )
    if names is None:
        return own
    given = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"names must be strings, or a dictionary from them to weights, but there "
            f"was a {type(given[0])}. Of model.named_parameters() make a dict."
        )
    if own is not None and isinstance(names, Mapping) and set(own) <= set(given):
        return own  # the dictionary is there for its weights, in any order
    if len(given) != len(ids) or len(set(given)) != len(given):
        raise ValueError(
            f"names must be the different names of the {len(ids)} parameters that "
            f"{what} has, in the optimizer's order, but it was {len(given)}, of which "
            f"{len(set(given))} are different: {given[:8]}"
            + (", …" if len(given) > 8 else "")
            + ". Leave out what the optimizer does not optimize."
        )
    for position, (name, own_name) in enumerate(zip(given, own or given, strict=True)):
        if name != own_name and name in (own or given):
            raise ValueError(
                f"names must be in the order of the 'param_names' in {what}, but at "
                f"{position} it has {name!r} where they have {own_name!r}."
            )
    return given


def _check_keys(what: str, name: str | Id, buffers: Buffers) -> None:
    """Raises where another optimizer made the buffers."""
    for key in buffers:
        if key not in (STEP, *KEYS.values()):
            raise ValueError(
                f"{what} must be of torch.optim.RMSprop, but parameter {name!r} "
                f"holds {key!r}, where RMSprop keeps only "
                f"{', '.join((STEP, *KEYS.values()))}. Another optimizer's state "
                "can't be carried over: begin with rmsprop(...).init(params)."
            )


def _check_settings(what: str, g: int, settings: Settings) -> None:
    """Raises where group `g` is of another optimizer."""
    missing = {"lr", "alpha", "eps", "weight_decay"} - set(settings)
    foreign = _TIMM & set(settings) or {k for k in _FOREIGN if settings.get(k)}
    if missing or foreign:
        raise ValueError(
            f"{what} must be of torch.optim.RMSprop, but its group {g} "
            + (
                f"has no {min(missing)!r}."
                if missing
                else f"has {min(foreign)!r}, as timm's RMSpropTF or another, which "
                "follows another rule."
            )
        )


def _check_buffers(what: str, parameter: Parameter, kept: set[str]) -> None:
    """Raises where one is missing, or their shapes differ."""
    shape, owner = None, ""
    if parameter.weight is not None:
        shape, owner = tuple(np.shape(parameter.weight)), "the weight in names"
    for field, key in {"count": STEP, **KEYS}.items():
        if key not in parameter.buffers:
            if field in {"count", *kept}:
                raise ValueError(
                    f"{what}: parameter {parameter.name!r} has no {key!r}, which "
                    f"torch.optim.RMSprop keeps with the settings of its group "
                    f"{parameter.group}. It holds {sorted(parameter.buffers)}."
                )
            continue
        if key == STEP:
            continue
        its_shape = tuple(np.shape(parameter.buffers[key]))
        if shape is None:
            shape, owner = its_shape, f"its {key!r}"
        if its_shape != shape:
            raise ValueError(
                f"{what}: {key!r} of parameter {parameter.name!r} must have shape "
                f"{shape}, as {owner} has, but it had {its_shape}. Either the names "
                "are in another order than the optimizer's, or the checkpoint is "
                "damaged."
            )
