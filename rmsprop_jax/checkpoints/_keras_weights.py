"""The weights in a file of Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop_jax.checkpoints._keras_files import (
    Group,
    array,
    layers,
    strings,
    variables,
)


def named_weights(file: Group) -> dict[str, np.ndarray]:
    """Of the older ``.h5``."""
    root = file.get("model_weights", file)
    found: dict[str, np.ndarray] = {}
    for layer in (*strings(root, "layer_names"), "top_level_model_weights"):
        if layer in root:
            for name in strings(root[layer], "weight_names"):
                # Keras 3.0 has no more than "kernel".
                path = name if "/" in name else f"{layer}/{name}"
                found[path.removesuffix(":0")] = array(root[layer], name)
    return found


def numbered_weights(
    what: str, file: Group, config: Mapping[str, Any], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Each layer's variables are in the order of the names."""
    groups = list(layers(file, config))
    by_owner: dict[str, list[str]] = {}
    for name in names:
        by_owner.setdefault(name.rpartition("/")[0], []).append(name)
    found: dict[str, np.ndarray] = {}
    used = []
    for owner, of_owner in by_owner.items():
        group = _closest(owner.split("/"), groups)
        arrays = [] if group is None or group in used else variables(group)
        if len(arrays) != len(of_owner):
            raise ValueError(
                f"names must be those of all of the model's weights, [v.path for v in "
                f"model.weights], but for {of_owner}"
                + (
                    f" {what} has {len(arrays)} in {group.name}."
                    if group is not None
                    else f" {what} does not say which layer it is. A .h5 has all names."
                )
            )
        used.append(group)
        found |= dict(zip(of_owner, arrays, strict=True))
    return {name: found[name] for name in names}


def _closest(
    owner: list[str], groups: Sequence[tuple[list[str], Group]]
) -> Group | None:
    """The group of a layer, with or without the names of the models around it."""

    def within(some: Sequence[str], others: Sequence[str]) -> bool:
        rest = iter(others)
        return all(name in rest for name in some)

    fitting = [
        (abs(len(names) - len(owner)), group)
        for names, group in groups
        if within(owner, names)
        or within(names, owner)
        or (len(names) > 1 and within(names[1:], owner))
    ]
    least = min((far for far, _ in fitting), default=0)
    nearest = [group for far, group in fitting if far == least]
    return nearest[0] if len(nearest) == 1 else None
