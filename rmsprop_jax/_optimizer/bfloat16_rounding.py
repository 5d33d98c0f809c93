"""Stochastic rounding to bfloat16: up or down at random, with the right mean.

If an average is rounded to the nearest bfloat16 and moves by less than half a unit in
the last place per step, it does not move at all: with α = 0.999 the second moment never
decreases.

bfloat16 is the upper half of a float32. Adding 16 random bits to the lower half, as
integers, carries into the upper half with a probability proportional to the lower
half.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Round a real array, float32 or wider, to bfloat16.

    bfloat16 values, infinities and (quiet) NaNs are unchanged. A value beyond the
    largest bfloat16 may become infinite, as it may when rounded to the nearest.
    Derivatives pass as if there were no rounding.

    Args:
        x: The array.
        bits: Random numbers below 2¹⁶, uint32, one for each element.
    """
    return _round(x.astype(jnp.float32), bits)


@jax.custom_jvp
def _round(x: jax.Array, bits: jax.Array) -> jax.Array:
    whole = lax.bitcast_convert_type(x, jnp.uint32)
    # Truncate a NaN: a carry would turn 0x7FFFFFFF, which GPUs make, into a number.
    raised = jnp.where(jnp.isnan(x), whole, whole + bits)
    upper = lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    return upper.astype(jnp.bfloat16)


@_round.defjvp
def _(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _round(*primals), tangents[0].astype(jnp.bfloat16)
