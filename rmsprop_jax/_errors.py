"""How errors name leaves, differences of trees, and shardings."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, Sharding
from jax.tree_util import KeyPath


def leaf(path: KeyPath) -> str:
    """A leaf's path in its tree."""
    return jax.tree_util.keystr(path) or "the root"


def few(sentences: Sequence[str]) -> str:
    """The first of many, in one line."""
    return "; ".join(sentences[:4]) + "; …" * (len(sentences) > 4)


def difference(have: Sequence[str], must: Sequence[str]) -> str:
    """Which leaves a tree has too many or too few of; empty where it has the same."""
    odd = [f"leaf {name} is missing" for name in must if name not in have]
    odd += [f"leaf {name} is unexpected" for name in have if name not in must]
    return few(odd)


def sharding(x: object) -> str:
    """A sharding, or that of an array."""
    x = getattr(x, "sharding", x)
    if isinstance(x, NamedSharding):
        return f"{x.spec} over the mesh {dict(x.mesh.shape)}"
    return f"{x}" if isinstance(x, Sharding) else f"{type(x)} without one"
