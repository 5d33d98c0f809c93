"""Write files completely or not at all: npz, safetensors, and orbax's folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import numpy as np
import optax

from rmsprop_jax.checkpoints._convert.arrays import NumpyArray

# What safetensors calls NumPy's dtypes.
_SAFETENSORS = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
    **{"bool": "BOOL", "complex64": "C64"},
}

Arrays = Mapping[str, NumpyArray]


# The files by which a folder of orbax is recognized.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA")


def check_replaceable(path: Path, source: Path, form: str) -> None:
    """Raise if the output would replace what even ``--force`` must not replace.

    Args:
        path: Where to write.
        source: The checkpoint that is converted.
        form: One of `WRITERS`.

    Raises:
        ValueError: If the path is or contains the source, if it is a folder that orbax
            did not write, or if it is a folder and a file is to be written.
    """
    place, origin = path.resolve(), source.resolve()
    if place == origin or place in origin.parents:
        raise ValueError(
            f"{str(path)!r} is, or holds, the checkpoint to convert, which would be "
            "lost. Write to another place."
        )
    if not path.is_dir():
        return
    if form != "orbax" or not any((path / name).exists() for name in _ORBAX):
        raise ValueError(
            f"{str(path)!r} is a folder that orbax did not write, or a file is to be "
            "written. --force does not replace it: write to another place."
        )


@contextlib.contextmanager
def replace_when_whole(path: Path, *, is_forced: bool) -> Generator[Path]:
    """Yield a temporary path next to a path, and replace the path when all is written.

    If the process is killed before, the path is as it was. The next call removes the
    temporary files that were left.

    Args:
        path: Where to write a file or a folder.
        is_forced: Whether to replace what is there.

    Raises:
        ValueError: If the path exists, or its folder does not.
    """
    if os.path.lexists(path) and not is_forced:
        raise ValueError(f"{str(path)!r} exists already. --force replaces it.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r} to write to.")
    partial = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    _remove(partial)
    try:
        with _raise_when_terminated():
            yield partial
            if os.path.lexists(path):
                # A folder can't replace another folder in one step.
                _remove(old)
                path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                if os.path.lexists(old):
                    old.rename(path)
                raise
    finally:
        _remove(partial)
        if os.path.lexists(path):
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _raise_when_terminated() -> Generator[None]:
    """Clean up on SIGTERM too, as on Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_npz(path: Path, arrays: Arrays, tree: optax.Params) -> None:
    """Write NumPy's format, in which bfloat16 is two unnamed bytes."""
    del tree
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        _flush(file.fileno())


def write_safetensors(path: Path, arrays: Arrays, tree: optax.Params) -> None:
    """Write safetensors' format: a header of JSON, and the bytes of each array.

    Raises:
        ValueError: If the format does not have an array's dtype.
    """
    del tree
    header: dict[str, object] = {"__metadata__": {"format": "np"}}
    end = 0
    for name, array in arrays.items():
        if array.dtype.name not in _SAFETENSORS:
            raise ValueError(
                f"safetensors has no dtype {array.dtype}, which {name!r} has. Convert "
                "--to npz or orbax."
            )
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.name],
            "shape": [*array.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
        _flush(file.fileno())


def write_orbax(path: Path, arrays: Arrays, tree: optax.Params) -> None:
    """Write a checkpoint of orbax.

    Raises:
        ImportError: If orbax is missing.
    """
    del arrays
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "--to orbax needs orbax, which is missing: pip install orbax-checkpoint"
        ) from error
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def _flush(descriptor: int) -> None:
    """Wait until it is on the disk; otherwise a power cut may leave an empty file."""
    os.fsync(descriptor)


WRITERS: dict[str, Callable[[Path, Arrays, optax.Params], None]] = {
    "npz": write_npz,
    "orbax": write_orbax,
    "safetensors": write_safetensors,
}
