"""Arithmetic on the step count that loses no step.

float32 has every integer only up to 2²⁴. So remainders, quotients and differences are
those of int32, and only their results become floating-point numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.state import LARGEST_COUNT


def to_count(count: ArrayLike) -> jax.Array:
    """Return the step count as int32, from 0 to the largest.

    Raises:
        TypeError: If it is not of integers.
    """
    if isinstance(count, int | np.integer):
        count = min(max(int(count), 0), LARGEST_COUNT)
    array = jnp.asarray(count)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            "count must be an integer or an array of integers, because float32 has "
            f"none between 2**24 and 2**24 + 2, but it was of {array.dtype}. Divide "
            "counts with //."
        )
    if array.dtype.itemsize > 4 or array.dtype == jnp.uint32:
        array = jnp.minimum(array, jnp.array(LARGEST_COUNT, array.dtype))
    return jnp.maximum(array.astype(jnp.int32), 0)


def to_real(number: ArrayLike) -> jax.Array:
    """Return the number in JAX's widest real dtype."""
    return jnp.asarray(number, jnp.result_type(float))


def power(base: float, exponent: jax.Array) -> jax.Array:
    """Return a power for an int32 exponent that is not negative.

    `jnp.power` rounds the base to float32 first: 0.9999 is off by 1e-8 then, and its
    power to 10,000 by 1e-4. Here the powers to each digit of the exponent, of four in
    base 256, are computed in float64 and rounded once.
    """
    digits = np.arange(256.0)
    made = jnp.ones(exponent.shape, jnp.result_type(float))
    for place in range(4):
        with np.errstate(all="ignore"):  # overflow is infinite, as in PyTorch
            table = np.power(base, digits * 256.0**place).astype(made.dtype)
        made = made * jnp.asarray(table)[(exponent >> 8 * place) & 255]
    return made


def progress(count: jax.Array, start: float, end: float) -> jax.Array:
    """Return which part of the way from start to end is done, not clipped."""
    # Not below 0, because the difference may be beyond int32's largest then.
    whole = max(int(np.floor(start)), 0)
    return (to_real(count - whole) - (start - whole)) / (end - start)


def half_cosine(phase: jax.Array, length: int) -> jax.Array:
    """Return (1 + cos(π·phase/length))/2 for a phase from 0 to the length."""
    return (1 + jnp.cos(jnp.pi * to_real(phase) / float(length))) / 2
