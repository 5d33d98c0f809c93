"""Random bits without a key: a hash of the seed, the step, the leaf and the element.

The same run has the same bits, however its leaves are sharded. The bits cannot depend
on anything outside the program's view of a leaf: under ``vmap``, ``pmap`` and
``shard_map``, every part has the same bits unless it has its own seed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.barriers import barrier_on_gpu

Use = Literal["state", "parameters"]


class Salt(NamedTuple):
    """What distinguishes the bits of one leaf at one step from all others.

    Attributes:
        leaf_index: uint32 scalar.
        step_hash: uint32 scalar, a hash of the seed, the step and the use.
        leaf_hashes: uint32 [leaves], for each leaf a hash of the step and its index.
        opaque_zero: uint32 of shape (1,): a 0 that the compiler can't see.
    """

    leaf_index: np.uint32 | jax.Array
    step_hash: jax.Array
    leaf_hashes: jax.Array
    opaque_zero: jax.Array


def make_salts(
    seed: ArrayLike, count: jax.Array, *, leaves: int, use: Use
) -> list[Salt]:
    """Make a salt for each leaf.

    Args:
        seed: uint32 scalar.
        count: int32 scalar, the steps before this one.
        leaves: The number of leaves.
        use: What the bits round.
    """
    indices = np.arange(leaves, dtype=np.uint32)
    shared = _hash_step(seed, count, np.uint32(use == "parameters"), indices)
    return [Salt(index, *shared) for index in indices]


@jax.jit
def _hash_step(
    seed: jax.Array, count: jax.Array, use: jax.Array, leaf_indices: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    step_hash = hash32(hash32(hash32(seed) + use) + count.astype(jnp.uint32))
    leaf_hashes = barrier_on_gpu(hash32(step_hash + leaf_indices))
    opaque_zero = (count < 0).astype(jnp.uint32).reshape(1)
    return step_hash, leaf_hashes, opaque_zero


@jax.jit  # traced once for both moments of a leaf
def make_random_bits(like: jax.Array, salt: Salt) -> jax.Array:
    """Make 32 random bits, as uint32, for each element of an array.

    The same salt and shape always give the same bits.
    """
    leaf_hash = lax.platform_dependent(
        salt, cpu=read_leaf_hash_opaquely, tpu=compute_leaf_hash, default=read_leaf_hash
    )
    # Only a part of `hash32`: the leaf's hash is mixed already.
    x = (linear_index(like) + leaf_hash) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def read_leaf_hash(salt: Salt) -> jax.Array:
    """Read the leaf's hash from the array that all leaves share.

    On a GPU this is what lets XLA make one kernel of several leaves: `barrier_on_gpu`.
    """
    index = jnp.asarray(salt.leaf_index).reshape(1)
    return lax.dynamic_slice(salt.leaf_hashes, index, (1,)).reshape(())


def read_leaf_hash_opaquely(salt: Salt) -> jax.Array:
    """Read the leaf's hash by an index that is only known when the program runs.

    XLA on CPU compiles identical kernels once. With a known index, it would write the
    index into the kernel, which would then differ for every leaf.
    """
    either = jnp.stack([salt.leaf_index, ~salt.leaf_index])
    index = lax.dynamic_slice(either, salt.opaque_zero, (1,))
    return lax.dynamic_slice(salt.leaf_hashes, index, (1,)).reshape(())


def compute_leaf_hash(salt: Salt) -> jax.Array:
    """Compute the leaf's hash.

    A TPU has registers for scalars, but would hold the array of hashes in memory.
    """
    return hash32(salt.step_hash + salt.leaf_index)


def linear_index(like: jax.Array) -> jax.Array:
    """Return the index of each element in its flattened array, modulo 2³².

    The result is sharded like the array.
    """
    index = partial(_linear_index_of_shape, like.shape)
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return index()  # XLA chooses the same sharding
    index_on_auto_axes: Any = jax.sharding.auto_axes(index, out_sharding=sharding)
    return index_on_auto_axes()


def _linear_index_of_shape(shape: tuple[int, ...]) -> jax.Array:
    return lax.platform_dependent(
        tpu=partial(linear_index_by_iota, shape),
        default=partial(linear_index_by_sum, shape),
    )


def linear_index_by_sum(shape: tuple[int, ...]) -> jax.Array:
    """Add the strided indices of all axes."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def linear_index_by_iota(shape: tuple[int, ...]) -> jax.Array:
    """Reshape a flat count.

    On a TPU the sum would need separate kernels for rows and columns. On other
    platforms the count is not faster, and it communicates if shards are uneven.
    """
    return lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def hash32(x: jax.Array) -> jax.Array:
    """Hash 32 bits to 32 bits, so that each bit depends on all.

    The multipliers are "lowbias32" of Ellis and Wellons' hash prospector (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
