"""As bfloat16, rounded up or down at random with a mean that is right.

Rounded to the nearest, an average that moves by less than half a unit in its last place
a step does not move at all: with α = 0.999 the second moment never comes down again.

bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half, in the
integers, carries into the upper one as often as the lower half is large.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

DTYPES = HELD = ("bfloat16",)
ROUNDS = True


def start(full: jax.Array, field: str, dtype: str) -> jax.Array:
    # The variance is about this very mean: what rounds it to fewer bits would add the
    # variance of that rounding, 20 % at a mean of 100 deviations.
    return full if field == "grad_mean" else full.astype(dtype)


def keep(x: jax.Array, dtype: str, bits: Callable[[], jax.Array]) -> jax.Array:
    del dtype  # there is one
    return rounded(x, bits())


def read(kept: jax.Array) -> jax.Array:
    return kept.astype(jnp.float32)


def rounded(x: jax.Array, bits: jax.Array) -> jax.Array:
    """A real array, float32 or wider, in bfloat16.

    bfloat16 values, infinities and (quiet) NaN stay what they are. A value beyond the
    largest bfloat16 may become infinite, as when it is rounded to the nearest.
    Derivatives pass as if there was no rounding.

    Args:
        x: The array.
        bits: uint32 below 2¹⁶, one for each element.
    """
    return _rounded(x.astype(jnp.float32), bits)


@jax.custom_jvp
def _rounded(x: jax.Array, bits: jax.Array) -> jax.Array:
    whole = lax.bitcast_convert_type(x, jnp.uint32)
    # A NaN is only cut off: a carry would make a number of a GPU's, 0x7FFFFFFF.
    raised = jnp.where(jnp.isnan(x), whole, whole + bits)
    upper = lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    return upper.astype(jnp.bfloat16)


@_rounded.defjvp
def _rounded_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _rounded(*primals), tangents[0].astype(jnp.bfloat16)
