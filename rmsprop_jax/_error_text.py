"""How errors name leaves, shardings and differences between trees."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import jax
from jax.sharding import NamedSharding, Sharding

# jax.tree_util.KeyPath, whose entries have no common type.
Path: TypeAlias = tuple[object, ...]


class TreeDef(Protocol):
    """A ``jax.tree_util.PyTreeDef``, which has no types."""

    def node_data(self) -> tuple[type, Any] | None: ...

    def children(self) -> list[TreeDef]: ...

    def unflatten(self, leaves: Iterable[object], /) -> Any: ...

    def flatten_up_to(self, tree: object, /) -> list[Any]: ...


def named_leaves(
    tree: object, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
    """Return the leaves of a tree, each with its path as a string."""
    leaves: list[tuple[Path, Any]] = jax.tree.leaves_with_path(tree, is_leaf)
    return [(path_str(path), leaf) for path, leaf in leaves]


def warn_user(message: str) -> None:
    """Warn, at the line that called this package from outside."""
    package = os.path.dirname(__file__)
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def path_str(path: Path) -> str:
    """Return a leaf's path in its tree, such as ``['layer']['bias']``."""
    return jax.tree_util.keystr(path) or "the root"


def join_first(sentences: Sequence[str], most: int = 4) -> str:
    """Join the first of many sentences into one line."""
    return "; ".join(sentences[:most]) + "; …" * (len(sentences) > most)


def describe_difference(have: Sequence[str], must: Sequence[str]) -> str:
    """Describe which leaves are missing or unexpected; empty if there are none."""
    missing = [f"leaf {name} is missing" for name in must if name not in have]
    unexpected = [f"leaf {name} is unexpected" for name in have if name not in must]
    # A renamed leaf is both, so neither list may hide the other.
    if missing and unexpected:
        return f"{join_first(missing, 2)}; {join_first(unexpected, 2)}"
    return join_first(missing or unexpected)


def describe_node_mismatch(was: TreeDef, must: TreeDef) -> str:
    """Describe the first node of a tree that is of another type than it must be."""
    have, want = was.node_data(), must.node_data()
    if have == want:
        pairs = zip(was.children(), must.children(), strict=True)
        return next(
            describe_node_mismatch(*pair) for pair in pairs if pair[0] != pair[1]
        )
    names = [data[0].__name__ if data else "leaf" for data in (have, want)]
    if names[0] == names[1]:
        return f"a {names[0]} in it has other keys, or other fields that aren't leaves"
    return f"it has a {names[0]} where there must be a {names[1]}"


def describe_sharding(x: object) -> str:
    """Describe a sharding, or the sharding of an array."""
    x = getattr(x, "sharding", x)
    if isinstance(x, NamedSharding):
        return f"{x.spec} over the mesh {dict(x.mesh.shape)}"
    return f"{x}" if isinstance(x, Sharding) else f"{type(x)} without a sharding"
