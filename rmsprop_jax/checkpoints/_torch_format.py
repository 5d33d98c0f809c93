"""The parameters and groups of a state_dict of torch's form, or a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._arrays import as_float
from rmsprop_jax.checkpoints._torch_kinds import KEYS, STEP, Kind, keeps, kind_of
from rmsprop_jax.checkpoints._torch_layout import (
    Buffers,
    Id,
    Settings,
    StateDict,
    part_of,
    plain,
)

# The names of several groups' parameters in the optimizer's order, by identity.
_LINE = (
    "[name_of[p] for group in optimizer.param_groups for p in group['params']], where "
    "name_of = {p: name for name, p in model.named_parameters()}."
)

Names: TypeAlias = Iterable[str] | Mapping[str, npt.ArrayLike]


class Parameter(NamedTuple):
    """One parameter of the optimizer.

    Attributes:
        id: What the groups' ``params`` and the ``state`` call it.
        name: Its name in the model.
        group: The index of its group.
        buffers: What torch keeps of it: nothing before its first gradient.
        weight: The weight itself where it is known, or None.
    """

    id: Id
    name: str
    group: int
    buffers: Buffers
    weight: npt.ArrayLike | None


class Saved(NamedTuple):
    """A state_dict, whichever form it has.

    Attributes:
        kind: The optimizer that made it.
        parameters: In the optimizer's order.
        groups: The settings of each group, with its ``params``.
    """

    kind: Kind
    parameters: list[Parameter]
    groups: list[Settings]


def steps(saved: Saved) -> int:
    """The steps of the optimizer: the most of any parameter, as some join late."""
    states = (p.buffers for p in saved.parameters if p.buffers)
    return max((int(as_float(buffers[STEP])) for buffers in states), default=0)


def read(
    wanted: Kind,
    what: str,
    state_dict: StateDict,
    names: Names | None,
    weights: Mapping[str, npt.ArrayLike],
) -> Saved:
    """The parameters and groups of a state_dict, `what` in the errors.

    Args:
        wanted: The optimizer that must have made it.
        what: What the user calls the state_dict.
        state_dict: The optimizer's part of a checkpoint.
        names: What the user gave as such.
        weights: Those that lie beside it in the checkpoint, or none.
    """
    state, groups = part = part_of(what, state_dict)
    ids = [i for group in groups for i in group["params"]]
    known = set(ids)
    odd = [i for i in ids if ids.count(i) > 1] if len(known) < len(ids) else []
    odd += [i for i in state if i not in known]
    if odd:
        raise ValueError(
            f"{what} must have each parameter in one group, but parameter {odd[0]!r} "
            f"is in {ids.count(odd[0])}."
        )
    if isinstance(names, Mapping):
        weights = dict(zip(plain(names), names.values(), strict=True))
    found = _names(what, groups, ids, names)
    for i, name in zip(ids, found or ids, strict=True):
        _check_keys(what, name, state.get(i, {}), wanted)
    kind = kind_of(what, part, wanted)
    if found is None:
        raise ValueError(
            f"names must be given, as {what} holds no 'param_names': the names of the "
            f"optimizer's {len(ids)} parameters in its order, such as "
            + (_LINE if _nonempty(groups) > 1 else "dict(model.named_parameters()).")
        )
    group_of = {i: g for g, group in enumerate(groups) for i in group["params"]}
    parameters = [
        Parameter(i, name, group_of[i], state.get(i, {}), weights.get(name))
        for i, name in zip(ids, found, strict=True)
    ]
    for parameter in parameters:
        if parameter.buffers:
            settings = groups[parameter.group]
            _check_buffers(what, parameter, keeps(settings), kind)
    return Saved(kind, parameters, groups)


def _names(
    what: str, groups: list[Settings], ids: list[Id], names: Names | None
) -> list[str] | None:
    """The parameters' names in the optimizer's order; None where nobody knows them."""
    own = None
    if groups and all(group.get("param_names") is not None for group in groups):
        own = [name for group in groups for name in group["param_names"]]
    elif ids and all(isinstance(i, str) for i in ids):
        own = [str(i) for i in ids]  # as torch.distributed.checkpoint saves it
    own = own and plain(own)
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
    given = plain(given)
    if own is None and isinstance(names, Mapping) and _nonempty(groups) > 1:
        raise ValueError(
            f"names must be a list in the optimizer's order, as {what} has "
            f"{len(groups)} groups and no 'param_names': a model's dictionary has "
            f"another order, in which parameters would get each other's state. Give "
            + _LINE
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


def _nonempty(groups: list[Settings]) -> int:
    """How many groups have parameters."""
    return sum(bool(group["params"]) for group in groups)


def _check_keys(what: str, name: str | Id, buffers: Buffers, wanted: Kind) -> None:
    """Raises where another optimizer made the buffers."""
    for key in buffers:
        if key not in (STEP, *KEYS.values()):
            raise ValueError(
                f"{what} must be of {wanted.optimizer}, but parameter {name!r} "
                f"holds {key!r}, where RMSprop keeps only "
                f"{', '.join((STEP, *KEYS.values()))}. Another optimizer's state "
                "can't be carried over: begin with rmsprop(...).init(params)."
            )


def _check_buffers(what: str, parameter: Parameter, kept: set[str], kind: Kind) -> None:
    """Raises where one is missing, or their shapes differ."""
    shape, owner = None, ""
    if parameter.weight is not None:
        shape, owner = tuple(np.shape(parameter.weight)), "its weight"
    for field, key in {"count": STEP, **KEYS}.items():
        if key not in parameter.buffers:
            if field in {"count", *kept}:
                raise ValueError(
                    f"{what}: parameter {parameter.name!r} has no {key!r}, which "
                    f"{kind.optimizer} keeps with the settings of its group "
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
