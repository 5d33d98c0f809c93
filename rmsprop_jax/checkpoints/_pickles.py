"""What torch and Paddle pickle, read without them, and without executing anything.

A pickle names functions and calls them. `_Reader` knows the names that dictionaries of
tensors need, has a stand-in of its own for each, and refuses all others. Tensors become
NumPy arrays. Those of a dtype that NumPy lacks, such as bfloat16, have it by ml_dtypes,
as JAX has it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.checkpoints._files import (
    TORCH_LEGACY,
    File,
    check_is_of,
    damaged,
    framework_of,
)

# What torch calls its dtypes, where NumPy and ml_dtypes call them otherwise.
_STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
# NumPy's own ways to unpickle, whose names differ from version to version.
_NUMPY = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "scalar": np.float32(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class _Refused(Exception):
    """A pickle asked for this name, which is none of a checkpoint's."""


class _Storage(NamedTuple):
    """The memory of tensors, and what they take it for."""

    memory: bytes | bytearray
    dtype: np.dtype


def read(path: File) -> Any:
    """What a checkpoint file of torch, Stable-Baselines3 or Paddle holds.

    The framework is not needed, and nothing in the file is executed: a name that
    tensors and settings do not need is refused. The functions of this module take what
    this returns, whole or in part.

    Args:
        path: A file that ``torch.save`` or ``paddle.save`` wrote, or a zip file of
            Stable-Baselines3. Of the last, the result is a dictionary of what each of
            its ``.pth`` files holds.

    Returns:
        What was saved, with NumPy arrays for tensors. They have the dtype that they
        had, bfloat16 as ``jax.numpy.bfloat16``. An ``argparse.Namespace`` becomes a
        ``types.SimpleNamespace``.

    Raises:
        ValueError: On another framework's file, a damaged one, or one that asks for
            other names.
        FileNotFoundError: Where there is none.

    Examples:
        Of a checkpoint with two optimizers, one goes on:

        >>> from rmsprop_jax.checkpoints import from_torch, read
        >>> def resume(path):
        ...     return from_torch(read(path)["optimizer_d"])
    """
    check_is_of(path, "torch", "stable_baselines3", "paddle")
    try:
        with open(path, "rb") as file:
            return _READERS[framework_of(path)](file)
    except _Refused as error:
        raise ValueError(
            f"{str(path)!r} must hold only tensors, numbers, text, lists and "
            f"dictionaries, but it asks for '{error}', which could run other code. "
            "Nothing of it was run. If you trust the file, load it with the framework "
            "that wrote it, and give the dictionary."
        ) from None
    except Exception as error:  # bytes that are no checkpoint raise anything
        raise damaged(path, error) from error


def opened(source: File | Mapping[str, Any], *frameworks: str) -> Any:
    """What a file of one of these frameworks holds; what is no path as it is."""
    if not isinstance(source, str | os.PathLike):
        return source
    check_is_of(source, *frameworks)
    return read(source)


def _read_torch(file: IO[bytes]) -> Any:
    """A file of torch, in the format since 1.6 or before."""
    is_legacy = file.read(len(TORCH_LEGACY)) == TORCH_LEGACY
    file.seek(0)
    return _read_legacy(file) if is_legacy else _read_zip(file)


def _read_zip(file: IO[bytes]) -> Any:
    """The format since torch 1.6: a pickle, and a member for each memory."""
    kept: dict[str, bytes] = {}
    with zipfile.ZipFile(file) as members:
        names = members.namelist()
        pickled = next(n for n in names if n.rpartition("/")[2] == "data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in names and members.read(order) != b"little":
            raise ValueError("its bytes are in the order of another machine")

        def memory(key: str, _: int) -> bytes:
            if key not in kept:
                kept[key] = members.read(f"{folder}data/{key}")
            return kept[key]

        return _Reader(io.BytesIO(members.read(pickled)), memory).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """The format before torch 1.6: pickles one after the other, then the memory.

    The memory comes last, so it is made beforehand and filled afterwards.
    """
    whole = file.seek(0, io.SEEK_END)
    file.seek(0)
    kept: dict[str, bytearray] = {}

    def memory(key: str, size: int) -> bytearray:
        if size > whole:
            raise ValueError(f"{size} bytes are not there")
        return kept.setdefault(key, bytearray(size))

    _, _, _, made, keys = (_Reader(file, memory).load() for _ in range(5))
    for key in keys:
        file.seek(8, io.SEEK_CUR)  # the number of elements
        content = file.read(len(kept[key]))
        if len(content) < len(kept[key]):
            raise ValueError("the last tensors are not there")
        kept[key][:] = content
    return made


def _read_stable_baselines3(file: IO[bytes]) -> dict[str, Any]:
    with zipfile.ZipFile(file) as members:
        return {
            name: _read_torch(io.BytesIO(members.read(name)))
            for name in members.namelist()
            if name.endswith(".pth")
        }


def _read_paddle(file: IO[bytes]) -> Any:
    def memory(key: str, size: int) -> bytes:
        raise ValueError("only torch has tensors outside of the pickle")

    return _Reader(file, memory).load()


_READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "torch": _read_torch,
    "stable_baselines3": _read_stable_baselines3,
    "paddle": _read_paddle,
}


class _Reader(pickle.Unpickler):
    """Unpickles with stand-ins for the few names that it knows.

    They are made anew for each file, so that no file can leave anything in them.
    """

    def __init__(
        self, file: IO[bytes], memory: Callable[[str, int], bytes | bytearray]
    ) -> None:
        super().__init__(file)
        self._memory = memory

        class Namespace(SimpleNamespace):
            """For argparse's, which holds a script's arguments."""

        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "Counter"): Counter,
            ("builtins", "tuple"): tuple,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("argparse", "Namespace"): Namespace,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *of: ":".join(map(str, of)),
            ("torch._utils", "_rebuild_tensor"): lambda *of: _tensor(*of),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *of: _tensor(*of[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch":
            dtype = _STORAGES.get(name.removesuffix("Storage"), name)
            if dtype in _STORAGES.values():
                return dtype
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any, /) -> _Storage:
        """The memory of a tensor, which lies outside of the pickle."""
        _, name, key, _, size = pid[:5]
        dtype = jnp.dtype(name)
        return _Storage(self._memory(key, size * dtype.itemsize), dtype)


def _tensor(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> np.ndarray:
    """A view of the storage, as a tensor is one: several may share their memory."""
    flat = np.frombuffer(storage.memory, storage.dtype)
    if 0 in shape:
        return np.zeros(shape, flat.dtype)
    last = offset + sum(s * (n - 1) for n, s in zip(shape, strides, strict=True))
    needed = max(last + 1, math.prod(shape))
    if min([offset, *shape, *strides]) < 0 or needed > flat.size:
        raise ValueError(f"a tensor of shape {shape} does not fit its memory")
    steps = [s * flat.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
