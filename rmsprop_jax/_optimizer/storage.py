"""How a leaf of the state is stored: its dtype, and how it is encoded and decoded.

A new format is one more `Format` in `FORMATS`. The rule does not change, because it
only ever sees decoded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rmsprop_jax._optimizer.bfloat16_rounding import round_to_bfloat16
from rmsprop_jax._optimizer.random_bits import Salt, make_random_bits
from rmsprop_jax._optimizer.rule import Leaf

# nu is never negative; mu and grad_mean may be.
Field: TypeAlias = Literal["nu", "mu", "grad_mean"]
DType: TypeAlias = np.dtype[np.generic]


class Format(NamedTuple):
    """One way to store a leaf.

    Attributes:
        state_dtypes: The names by which ``state_dtype`` selects the format.
        stored_dtypes: The names of all dtypes that it can decode.
        is_rounded: Whether `encode` needs random bits.
        initial_dtype: From a field and the ``state_dtype`` to the dtype of a new leaf.
        encode: From a float32 or wider array, the dtype that the old leaf has, and a
            function that makes 16 random bits (uint32) per element, to the new leaf.
        decode: From a leaf to a real or complex array, float32 or wider.
    """

    state_dtypes: tuple[str, ...]
    stored_dtypes: tuple[str, ...]
    is_rounded: bool
    initial_dtype: Callable[[Field, DType], DType]
    encode: Callable[[jax.Array, DType, Callable[[], jax.Array]], jax.Array]
    decode: Callable[[jax.Array], jax.Array]


FLOATS = Format(
    state_dtypes=("float64", "float32"),
    # A complex leaf is two such numbers. Only a restored state has float16.
    stored_dtypes=("float64", "float32", "float16", "complex64", "complex128"),
    is_rounded=False,
    initial_dtype=lambda field, state_dtype: state_dtype,
    encode=lambda x, dtype, make_bits: x.astype(dtype),
    decode=lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x,
)

BFLOAT16 = Format(
    state_dtypes=("bfloat16",),
    stored_dtypes=("bfloat16",),
    is_rounded=True,
    # The mean stays float32, because the variance is about this mean: rounding it would
    # add the variance of the rounding error, 20 % at a mean of 100 deviations.
    initial_dtype=lambda field, state_dtype: (
        np.dtype(np.float32) if field == "grad_mean" else state_dtype
    ),
    encode=lambda x, dtype, make_bits: round_to_bfloat16(x, make_bits()),
    decode=lambda x: x.astype(jnp.float32),
)

FORMATS = (FLOATS, BFLOAT16)


def _find_format(dtype: DTypeLike) -> Format:
    name = jnp.dtype(dtype).name
    for form in FORMATS:
        if name in form.stored_dtypes:
            return form
    names = ", ".join(name for form in FORMATS for name in form.state_dtypes)
    raise TypeError(
        f"A leaf of the state must have one of the dtypes {names}, but it was "
        f"{jnp.dtype(dtype).name}. Make the state with init."
    )


def is_any_rounded(leaves: Iterable[Leaf]) -> bool:
    """Whether new values of any of these leaves are rounded by random bits."""
    stored = [x for leaf in leaves for x in (leaf.nu, leaf.mu) if x is not None]
    return any(_find_format(dtype).is_rounded for dtype in {x.dtype for x in stored})


def initial_dtype(field: Field, state_dtype: DType) -> DType:
    """Return the dtype of a new leaf whose parameter is real and not float64."""
    return _find_format(state_dtype).initial_dtype(field, state_dtype)


def encode(x: jax.Array, old: jax.Array, field: Field, salt: Salt | None) -> jax.Array:
    """Encode a new value as the old one is stored.

    Args:
        x: The value, float32 or wider.
        old: The leaf's old value, as it is stored.
        field: Which field of the state it belongs to.
        salt: The leaf's salt, if it is rounded.
    """

    def make_bits() -> jax.Array:
        assert salt is not None
        # One hash serves both moments: nu takes its upper half and mu the lower.
        both = make_random_bits(x, salt)
        return both & 0xFFFF if field == "mu" else both >> 16

    return _find_format(old.dtype).encode(x, old.dtype, make_bits)


def decode(stored: jax.Array) -> jax.Array:
    """Return the array that a stored leaf represents, float32 or wider."""
    return _find_format(stored.dtype).decode(stored)


def decode_state(leaf: Leaf) -> Leaf:
    """Return the leaf with its state decoded."""
    state = {"nu": leaf.nu, "mu": leaf.mu, "grad_mean": leaf.grad_mean}
    return leaf._replace(**jax.tree.map(decode, state))
