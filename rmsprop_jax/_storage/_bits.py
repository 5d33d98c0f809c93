"""Random bits without a key: a hash of the seed, the step, the leaf and the element.

The same run has the same bits, and so it has them however a leaf is sharded. What lies
outside the program's view of a leaf they can't depend on: under ``vmap``, ``pmap`` and
``shard_map`` each part has the same bits, unless it has a seed of its own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rmsprop_jax._storage._memory import in_memory_on_gpu

Use = Literal["state", "parameters"]


class Salt(NamedTuple):
    """What tells the bits of one leaf at one step from all others.

    Attributes:
        all: uint32, one for each leaf: a hash of the seed, the step and the leaf.
        leaf: uint32 of shape (2,): the leaf's number, and another one.
        first: uint32 of shape (1,): where in ``leaf`` its number is. That is 0, but no
            compiler can know.
    """

    all: jax.Array
    leaf: np.ndarray | jax.Array
    first: jax.Array


def salts(seed: ArrayLike, count: jax.Array, *, leaves: int, use: Use) -> list[Salt]:
    """A salt for each leaf.

    Args:
        seed: uint32 scalar.
        count: int32 scalar, the steps before this one.
        leaves: How many leaves there are.
        use: What is rounded.
    """
    numbers = np.arange(leaves, dtype=np.uint32)
    each, first = _salts(seed, count, np.uint32(use == "parameters"), numbers)
    both = np.stack([numbers, ~numbers], axis=1)
    return [Salt(each, row, first) for row in both]


@jax.jit
def _salts(
    seed: jax.Array, count: jax.Array, use: jax.Array, numbers: jax.Array
) -> tuple[jax.Array, jax.Array]:
    step = _mixed(_mixed(_mixed(seed) + use) + count.astype(jnp.uint32))
    first = (count < 0).astype(jnp.uint32).reshape(1)
    return in_memory_on_gpu(_mixed(step + numbers)), first


@partial(jax.jit, static_argnames="shape")  # traced once for both moments of a leaf
def random_bits(shape: tuple[int, ...], salt: Salt) -> jax.Array:
    """32 random bits for each element, uint32, the same for the same salt."""
    number = lax.platform_dependent(
        salt.leaf, salt.first, cpu=_read_when_run, default=_known
    )
    own = lax.dynamic_slice(salt.all, number, (1,)).reshape(())
    index = jnp.full(shape, own)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    # Of `_mixed` what an element needs whose salt is a hash already.
    x = index * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def _read_when_run(leaf: jax.Array, first: jax.Array) -> jax.Array:
    """The leaf's number, from a place that is only known when the program runs.

    XLA on CPU compiles one kernel for all that are the same. A number that it knew
    would be written into the kernel, and make it one of its own for every leaf.
    """
    return lax.dynamic_slice(leaf, first, (1,))


def _known(leaf: jax.Array, first: jax.Array) -> jax.Array:
    del first
    return leaf[:1]


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits, in which each depends on all.

    The multipliers are the "lowbias32" of Ellis and Wellons' hash prospector (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
