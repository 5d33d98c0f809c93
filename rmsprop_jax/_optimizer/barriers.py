"""Values as they are in memory."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = TypeVar("Tree")


def settled(tree: Tree) -> Tree:
    """The tree as it is in memory; what follows computes from this.

    XLA on CPU keeps in memory whatever has several readers, such as g + λ·p, x with
    Nesterov, or the parts of a complex leaf: more words moved, and up to twice the
    time. Behind a barrier together with what was just stored, each reader computes
    such a thing for itself. (Identical barriers are merged again, so what was stored
    must be in each.) Elsewhere there is none, as a barrier can keep a compiler from
    fusing.
    """
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=_same)


def in_memory_on_gpu(x: jax.Array) -> jax.Array:
    """An array that every leaf reads from memory, on a GPU.

    There XLA makes one kernel of all leaves of one shape if they read one array in
    common. Without it each leaf is a kernel, and a small leaf's kernel is all launch.
    """
    barrier = lax.optimization_barrier
    return lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=_same)


def shared(numbers: np.ndarray | jax.Array) -> jax.Array:
    """A vector that every leaf reads from memory, on a GPU.

    Of constants only the first is read from there. One is enough, and a constant makes
    less to compile.
    """
    return _shared(numbers, 1 if isinstance(numbers, np.ndarray) else len(numbers))


@partial(jax.jit, static_argnums=1)
def _shared(numbers: jax.Array, read: int) -> jax.Array:
    return jnp.concatenate([in_memory_on_gpu(numbers)[:read], numbers[read:]])


def _same(tree: Tree) -> Tree:
    return tree
