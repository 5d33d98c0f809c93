"""Arithmetic on the step count that loses no step.

float32 has every integer only up to 2²⁴. So remainders, quotients and differences are
those of int32, and only their results become floating-point numbers.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.state import LARGEST_COUNT

NumpyArray: TypeAlias = npt.NDArray[np.float64]


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
            "count must be an integer or an array of integers, because float32 does "
            f"not have every integer above 2**24, but its dtype was {array.dtype}. "
            "Divide counts with //."
        )
    if array.dtype.itemsize > 4 or array.dtype == jnp.uint32:
        array = jnp.minimum(array, jnp.array(LARGEST_COUNT, array.dtype))
    return jnp.maximum(array.astype(jnp.int32), 0)


def to_real(number: ArrayLike) -> jax.Array:
    """Return the number in JAX's widest real dtype."""
    return jnp.asarray(number, jnp.result_type(float))


def power(base: float, count: jax.Array, per: float = 1.0) -> jax.Array:
    """Return ``base ** (count / per)`` for an int32 count that is not negative.

    `jnp.power` rounds the base to float32 first: 0.9999 is then off by 1e-8, and its
    power of 10,000 by 1e-4. Here the count is split into four digits in base 256. The
    powers for each digit are computed in float64 and rounded once.
    """
    made = jnp.ones(count.shape, jnp.result_type(float))
    for place in range(4):
        with np.errstate(all="ignore"):  # overflow is infinite, as in PyTorch
            table = np.power(base, _DIGITS * 256.0**place / per).astype(made.dtype)
        made = made * jnp.asarray(table)[_digit(count, place)]
    return made


def divide(count: jax.Array, length: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how often a length has passed, and how much of the next is done and left.

    Args:
        count: The step count.
        length: A finite number, at least 1, which need not be an integer.

    Returns:
        The quotient without its fraction, int32, the fraction, and 1 minus it.
    """
    if length > LARGEST_COUNT:
        done = to_real(count) / length
        return jnp.zeros_like(count), done, 1 - done
    if length == int(length):
        size = int(length)
        rest = count % size
        return count // size, to_real(rest) / length, to_real(size - rest) / length
    # The rest of each digit is exact in float64, and their sum is less than 4 lengths.
    whole, rest = jnp.zeros_like(count), to_real(jnp.zeros(count.shape))
    for place in range(4):
        quotients, rests = np.divmod(_DIGITS * 256.0**place, length)
        quotients = np.minimum(quotients, LARGEST_COUNT).astype(np.int32)
        whole = whole + jnp.asarray(quotients)[_digit(count, place)]
        rest = rest + jnp.asarray(rests.astype(rest.dtype))[_digit(count, place)]
    carried = jnp.floor(rest / length)
    done = jnp.maximum(rest / length - carried, 0)
    return whole + carried.astype(jnp.int32), done, 1 - done


_DIGITS = np.arange(256.0)


def _digit(count: jax.Array, place: int) -> jax.Array:
    return (count >> 8 * place) & 255


class Cycles(NamedTuple):
    """Cycles of which each is longer than the one before, up to int32's largest count.

    Attributes:
        starts: The step count at which each starts, which may have a fraction.
        lengths: How long each takes.
        firsts: The first step count in each.
    """

    starts: NumpyArray
    lengths: NumpyArray
    firsts: NumpyArray


def list_cycles(name: str, first: float, multiplier: float) -> Cycles:
    """Return the cycles from the length of the first, and how it grows.

    Raises:
        ValueError: If there are too many, because the multiplier, of this name, is
            hardly more than 1.
    """
    starts, lengths = [0.0], [float(first)]
    while starts[-1] + lengths[-1] <= LARGEST_COUNT:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * multiplier)
        if len(starts) > _MOST_CYCLES:
            raise ValueError(
                f"{name} must be 1, or so much larger that there are at most "
                f"{_MOST_CYCLES} cycles, but it was {multiplier}."
            )
    return Cycles(np.array(starts), np.array(lengths), np.ceil(starts))


_MOST_CYCLES = 10_000


def find_cycle(count: jax.Array, cycles: Cycles) -> tuple[jax.Array, jax.Array]:
    """Return the number of the cycle, from 0, and which part of it is done."""
    firsts = jnp.asarray(cycles.firsts.astype(np.int32))
    cycle = jnp.searchsorted(firsts, count, side="right").astype(jnp.int32) - 1
    since = count - firsts[cycle]
    wide = jnp.result_type(float)
    before = jnp.asarray((cycles.firsts - cycles.starts).astype(wide))[cycle]
    length = jnp.asarray(cycles.lengths.astype(wide))[cycle]
    return cycle, (to_real(since) + before) / length


def progress(count: jax.Array, start: float, end: float) -> jax.Array:
    """Return which part of the way from start to end is done, not clipped."""
    # Within int32, as is the difference then.
    whole = min(max(int(np.floor(start)), 0), LARGEST_COUNT)
    return (to_real(count - whole) - (start - whole)) / (end - start)


def half_cosine(phase: jax.Array, length: int) -> jax.Array:
    """Return (1 + cos(π·phase/length))/2 for a phase from 0 to the length."""
    return (1 + jnp.cos(jnp.pi * to_real(phase) / float(length))) / 2
