"""How a leaf of the state is kept and read, and what it starts with.

Every module in `formats` is one way to keep a leaf; a new one is a new file there, and
nothing else. Such a module has:

    DTYPES                          what ``state_dtype`` calls it, each the name of a
                                    dtype
    ROUNDS                          whether it asks for random bits
    holds(kept)                     whether it is a leaf of the state in this format: no
                                    for any other node of a tree, also one that has a
                                    dtype (a flax Param, say)
    start(full, field, dtype)       what is kept of an array before the first step. It
                                    may return `full` itself: small leaves stay float32
    keep(wanted, sources, old, field, bits)
                                    a new value in the format of the old one: that of
                                    wanted(sources), rounded by bits where it has to be
    read(kept)                      the array that it stands for
    block(shape)                    the sides of what must stay on one device

``field`` is the state's: ``"nu"``, which is never negative, ``"mu"`` or
``"grad_mean"``. What is kept is an array, or a pytree of arrays that has the ``shape``
of the one that it stands for. ``bits(shape)`` are 16 random bits for each element, as
uint32.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from rmsprop_jax._storage import formats
from rmsprop_jax._storage._bits import Salt, random_bits, salts
from rmsprop_jax._storage._memory import settled, shared

__all__ = [
    "Salt",
    "dtypes",
    "is_kept",
    "is_rounded",
    "keep",
    "random_bits",
    "read",
    "salts",
    "settled",
    "shared",
    "started",
    "units",
]

Kept = Any  # an array, or what a format makes of one: its pytree of arrays
Sources = TypeVar("Sources")


class Format(Protocol):
    """A module in `formats`."""

    DTYPES: tuple[str, ...]
    ROUNDS: bool

    def holds(self, kept: Kept) -> bool: ...
    def start(self, full: jax.Array, field: str, dtype: DTypeLike) -> Kept: ...
    def keep(
        self,
        wanted: Callable[[Sources], jax.Array],
        sources: Sources,
        old: Kept,
        field: str,
        bits: Callable[[tuple[int, ...]], jax.Array],
    ) -> Kept: ...
    def read(self, kept: Kept) -> jax.Array: ...
    def block(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...


FORMATS = [
    cast(Format, importlib.import_module(module.name))
    for module in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}.")
]


def dtypes() -> list[str]:
    """What ``state_dtype`` may be, from the widest on."""
    names = [name for each in FORMATS for name in each.DTYPES]
    return sorted(names, key=lambda name: -jnp.dtype(name).itemsize)


def _format_of(kept: Kept) -> Format:
    for each in FORMATS:
        if each.holds(kept):
            return each
    raise TypeError(
        f"A leaf of the state must be of one of the dtypes {', '.join(dtypes())}, but "
        f"it was {getattr(kept, 'dtype', type(kept))}. Make the state with init."
    )


def is_kept(x: object) -> bool:
    """For `is_leaf` in trees of the state: whether it is a whole leaf, or None."""
    return x is None or any(each.holds(x) for each in FORMATS)


def is_rounded(kept: Kept) -> bool:
    """Whether new values of this leaf are rounded by random bits."""
    return kept is not None and _format_of(kept).ROUNDS


def started(full: jax.Array, field: str, dtype: DTypeLike) -> Kept:
    """A whole leaf of the state, real and at most 32 bits wide, in its format."""
    format = next(each for each in FORMATS if jnp.dtype(dtype).name in each.DTYPES)
    return format.start(full, field, dtype)


def keep(
    wanted: Callable[[Sources], jax.Array],
    sources: Sources,
    old: Kept,
    field: str,
    salt: Salt | None,
) -> Kept:
    """What ``wanted`` makes of the sources, kept as the old value is.

    Args:
        wanted: Of the sources an array, float32 or wider. It may be called twice.
        sources: A tree of arrays.
        old: The leaf's old value.
        field: Which of the state's it is.
        salt: That of `salts` for this leaf, if it is rounded.
    """

    def bits(shape: tuple[int, ...]) -> jax.Array:
        assert salt is not None
        # One hash serves both moments: nu has its upper half, mu the lower one.
        both = random_bits(shape, salt)
        return both & 0xFFFF if field == "mu" else both >> 16

    return _format_of(old).keep(wanted, sources, old, field, bits)


def read(kept: Kept) -> jax.Array:
    """The array that a leaf of the state stands for."""
    return _format_of(kept).read(kept)


def units(state: optax.OptState) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """From a leaf's shape to the sides of what must stay on one device.

    Args:
        state: Only the formats that it has count.
    """
    leaves = jax.tree.leaves(state, is_leaf=is_kept)
    present = [each for each in FORMATS if any(map(each.holds, leaves))]

    def sides(shape: tuple[int, ...]) -> tuple[int, ...]:
        blocks = [(1,) * len(shape), *(each.block(shape) for each in present)]
        return tuple(math.lcm(*each) for each in zip(*blocks, strict=True))

    return sides
