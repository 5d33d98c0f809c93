"""Folders of torch.distributed.checkpoint, with their ``.metadata`` changed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recorded import runs
from recorded.record_fsdp import FILE, RUNS
from support.continued import continued, far

from rmsprop_jax.checkpoints import from_torch, load_weights
from rmsprop_jax.checkpoints._readers.distributed import METADATA
from rmsprop_jax.checkpoints._readers.pickles import OpaqueValue, PickleMachine, Record
from rmsprop_jax.checkpoints._readers.source import Source


def extract(folder: Path) -> Path:
    """Writes the recorded folders into this one."""
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(folder)
    return folder


def _resume(folder: Path) -> tuple[Any, Any, Any]:
    tx, state = from_torch(folder)
    return tx, state, jax.tree.map(jnp.array, load_weights(folder))


def resume_all(folder: Path) -> dict[str, float]:
    """How far each run ends here from where it ended there; all in one program."""
    moved = {name: _resume(folder / name) for name in RUNS}
    steps = [dict.fromkeys(RUNS, g) for g in runs.gradients()[runs.BEFORE :]]
    ended, _ = continued(moved, steps)
    distances: dict[str, float] = {}
    for name, params in ended.items():
        with np.load(folder / f"{name}.npz") as file:
            assert json.loads(str(file["made_by"]))["torch"]
            expected = {n: file[n] for n in file if n != "made_by"}
        distances[name] = far(params, expected)
    return distances


class Metadata:
    """Stands for any of the plain classes, which the reader does not tell apart."""


Metadata.__module__ = "torch.distributed.checkpoint.metadata"


# Its methods have no types.
_BasePickler: Any = pickle._Pickler


class _Pickler(_BasePickler):
    """Writes names of classes that can't be imported here."""

    def reducer_override(self, value: Any) -> Any:
        is_record = isinstance(value, Record)
        return (Metadata, (), value.fields) if is_record else NotImplemented

    def save_global(self, value: Any, name: str | None = None) -> None:
        self.write(f"c{value.__module__}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    def save(self, value: Any, *args: Any) -> Any:
        if isinstance(value, np.dtype):
            return self.save_global(type(value.name, (), {"__module__": "torch"}))
        return super().save(
            None
            if isinstance(value, OpaqueValue) and not isinstance(value, Record)
            else value,
            *args,
        )


def load(folder: Path) -> Any:
    """The metadata of a folder, as records."""
    source = Source(folder / METADATA)
    return PickleMachine(source, source.read_range(0, source.size)).load()


def change(folder: Path, into: Path, edit: Callable[[Any], object]) -> Path:
    """Copies a folder, with the fields of its metadata edited."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    metadata = load(folder)
    edit(metadata.fields)
    file = io.BytesIO()
    _Pickler(file, 2).dump(metadata)
    (into / METADATA).write_bytes(file.getvalue())
    return into


def record(**fields: Any) -> Record:
    """A record with these fields."""
    made = Record()
    made.fields.update(fields)
    return made
