"""Optimization barriers that make XLA read values from memory.

A barrier is placed only on the platforms where it helps. On the others it could keep
the compiler from fusing.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = TypeVar("Tree")


def barrier_on_cpu(tree: Tree) -> Tree:
    """Return the tree; on CPU, what follows computes from its stored values.

    XLA on CPU stores any value that is read several times: g + λ·p, x with Nesterov, or
    the parts of a complex leaf. This moves more words and takes up to twice the time. A
    barrier around the inputs and the field that was just stored makes each reader
    compute the value again instead. (XLA merges identical barriers, so the stored field
    must be part of each.)
    """
    barrier: object = lax.optimization_barrier
    return lax.platform_dependent(tree, cpu=barrier, default=lambda tree: tree)


def barrier_on_gpu(x: jax.Array) -> jax.Array:
    """Return the array; on a GPU, every leaf reads it from memory.

    On a GPU, XLA makes one kernel of all leaves of one shape if they share an operand
    that is an array. Otherwise each leaf gets its own kernel, and the kernel of a small
    leaf is nearly all launch time.
    """
    barrier: object = lax.optimization_barrier
    return lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=lambda x: x)


def barrier_numbers_on_gpu(numbers: np.ndarray | jax.Array) -> jax.Array:
    """Return a step's hyperparameters; on a GPU, every leaf reads them from memory.

    If they are constants, only the first is read from memory: one shared operand is
    enough, and constants leave less to compile.
    """
    shared = 1 if isinstance(numbers, np.ndarray) else len(numbers)
    return _barrier_first_on_gpu(numbers, shared)


@partial(jax.jit, static_argnums=1)
def _barrier_first_on_gpu(numbers: jax.Array, shared: int) -> jax.Array:
    return jnp.concatenate([barrier_on_gpu(numbers)[:shared], numbers[shared:]])
