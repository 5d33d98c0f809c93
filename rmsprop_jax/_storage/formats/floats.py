"""As an array of floating-point numbers, wide enough to need no rounding of its own."""

from __future__ import annotations

from collections.abc import Callable

import jax

DTYPES = ("float32", "float64")
# Complex leaves are two such numbers; float16 is in nobody's state but a restored one.
HELD = (*DTYPES, "float16", "complex64", "complex128")
ROUNDS = False


def start(full: jax.Array, field: str, dtype: str) -> jax.Array:
    del field  # all are kept alike
    return full.astype(dtype)


def keep(x: jax.Array, dtype: str, bits: Callable[[], jax.Array]) -> jax.Array:
    del bits  # nothing is rounded
    return x.astype(dtype)


def read(kept: jax.Array) -> jax.Array:
    return kept.astype("float32") if kept.dtype == "float16" else kept
