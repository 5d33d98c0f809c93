"""Read recorded runs from ``.npz`` files, which may come from strangers."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.lib import format as npy

from rmsprop_jax.checkpoints._convert.arrays import NumpyArray
from rmsprop_jax.checkpoints._readers.source import (
    DamagedError,
    Source,
    UnsupportedError,
    explain_errors,
)

Arrays: TypeAlias = dict[str, NumpyArray]
_PARTS = ("params", "gradients")


class Recording(NamedTuple):
    """The run that a recorder wrote.

    Attributes:
        params: The parameters before the first step and after each, [T + 1, …].
        gradients: The gradients, [T, …].
        gradient_norms: The global norms of the whole gradients [T], if recorded.
        learning_rate: The learning rate of each step [T], if it is known.
        step_count: The number of updates before the first step.
    """

    params: Arrays
    gradients: Arrays
    gradient_norms: NumpyArray | None
    learning_rate: NumpyArray | None
    step_count: int


def read_recording(path: str) -> Recording:
    """Read a recording.

    Args:
        path: An ``.npz`` file with arrays ``params`` and ``gradients``, or with one for
            each name: ``params/NAME`` and ``gradients/NAME``.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is damaged, or not a recording.
    """
    with explain_errors(path):
        source = Source(Path(path))
        arrays = {
            name.removesuffix(".npy"): _read_array(name, source.read_member(name))
            for name in source.members
            if name.endswith(".npy")
        }
        parts = {part: _find_part(part, arrays) for part in _PARTS}
        if not arrays:
            raise UnsupportedError(
                "it is not an .npz file. It must be one with arrays 'params' and "
                "'gradients', or 'params/NAME' and 'gradients/NAME'"
            )
        if not all(parts.values()):
            raise UnsupportedError(
                "it must be an .npz file with arrays 'params' and 'gradients', or "
                "'params/NAME' and 'gradients/NAME', but it has "
                f"{[*arrays][:8]}"
            )
        steps = min(len(x) if x.ndim else 0 for x in parts["gradients"].values())
        return Recording(
            **parts,
            gradient_norms=_find_numbers("gradient_norms", arrays, steps),
            learning_rate=_find_numbers("learning_rate", arrays, steps),
            step_count=_find_count(arrays),
        )


def _read_array(name: str, content: bytes) -> NumpyArray:
    """Return the array in a member of an ``.npz`` file; nothing is unpickled."""
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = (
            npy.read_array_header_1_0
            if version == (1, 0)
            else npy.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(file)
    except (SyntaxError, ValueError, TypeError) as error:
        raise DamagedError(f"its member {name!r} has no header ({error})") from error
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise UnsupportedError(f"its member {name!r} holds Python objects or records")
    rest = content[file.tell() :]
    if (
        any(size < 0 for size in shape)
        or len(rest) != math.prod(shape) * dtype.itemsize
    ):
        raise DamagedError(f"its member {name!r} has another size than it declares")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat: NumpyArray = np.frombuffer(rest, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _find_part(part: str, arrays: Arrays) -> Arrays:
    if part in arrays:
        return {"": arrays[part]}
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): x
        for name, x in arrays.items()
        if name.startswith(prefix)
    }


def _find_numbers(key: str, arrays: Arrays, steps: int) -> NumpyArray | None:
    """Return a number for each step; None if there are none."""
    array = arrays.get(key)
    if array is None:
        return None
    if array.dtype.kind not in "iuf" or array.shape not in ((), (steps,)):
        raise UnsupportedError(
            f"{key!r} must be one number for each of the {steps} steps, but it has "
            f"dtype {array.dtype} and shape {array.shape}"
        )
    return np.broadcast_to(array.astype(np.float64), (steps,))


def _find_count(arrays: Arrays) -> int:
    array = arrays.get("count")
    if array is None:
        return 0
    if array.dtype.kind not in "iu" or array.size != 1 or array.min() < 0:
        raise UnsupportedError(
            f"'count' must be the number of updates before the recording, but it is "
            f"{array}"
        )
    return int(array.reshape(()))
