"""How a leaf of the state is kept and read, and what it starts with.

A leaf is kept in an array. Every module in `formats` is one way to do so; a new one is
a new file there, and nothing else. Such a module has:

    DTYPES                          what ``state_dtype`` calls it, each the name of a
                                    dtype
    HELD                            the names of all dtypes that it reads
    ROUNDS                          whether it asks for random bits
    start(full, field, dtype)       what is kept of an array before the first step
    keep(x, dtype, bits)            what is kept of a new value, float32 or wider, where
                                    the old one had this dtype
    read(kept)                      the array that it stands for

``field`` is the state's: ``"nu"``, which is never negative, ``"mu"`` or
``"grad_mean"``. ``bits()`` are 16 random bits for each element of x, as uint32.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Protocol, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rmsprop_jax._storage import formats
from rmsprop_jax._storage._bits import Salt, random_bits, salts
from rmsprop_jax._storage._memory import settled, shared

__all__ = [
    "Salt",
    "dtypes",
    "is_rounded",
    "keep",
    "random_bits",
    "read",
    "salts",
    "settled",
    "shared",
    "started",
]


class Format(Protocol):
    """A module in `formats`."""

    DTYPES: tuple[str, ...]
    HELD: tuple[str, ...]
    ROUNDS: bool

    def start(self, full: jax.Array, field: str, dtype: DTypeLike) -> jax.Array: ...
    def keep(
        self,
        x: jax.Array,
        dtype: DTypeLike,
        bits: Callable[[], jax.Array],
    ) -> jax.Array: ...
    def read(self, kept: jax.Array) -> jax.Array: ...


FORMATS = [
    cast(Format, importlib.import_module(module.name))
    for module in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}.")
]


def dtypes() -> list[str]:
    """What ``state_dtype`` may be, from the widest on."""
    names = [name for each in FORMATS for name in each.DTYPES]
    return sorted(names, key=lambda name: -jnp.dtype(name).itemsize)


def _format_of(dtype: DTypeLike) -> Format:
    name = jnp.dtype(dtype).name
    for each in FORMATS:
        if name in each.HELD:
            return each
    raise TypeError(
        f"A leaf of the state must be of one of the dtypes {', '.join(dtypes())}, but "
        f"it was {name}. Make the state with init."
    )


def is_rounded(kept: jax.Array | None) -> bool:
    """Whether new values of this leaf are rounded by random bits."""
    return kept is not None and _format_of(kept.dtype).ROUNDS


def started(full: jax.Array, field: str, dtype: DTypeLike) -> jax.Array:
    """A whole leaf of the state, real and at most 32 bits wide, in its format."""
    return _format_of(dtype).start(full, field, dtype)


def keep(x: jax.Array, old: jax.Array, field: str, salt: Salt | None) -> jax.Array:
    """A new value, kept as the old one is.

    Args:
        x: float32 or wider.
        old: The leaf's old value.
        field: Which of the state's it is.
        salt: That of `salts` for this leaf, if it is rounded.
    """

    def bits() -> jax.Array:
        assert salt is not None
        # One hash serves both moments: nu has its upper half, mu the lower one.
        both = random_bits(x, salt)
        return both & 0xFFFF if field == "mu" else both >> 16

    return _format_of(old.dtype).keep(x, old.dtype, bits)


def read(kept: jax.Array) -> jax.Array:
    """The array that a leaf of the state stands for."""
    return _format_of(kept.dtype).read(kept)
