"""Values as they are in memory."""

from __future__ import annotations

from typing import TypeVar

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


def _same(tree: Tree) -> Tree:
    return tree
