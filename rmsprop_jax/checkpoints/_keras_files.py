"""Keras's files, read with h5py and without Keras. Nothing in them is run.

A ``.keras`` is a zip: ``config.json`` and ``model.weights.h5``. In that, and in a
``.weights.h5``, groups are called after classes and attributes, and hold their
variables by number, as ``layers/dense_1/vars/0``. The older ``.h5`` has variables by
their names, and the optimizer's settings in an attribute.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.checkpoints._files import File, check_is_of, damaged

# An h5py.Group. By h5py's own types, whatever is in it may be anything.
Group: TypeAlias = Any

_DAMAGES = (KeyError, OSError, RuntimeError, json.JSONDecodeError, zipfile.BadZipFile)
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the latter to Keras 2.13


@contextlib.contextmanager
def opened(path: File) -> Iterator[tuple[Group, Mapping[str, Any]]]:
    """The HDF5 part of a file, and what ``config.json`` says (else empty).

    Raises:
        ImportError: Where h5py is missing.
        ValueError: Where the file is damaged, or another framework's.
    """
    check_is_of(path, "keras")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Keras's files are read by h5py, which is missing: pip install h5py"
        ) from error
    try:
        if not zipfile.is_zipfile(path):
            with h5py.File(path) as file:
                yield file, {}
            return
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            with archive.open("model.weights.h5") as part, h5py.File(part) as file:
                yield file, config
    except _DAMAGES as error:
        raise damaged(path, error) from error


def is_numbered(file: Group) -> bool:
    """Whether it is Keras 3's kind of file, with variables by number."""
    return "model_weights" not in file and "layer_names" not in file.attrs


def array(group: Group, name: str) -> np.ndarray:
    """A variable. Links, by which a file can reach into others, are refused."""
    import h5py

    at = group
    for part in name.split("/"):
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            raise KeyError(f"{part!r} is not in {at.name}, or only a link")
        at = at[part]
    if at.external or at.is_virtual:
        raise KeyError(f"{at.name} is stored in another file")
    value = np.asarray(at)
    # HDF5 has no bfloat16: Keras writes its two bytes.
    return value.view(jnp.bfloat16) if value.dtype == np.dtype("V2") else value


def strings(group: Group, name: str) -> list[str]:
    """An attribute of strings; a long one is in several parts."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    found = [x for part in parts for x in np.asarray(group.attrs[part]).tolist()]
    return [x.decode() if isinstance(x, bytes) else x for x in found]


def variables(group: Group) -> list[np.ndarray]:
    """Those that a group holds by number."""
    return [array(group["vars"], str(i)) for i in range(len(group["vars"]))]


def layers(
    group: Group, config: Mapping[str, Any], outer: Sequence[str] = ()
) -> Iterator[tuple[list[str], Group]]:
    """Every group with variables, with the names of its layer and of those around it.

    Keras 3 keeps a layer's name beside its variables. Before, the groups are only
    called after the classes, and the model's config says which layer is which.
    """
    own = group.get("vars", {})
    known = config.get("config", {})
    name = getattr(own, "attrs", {}).get("name") or known.get("name")
    names = [*outer, name] if name else [*outer]
    if len(own):
        yield names, group
    members = _by_group(known.get("layers", []))
    for key, child in _groups(group):
        if key in _CONTAINERS:
            for member, inner in _groups(child):
                yield from layers(inner, members.get(member, {}), names)
        elif key not in ("vars", "optimizer", "metrics"):
            yield from layers(child, {}, names)


def _groups(group: Group) -> Iterator[tuple[str, Group]]:
    """The groups in a group, but for links."""
    import h5py

    for key in group:
        if isinstance(group.get(key, getlink=True), h5py.HardLink):
            child = group[key]
            if isinstance(child, h5py.Group):
                yield key, child


def _by_group(configs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The layers of a model by the names of their groups: dense, dense_1 and so on."""
    found: dict[str, Mapping[str, Any]] = {}
    often: dict[str, int] = {}
    for config in configs:
        words = r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])"
        kind = re.sub(words, "_", config["class_name"].rpartition(">")[2]).lower()
        number = often.get(kind, 0)
        often[kind] = number + 1
        found[f"{kind}_{number}" if number else kind] = config
    return found
