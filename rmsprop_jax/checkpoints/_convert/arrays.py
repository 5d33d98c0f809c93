"""Convert tensors, arrays and numbers to NumPy arrays and back, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._readers.source import (
    NumpyArray,
    StoredArray,
    read_each,
)


@runtime_checkable
class Tensor(Protocol):
    """The part of a ``torch.Tensor`` that is used here."""

    @property
    def dtype(self) -> object: ...

    def __array__(self) -> NumpyArray: ...

    def detach(self) -> Tensor: ...

    def cpu(self) -> Tensor: ...

    def resolve_conj(self) -> Tensor: ...

    def resolve_neg(self) -> Tensor: ...

    def float(self) -> Tensor: ...

    def numpy(self) -> NumpyArray: ...

    def new_tensor(self, data: npt.ArrayLike) -> Tensor: ...


# What a moment, a weight or a setting may be: in memory, or still in a file.
Value: TypeAlias = npt.ArrayLike | Tensor


def to_numpy(value: Value) -> NumpyArray:
    """Return a NumPy array, at least float32 and in the machine's byte order."""
    if isinstance(value, Tensor):
        value = _detach(value).cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array: NumpyArray = np.asarray(value)
    if "float16" in str(array.dtype):  # or bfloat16, which NumPy doesn't know
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def describe_missing_data(values: Sequence[object]) -> list[str]:
    """Describe why each tensor has no array in this process; empty if all have one."""
    return [
        "a DTensor, of which each process has only a part"
        if hasattr(value, "placements")
        else "on the meta device, where tensors have no data"
        if getattr(getattr(value, "device", None), "type", None) == "meta"
        else ""
        for value in values
    ]


def to_numpy_each(
    values: Sequence[Value],
    rows: Sequence[slice | None] | None = None,
    *,
    verify: Sequence[bool] | None = None,
    exact: bool,
) -> list[NumpyArray]:
    """Return each value, or some of its rows, as an array.

    Args:
        values: The values, in memory or in a file.
        rows: For each value a range of rows, or None for all of them.
        verify: For each value whether to verify its checksum if it is read in part.
        exact: Whether to keep the dtype of the value; otherwise it is `to_numpy`'s.
    """
    convert = to_numpy_exactly if exact else to_numpy
    arrays = [convert(value) for value in read_each(values, rows, verify)]
    if rows is None:
        return arrays
    return [
        array if part is None or isinstance(value, StoredArray) else array[part]
        for array, value, part in zip(arrays, values, rows, strict=True)
    ]


def to_numpy_exactly(value: Value) -> NumpyArray:
    """Return a NumPy array in the value's own dtype."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    if "bfloat16" in str(value.dtype):
        return to_numpy(value).astype(jnp.bfloat16)
    return _detach(value).cpu().numpy()


def to_float(value: Value) -> float:
    """Return a Python number from a number, or from an array or tensor of one."""
    return float(to_numpy(value).reshape(()))


def to_real_number(value: Any) -> float:
    """Return a Python number; NaN if the value is not a single real number."""
    if isinstance(value, bool | str | bytes) or is_complex(value):
        return math.nan
    try:
        array = to_numpy(value)
        return float(array.reshape(())) if array.size == 1 else math.nan
    except (OverflowError, TypeError, ValueError):
        return math.nan


def to_real_numbers(values: Sequence[Any]) -> list[float]:
    """Return `to_real_number` of each value."""
    return [to_real_number(value) for value in read_each(values)]


def is_complex(value: Value) -> bool:
    """Whether a tensor or an array is complex."""
    return "complex" in str(getattr(value, "dtype", type(value)))


def fill_each(values: Sequence[Value], numbers: Sequence[float]) -> list[NumpyArray]:
    """Return arrays of the values' shapes, each filled with a number.

    They take no memory, because all elements of an array are the same one.
    """
    return [
        np.broadcast_to(
            np.array(number, np.complex64 if is_complex(value) else np.float32),
            np.shape(value),
        )
        for value, number in zip(values, numbers, strict=True)
    ]


def make_zeros_like(value: Value) -> NumpyArray:
    """Return zeros of the value's shape, at least float32, that take no memory."""
    dtype = getattr(value, "dtype", None)
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    known = ("float64", "complex64", "complex128")
    zero: NumpyArray = np.zeros((), name if name in known else np.float32)
    return np.broadcast_to(zero, np.shape(value))


def cast_like(like: Value, value: npt.ArrayLike) -> Value:
    """Return the value as a tensor, a NumPy array or a number, whichever `like` is."""
    if isinstance(like, Tensor):
        return _detach(like).new_tensor(value)
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    if isinstance(like, int | float):
        return type(like)(to_float(value))
    return np.array(value, np.asarray(like).dtype)


def _detach(tensor: Tensor) -> Tensor:
    """Drop the gradient, and resolve lazy conjugation and negation for NumPy."""
    return tensor.detach().resolve_conj().resolve_neg()
