"""As an array of floating-point numbers, wide enough to need no rounding of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

Sources = TypeVar("Sources")

DTYPES = ("float32", "float64")
ROUNDS = False
# Complex leaves are two such numbers; float16 is in nobody's state but a restored one.
_HELD = (*DTYPES, "float16", "complex64", "complex128")


def holds(kept: object) -> bool:
    is_array = isinstance(kept, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    return is_array and str(kept.dtype) in _HELD


def start(full: jax.Array, field: str, dtype: str) -> jax.Array:
    del field  # all are kept alike
    return full.astype(dtype)


def keep(
    wanted: Callable[[Sources], jax.Array],
    sources: Sources,
    old: jax.Array,
    field: str,
    bits: Callable[[tuple[int, ...]], jax.Array],
) -> jax.Array:
    del field, bits  # nothing is rounded
    return wanted(sources).astype(old.dtype)


def read(kept: jax.Array) -> jax.Array:
    return kept.astype("float32") if kept.dtype == "float16" else kept


def block(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(shape)
