"""The weights in a file of Keras.

In a ``.keras`` and a ``.weights.h5``, groups are called after classes and attributes,
and hold their variables by number, as ``layers/dense_1/vars/0``. The older ``.h5`` has
its variables by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
                # Keras 3.0 has no more than "kernel".
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
    groups = list(_walk_layers(file.root, file.config))
    names_of: dict[str, list[str]] = {}
    for name in names:
        names_of.setdefault(name.rpartition("/")[0], []).append(name)
    found: dict[str, StoredArray] = {}
    used: list[str] = []
    for owner, of_owner in names_of.items():
        group = _find_closest(owner.split("/"), groups)
        is_new = group is not None and group.path not in used
        arrays = group.numbered_arrays() if group is not None and is_new else []
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


def _walk_layers(
    group: Group, config: Config, outer: Sequence[str] = ()
) -> Iterator[tuple[list[str], Group]]:
    """Yield every group with variables, with the names of its layer and the outer ones.

    Keras 3 has a layer's name beside its variables. Before, the groups are only called
    after the classes, and the model's configuration says which layer is which.
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
                yield from _walk_layers(inner, members.get(member, {}), names)
        elif key not in ("vars", "optimizer", "metrics"):
            yield from _walk_layers(child, {}, names)


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
    """Return the group of a layer, whether or not its name has the outer models'."""

    def is_within(some: Sequence[str], others: Sequence[str]) -> bool:
        rest = iter(others)
        return all(name in rest for name in some)

    fitting = [
        (abs(len(names) - len(owner)), group)
        for names, group in groups
        if is_within(owner, names)
        or is_within(names, owner)
        or (len(names) > 1 and is_within(names[1:], owner))
    ]
    least = min((distance for distance, _ in fitting), default=0)
    nearest = [group for distance, group in fitting if distance == least]
    return nearest[0] if len(nearest) == 1 else None
