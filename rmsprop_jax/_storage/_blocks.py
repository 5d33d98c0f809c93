"""Blocks of a leaf: one axis is cut into pieces of one length, and nothing is padded.

Each block has one number, such as a scale. An array of these has the leaf's shape, but
for the cut axis, where it counts blocks; so it is sharded as the leaf is.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

SMALLEST_LEAF = 4096
LONGEST_BLOCK, SHORTEST_BLOCK = 128, 32


def cut(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axis that is cut, and the length of a block; None where it is not worth it.

    That axis has the largest divisor of at most 128; of several the last.
    """

    def length(axis: int) -> int:
        longest = min(shape[axis], LONGEST_BLOCK)
        return next(n for n in range(longest, 0, -1) if shape[axis] % n == 0)

    if math.prod(shape) < SMALLEST_LEAF:
        return None
    axis = max(range(len(shape)), key=lambda axis: (length(axis), axis))
    return (axis, length(axis)) if length(axis) >= SHORTEST_BLOCK else None


def sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a block, of ones where nothing is cut."""
    axis, length = cut(shape) or (0, 1)
    return tuple(length if i == axis else 1 for i in range(len(shape)))


def ranges(x: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest that counts of every block; if none does, the inverse.

    The inverse of all that float32 holds: infinities take XLA on CPU many times longer.
    """
    axis, length = cut(x.shape) or (0, 1)
    pieces = (*x.shape[:axis], x.shape[axis] // length, length, *x.shape[axis + 1 :])
    largest = jnp.float32(jnp.finfo(jnp.float32).max)
    ends = (largest, -largest)
    # In one reduction of two values, as of two XLA on CPU would keep what they reduce.
    return lax.reduce(
        tuple(_whole(jnp.where(counts, x, end)).reshape(pieces) for end in ends),
        ends,
        lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1])),
        (axis + 1,),
    )


def spread(x: jax.Array, like: jax.Array) -> jax.Array:
    """Each block's number for every element of the block."""
    axis, length = cut(like.shape) or (0, 1)
    pieces = (*x.shape[: axis + 1], length, *x.shape[axis + 1 :])
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), pieces).reshape(like.shape)
    sharding = jax.typeof(like).sharding
    same = jax.typeof(wide).sharding == sharding
    return wide if same else jax.sharding.reshard(wide, sharding)


def _whole(x: jax.Array) -> jax.Array:
    """With no block across two devices, as far as the type says where it is.

    On explicit axes JAX can't reshape across them; on automatic ones XLA sees to it.
    """
    axis, length = cut(x.shape) or (0, 1)
    sharding = jax.typeof(x).sharding
    if sharding.spec[axis] is None or sharding.shard_shape(x.shape)[axis] % length == 0:
        return x
    spec = [None if i == axis else names for i, names in enumerate(sharding.spec)]
    return jax.sharding.reshard(x, sharding.update(spec=PartitionSpec(*spec)))
