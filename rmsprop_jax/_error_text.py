"""How errors name leaves, differences of trees, and shardings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def kinds(was: Any, must: Any) -> str:
    """The first node of a tree's structure that is of another kind than it must be."""
    if was.node_data() == must.node_data():
        pairs = zip(was.children(), must.children(), strict=True)
        return next(kinds(*pair) for pair in pairs if pair[0] != pair[1])
    have, want = (
        data[0].__name__ if (data := node.node_data()) else "leaf"
        for node in (was, must)
    )
    if have == want:
        return f"a {have} in it has other keys, or other fields that are no leaves"
    return f"it has a {have} where there must be a {want}"


def sharding(x: object) -> str:
    """A sharding, or that of an array."""
    x = getattr(x, "sharding", x)
    if isinstance(x, NamedSharding):
        return f"{x.spec} over the mesh {dict(x.mesh.shape)}"
    return f"{x}" if isinstance(x, Sharding) else f"{type(x)} without one"
