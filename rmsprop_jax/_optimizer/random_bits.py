"""Random bits without a key: a hash of the seed, the step, the leaf and the element.

The same run has the same bits, and so it has them however a leaf is sharded. What lies
outside the program's view of a leaf they can't depend on: under ``vmap``, ``pmap`` and
``shard_map`` each part has the same bits, unless it has a seed of its own.
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

from rmsprop_jax._storage._memory import in_memory_on_gpu

Use = Literal["state", "parameters"]


class Salt(NamedTuple):
    """What tells the bits of one leaf at one step from all others.

    Attributes:
        number: uint32 scalar, the leaf's.
        step: uint32 scalar: a hash of the seed, the step and the use.
        all: uint32, one for each leaf: a hash of the step's and the leaf's number.
        zero: uint32 of shape (1,): 0, but no compiler can know.
    """

    number: np.uint32 | jax.Array
    step: jax.Array
    all: jax.Array
    zero: jax.Array


def salts(seed: ArrayLike, count: jax.Array, *, leaves: int, use: Use) -> list[Salt]:
    """A salt for each leaf.

    Args:
        seed: uint32 scalar.
        count: int32 scalar, the steps before this one.
        leaves: How many leaves there are.
        use: What is rounded.
    """
    numbers = np.arange(leaves, dtype=np.uint32)
    rest = _of_step(seed, count, np.uint32(use == "parameters"), numbers)
    return [Salt(number, *rest) for number in numbers]


@jax.jit
def _of_step(
    seed: jax.Array, count: jax.Array, use: jax.Array, numbers: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    step = _mixed(_mixed(_mixed(seed) + use) + count.astype(jnp.uint32))
    zero = (count < 0).astype(jnp.uint32).reshape(1)
    return step, in_memory_on_gpu(_mixed(step + numbers)), zero


@jax.jit  # traced once for both moments of a leaf
def random_bits(like: jax.Array, salt: Salt) -> jax.Array:
    """32 random bits for each element, uint32, the same for the same salt."""
    own = lax.platform_dependent(salt, cpu=_read_when_run, tpu=_computed, default=_read)
    index = _index(like)
    # Of `_mixed` what an element needs whose salt is a hash already.
    x = (index + own) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def _read(salt: Salt) -> jax.Array:
    """The leaf's own hash. On a GPU all leaves read one array: `in_memory_on_gpu`."""
    number = salt.number.reshape(1)
    return lax.dynamic_slice(salt.all, number, (1,)).reshape(())


def _read_when_run(salt: Salt) -> jax.Array:
    """The same, from a place that is only known when the program runs.

    XLA on CPU compiles one kernel for all that are the same. A number that it knew
    would be written into the kernel, and make it one of its own for every leaf.
    """
    either = jnp.stack([salt.number, ~salt.number])
    number = lax.dynamic_slice(either, salt.zero, (1,))
    return lax.dynamic_slice(salt.all, number, (1,)).reshape(())


def _computed(salt: Salt) -> jax.Array:
    """The same. A TPU has scalars of its own; an array would be held in memory."""
    return _mixed(salt.step + salt.number)


def _index(like: jax.Array) -> jax.Array:
    """The place of each element in its leaf, modulo 2³², and sharded like it."""

    def index() -> jax.Array:
        return lax.platform_dependent(
            tpu=partial(_counted, like.shape), default=partial(_summed, like.shape)
        )

    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return index()  # XLA sees to it
    on_auto: Any = jax.sharding.auto_axes(index, out_sharding=sharding)
    return on_auto()


def _summed(shape: tuple[int, ...]) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def _counted(shape: tuple[int, ...]) -> jax.Array:
    """On a TPU, where a sum becomes kernels of their own for rows and columns.

    Elsewhere it is no better, and where shards are uneven it communicates.
    """
    return lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits, in which each depends on all.

    The multipliers are the "lowbias32" of Ellis and Wellons' hash prospector (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
