"""Find the weights in a file of Keras.

In a ``.keras`` and a ``.weights.h5``, groups are named after classes and attributes,
and hold their variables by number, as ``layers/dense_1/vars/0``. The older ``.h5``
holds its variables by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from rmsprop_jax.checkpoints._convert.arrays import to_numpy_exactly
from rmsprop_jax.checkpoints._readers.keras_h5 import (
    Config,
    Group,
    KerasFile,
    get_config,
)
from rmsprop_jax.checkpoints._readers.source import StoredArray

_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the latter to Keras 2.13
_TOP_LEVEL = "top_level_model_weights"


def has_names(root: Group) -> bool:
    """Whether a file has its variables by name, as a ``.h5`` does."""
    return "model_weights" in root.groups or "layer_names" in root.lists


def find_named_weights(root: Group) -> dict[str, StoredArray]:
    """Return the weights of an ``.h5``, by their names."""
    root = root.groups.get("model_weights", root)
    found: dict[str, StoredArray] = {}
    for layer in (*root.lists.get("layer_names", []), _TOP_LEVEL):
        if layer in root.groups:
            group = root.groups[layer]
            for name in group.lists.get("weight_names", []):
                # Keras 3.0 stores only "kernel".
                path = name if "/" in name else f"{layer}/{name}"
                found[path.removesuffix(":0")] = group.array(name)
    return found


def list_names(root: Group) -> list[str]:
    """Return the names of the weights of an ``.h5``."""
    return [*find_named_weights(root)]


def find_numbered_weights(
    what: str, file: KerasFile, names: Sequence[str]
) -> dict[str, StoredArray]:
    """Return the weights of a file without names, by the names that the user gave.

    The variables of each layer are in the order of the names.
    """
    groups = list(walk_layers(file.root, file.config))
    found: dict[str, StoredArray] = {}
    used: list[str] = []
    for owner, of_owner in _group_by_owner(names).items():
        group = _find_closest(owner.split("/"), groups)
        is_new = group is not None and group.path not in used
        arrays = group.numbered_arrays() if group is not None and is_new else []
        if group is not None and len(arrays) > len(of_owner):
            arrays = _drop_shared(arrays, group, groups)
        if len(arrays) != len(of_owner):
            raise ValueError(
                f"names must be those of all of the model's weights, [v.path for v in "
                f"model.weights], but for {of_owner}"
                + (
                    f" {what} has {len(arrays)} in {group.path}."
                    if group is not None
                    else f" {what} does not say which layer it is. A .h5 has all names."
                )
            )
        if group is not None:
            used.append(group.path)
        found |= dict(zip(of_owner, arrays, strict=True))
    return {name: found[name] for name in names}


def check_shapes(
    what: str, file: KerasFile, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Raise if a trainable variable has another shape than in its layer.

    The optimizer's variables have no names, so names in a wrong order can only be
    noticed by comparing shapes with the weights in the file. A layer may also have
    variables that are not trained or belong to another layer, so the shapes only need
    to be among its shapes, in their order. A layer is skipped if it can't be told from
    the others, or if it saves fewer variables than it trains, as with LoRA.

    Args:
        what: How errors call the file.
        file: The file.
        names: The names of the trainable variables that the user gave.
        shapes: The shapes of their moments.
    """
    groups = list(walk_layers(file.root, file.config))
    shape_of = dict(zip(names, shapes, strict=True))
    for owner, of_owner in _group_by_owner(names).items():
        group = _find_closest(owner.split("/"), groups)
        if group is None:
            continue
        in_layer = [array.shape for array in _list_arrays(group)]
        if len(in_layer) < len(of_owner):
            continue
        rest = iter(in_layer)
        for name in of_owner:
            if shape_of[name] not in rest:
                raise ValueError(
                    "names must be in the order of the optimizer's variables, [v.path "
                    f"for v in model.trainable_variables], but in the given order "
                    f"{name!r} would have shape {shape_of[name]}, and its layer in "
                    f"{what} has variables of shapes {in_layer}."
                )


def _group_by_owner(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of each layer's variables, by the name of the layer."""
    names_of: dict[str, list[str]] = {}
    for name in names:
        names_of.setdefault(name.rpartition("/")[0], []).append(name)
    return names_of


def _list_arrays(group: Group) -> list[StoredArray]:
    """Return the numbered variables of a layer; none if the layer names them."""
    names = group.groups["vars"].arrays
    return group.numbered_arrays() if all(map(str.isdecimal, names)) else []


def _drop_shared(
    arrays: Sequence[StoredArray],
    group: Group,
    groups: Sequence[tuple[list[str], Group]],
) -> list[StoredArray]:
    """Return the arrays of a layer without those that it shares with other layers.

    Keras writes a variable once for each layer that has it: a wrapper has the variables
    of the layer inside, and an output layer may have those of an embedding.
    """
    others = [x for _, g in groups if g.path != group.path for x in _list_arrays(g)]

    def is_shared(array: StoredArray) -> bool:
        value = to_numpy_exactly(array)
        return any(
            other.shape == array.shape
            and np.array_equal(to_numpy_exactly(other), value)
            for other in others
        )

    return [array for array in arrays if not is_shared(array)]


def walk_layers(
    group: Group, config: Config, outer: Sequence[str] = ()
) -> Iterator[tuple[list[str], Group]]:
    """Yield every group with variables, with the names of its layer and the outer ones.

    Keras 3 stores a layer's name with its variables. Earlier versions name groups only
    after classes, and the model's configuration says which layer is which.
    """
    own = group.groups.get("vars")
    known = get_config(config, "config")
    name = (own.texts.get("name") if own else None) or known.get("name")
    names = [*outer, name] if name and isinstance(name, str) else [*outer]
    if own is not None and own.arrays:
        yield names, group
    members = _name_groups(known.get("layers"))
    for key, child in group.groups.items():
        if key in _CONTAINERS:
            for member, inner in child.groups.items():
                yield from walk_layers(inner, members.get(member, {}), names)
        elif key not in ("vars", "optimizer", "metrics"):
            yield from walk_layers(child, {}, names)


def _name_groups(layers: object) -> dict[str, Config]:
    """Return the layers of a model by the names of their groups: dense, dense_1, …."""
    found: dict[str, Config] = {}
    counts: dict[str, int] = {}
    configs: list[object] = layers if isinstance(layers, list) else []
    for config in (config for config in configs if isinstance(config, dict)):
        words = r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])"
        name = str(config.get("class_name")).rpartition(">")[2]
        kind = re.sub(words, "_", name).lower()
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        found[f"{kind}_{number}" if number else kind] = config
    return found


def _find_closest(
    owner: list[str], groups: Sequence[tuple[list[str], Group]]
) -> Group | None:
    """Return the group of a layer, with or without outer models in its name."""

    def is_within(some: Sequence[str], others: Sequence[str]) -> bool:
        rest = iter(others)
        return all(name in rest for name in some)

    def count_unmatched(names: Sequence[str]) -> int | None:
        if is_within(owner, names) or is_within(names, owner):
            return abs(len(names) - len(owner))
        if len(names) > 1 and is_within(names[1:], owner):
            return len(owner) - len(names[1:]) + 1  # the model's own name
        return None

    counts = [(count_unmatched(names), group) for names, group in groups]
    least = min((count for count, _ in counts if count is not None), default=None)
    nearest = [group for count, group in counts if count is not None and count == least]
    return nearest[0] if len(nearest) == 1 else None
