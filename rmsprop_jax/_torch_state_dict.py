"""What ``torch.optim.RMSprop`` saves: read, checked, and refused in sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._torch_kinds import (
    is_complex,
    mean_square,
    number,
    of_kind,
    to_array,
    variance,
)

# What torch calls the fields of RMSPropState; the count is its "step".
KEYS = {"nu": "square_avg", "mu": "momentum_buffer", "grad_mean": "grad_avg"}
STEP = "step"
# Settings of other rules in dictionaries that else look the same; timm's RMSpropTF has
# the first two, whatever their values.
_TIMM = {"decoupled_decay", "lr_in_momentum"}
_FOREIGN = {"nesterov", "decoupled_weight_decay", "caution"}


class Parameter(NamedTuple):
    """One parameter of the optimizer: its buffers are empty before a gradient."""

    id: Any
    name: str
    group: int
    state: Mapping[str, Any]
    weight: Any  # the weight itself, where it was given, or None


class Checkpoint(NamedTuple):
    """A state_dict, whichever form it has."""

    parameters: list[Parameter]
    groups: list[dict[str, Any]]
    is_flat: bool

    def needs(self, field: str, group: int) -> bool:
        """Whether torch uses what we call `field` in this group."""
        settings = self.groups[group]
        if field == "mu":
            return number(settings.get("momentum", 0)) > 0
        return field == "nu" or bool(settings.get("centered", False))

    def steps(self) -> int:
        """The steps of the optimizer: the most of any parameter, as some join late."""
        states = (p.state for p in self.parameters if p.state)
        return max((int(number(state[STEP])) for state in states), default=0)


def read(what: str, state_dict: Any, names: Any) -> Checkpoint:
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
        for key in state.get(i, ()):
            if key not in (STEP, *KEYS.values()):
                raise ValueError(
                    f"{what} must be of torch.optim.RMSprop, but parameter {name!r} "
                    f"holds {key!r}, where RMSprop keeps only "
                    f"{', '.join((STEP, *KEYS.values()))}. Another optimizer's state "
                    "can't be carried over: begin with rmsprop(...).init(params)."
                )
    for g, group in enumerate(groups):
        missing = {"lr", "alpha", "eps", "weight_decay"} - set(group)
        foreign = _TIMM & set(group) or {k for k in _FOREIGN if group.get(k)}
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
    checkpoint = Checkpoint(parameters, groups, is_flat)
    for parameter in parameters:
        _check_buffers(what, checkpoint, parameter)
    return checkpoint


def _parts(what: str, state_dict: Any) -> tuple[dict, list[dict[str, Any]], bool]:
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
    state: dict[Any, dict[str, Any]] = {}
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


def _names(what: str, groups: list, ids: list, names: Any) -> list[str] | None:
    """The parameters' names in the optimizer's order; None where nobody knows them."""
    own = None
    if groups and all(group.get("param_names") is not None for group in groups):
        own = [name for group in groups for name in group["param_names"]]
    elif ids and all(isinstance(i, str) for i in ids):
        own = ids  # as torch.distributed.checkpoint saves it
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


def _check_buffers(what: str, checkpoint: Checkpoint, parameter: Parameter) -> None:
    if not parameter.state:
        return
    shape, owner = None, ""
    if parameter.weight is not None:
        shape, owner = tuple(np.shape(parameter.weight)), "the weight in names"
    for field, key in {"count": STEP, **KEYS}.items():
        if key not in parameter.state:
            if field == "count" or checkpoint.needs(field, parameter.group):
                raise ValueError(
                    f"{what}: parameter {parameter.name!r} has no {key!r}, which "
                    f"torch.optim.RMSprop keeps with the settings of its group "
                    f"{parameter.group}. It holds {sorted(parameter.state)}."
                )
            continue
        if key == STEP:
            continue
        its_shape = tuple(np.shape(parameter.state[key]))
        if shape is None:
            shape, owner = its_shape, f"its {key!r}"
        if its_shape != shape:
            raise ValueError(
                f"{what}: {key!r} of parameter {parameter.name!r} must have shape "
                f"{shape}, as {owner} has, but it had {its_shape}. Either the names "
                "are in another order than the optimizer's, or the checkpoint is "
                "damaged."
            )


def moments(checkpoint: Checkpoint, parameter: Parameter) -> dict[str, Any]:
    """The buffers under our names, as we keep them; those torch has not are zeros."""
    if parameter.state:
        arrays = {
            field: to_array(parameter.state[key])
            for field, key in KEYS.items()
            if checkpoint.needs(field, parameter.group)
        }
        if "grad_mean" in arrays:
            arrays["nu"] = variance(arrays["nu"], arrays["grad_mean"])
        return dict.fromkeys(KEYS, np.zeros_like(arrays["nu"])) | arrays
    if parameter.weight is None:
        raise ValueError(
            "names must be a dictionary from names to weights, such as "
            f"dict(model.named_parameters()), as parameter {parameter.name!r} never "
            "had a gradient: torch keeps no state of it, so only its weight knows its "
            "shape."
        )
    return dict.fromkeys(KEYS, np.zeros_like(to_array(parameter.weight)))


def state_of(
    checkpoint: Checkpoint, parameter: Parameter, arrays: dict[str, Any], since: int
) -> dict[str, Any]:
    """The inverse: torch's state, `since` steps later, of the kinds it already has."""
    if "grad_mean" in arrays:
        arrays = arrays | {"nu": mean_square(arrays["nu"], arrays["grad_mean"])}
    steps = (q.state[STEP] for q in (parameter, *checkpoint.parameters) if q.state)
    before = number(parameter.state[STEP]) if parameter.state else 0
    made = {STEP: of_kind(next(steps, 0.0), max(before + since, 0))}
    for field, array in arrays.items():
        like = parameter.state.get(KEYS[field])
        like = _neighbour(checkpoint, parameter, array) if like is None else like
        made[KEYS[field]] = of_kind(like, array)
    return {**parameter.state, **made}


def _neighbour(checkpoint: Checkpoint, parameter: Parameter, array: Any) -> Any:
    """What the buffers of a parameter without any should be like."""
    near = sorted(checkpoint.parameters, key=lambda p: p.group != parameter.group)
    for like in (parameter.weight, *(p.state.get(KEYS["nu"]) for p in near)):
        if like is not None and is_complex(like) == is_complex(array):
            return like
    raise ValueError(
        "names must be a dictionary from names to weights, such as "
        f"dict(model.named_parameters()), as like has no state that shows of which "
        f"kind that of parameter {parameter.name!r} should be."
    )


def flattened(state: dict[Any, dict[str, Any]], groups: Any) -> dict[str, Any]:
    """The flat form: one key for each buffer, and the groups as they came."""
    flat = {f"state.{i}.{k}": v for i, of in state.items() for k, v in of.items()}
    return {**flat, "param_groups": groups}


def names_of(parameters: Sequence[Parameter]) -> str:
    """For errors."""
    return ", ".join(repr(parameter.name) for parameter in parameters)
