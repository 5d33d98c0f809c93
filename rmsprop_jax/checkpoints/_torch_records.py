"""A parameter of a state_dict of torch's form in our terms, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._arrays import as_array, as_float, is_complex, of_kind
from rmsprop_jax.checkpoints._records import Record
from rmsprop_jax.checkpoints._torch_format import Parameter, Saved
from rmsprop_jax.checkpoints._torch_kinds import KEYS, STEP, keeps
from rmsprop_jax.checkpoints._torch_layout import Settings

_OF_SEVERAL_GROUPS = (
    "(With several groups, put the names of each into it as 'param_names' first.)"
)


def record_of(saved: Saved, parameter: Parameter) -> Record:
    """The parameter in our terms: as it begins, before its first gradient."""
    settings = saved.groups[parameter.group]
    if parameter.buffers:
        moments = {f: as_array(parameter.buffers[KEYS[f]]) for f in keeps(settings)}
        steps = int(as_float(parameter.buffers[STEP]))
        return Record(parameter.name, parameter.group, steps, **moments)
    if parameter.weight is None:
        raise ValueError(
            "names must be a dictionary from names to weights, such as "
            f"dict(model.named_parameters()), as parameter {parameter.name!r} never "
            "had a gradient: torch keeps no state of it, so only its weight knows its "
            f"shape. {_OF_SEVERAL_GROUPS}"
        )
    nu = np.full_like(as_array(parameter.weight), saved.kind.start)
    return Record(parameter.name, parameter.group, 0, nu)


def buffers_of(
    saved: Saved, parameter: Parameter, record: Record, since: int
) -> dict[str, npt.ArrayLike]:
    """The inverse: torch's buffers `since` steps later, of the kinds it already has.

    Buffers that its settings no longer use stay as they are.
    """
    arrays = {field: getattr(record, field) for field in KEYS}
    near = (p.buffers[STEP] for p in (parameter, *saved.parameters) if p.buffers)
    before = as_float(parameter.buffers[STEP]) if parameter.buffers else 0
    made = {STEP: of_kind(next(near, 0.0), max(before + since, 0))}
    for field, array in arrays.items():
        if array is not None:
            like = parameter.buffers.get(KEYS[field])
            like = _neighbour(saved, parameter, array) if like is None else like
            made[KEYS[field]] = of_kind(like, array)
    return {**parameter.buffers, **made}


def check_fits(parameter: Parameter, settings: Settings, record: Record) -> None:
    """Raises where the state has not the buffers, or the shapes, that like has."""
    kept = keeps(settings)
    for field, key in KEYS.items():
        array = getattr(record, field)
        if (field in kept) != (array is not None):
            there, here = ("has a", "has no") if field in kept else ("has no", "has a")
            raise ValueError(
                "like must be of an optimizer with the settings that the state was "
                f"made with, but for {parameter.name!r} like {there} {key!r}, and the "
                f"state {here} {field}: look at momentum and centered of group "
                f"{parameter.group}."
            )
    known = parameter.weight
    if known is None:
        known = parameter.buffers.get(KEYS["nu"], record.nu)
    shape = tuple(np.shape(known))
    for field, key in KEYS.items():
        array = getattr(record, field)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"from_params must make the shapes that like has, but it made "
                f"{key!r} of {parameter.name!r} {array.shape} instead of {shape}."
            )


def _neighbour(saved: Saved, parameter: Parameter, array: np.ndarray) -> npt.ArrayLike:
    """What the buffers of a parameter without any should be like."""
    near = sorted(saved.parameters, key=lambda p: p.group != parameter.group)
    for like in (parameter.weight, *(p.buffers.get(KEYS["nu"]) for p in near)):
        if like is not None and is_complex(like) == is_complex(array):
            return like
    raise ValueError(
        "names must be a dictionary from names to weights, such as "
        f"dict(model.named_parameters()), as like has no state that shows of which "
        f"kind that of parameter {parameter.name!r} should be. {_OF_SEVERAL_GROUPS}"
    )
