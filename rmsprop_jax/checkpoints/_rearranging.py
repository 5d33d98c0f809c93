"""The check that a user's function only rearranges.

The function goes from the names of another framework to a JAX model's parameters, or
back. It gets each parameter filled with a mark of its own, in the same way as it gets
the moments. The marks show what each leaf is made of. They also show what was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax._error_text import (
    path_str,
)
from rmsprop_jax.checkpoints._arrays import as_array

T = TypeVar("T")
R = TypeVar("R")


def apply(what: str, function: Callable[[T], R] | None, tree: T) -> T | R:
    """What the user's function, `what`, makes of a tree; without it the tree itself."""
    if function is None:
        return tree
    try:
        return function(tree)
    except KeyError as error:
        raise ValueError(
            f"{what} must do with what the optimizer holds, but it asked for {error}, "
            "which is not there. Let it pass over what is missing, such as running "
            "means or frozen weights."
        ) from error


def mark(n: int) -> float:
    """What parameter (or group) n is filled with: no function's fixed point."""
    return -(n + 1.5)


def marks_in(what: str, where: str, leaf: npt.ArrayLike, count: int) -> dict[int, int]:
    """How often a leaf has each of the marks of 0 to `count` − 1.

    Raises:
        ValueError: Where the leaf has other values, or too few digits.
    """
    dtype = str(getattr(leaf, "dtype", type(leaf)))
    if not any(wide in dtype for wide in ("float32", "float64", "complex")):
        raise ValueError(
            f"{what} must leave the dtype as it is, so that no digits are lost, but "
            f"it made {where} {dtype}. Cast the parameters after it."
        )
    array = as_array(leaf).reshape(-1)
    # Most leaves are of one parameter. They need no sorting.
    found, times = array[:1], np.array([array.size])
    if (array != found).any():
        found, times = np.unique(array, return_counts=True)
    owners = [int(n) for n in np.round(-1.5 - np.real(np.nan_to_num(found)))]
    marks = zip(owners, found, strict=False)
    if not all(0 <= n < count and x == mark(n) for n, x in marks):
        raise ValueError(
            f"{what} must only rearrange what it is given, as the optimizer's buffers "
            f"are no weights, but it computed or added values in {where}."
        )
    return {n: int(often) for n, often in zip(owners, times, strict=False)}


def check_alike(marked: optax.Params, made: optax.Params, key: str) -> None:
    """Raises where to_params made another tree of the buffers `key` than of marks."""
    expected = jax.tree_util.tree_leaves_with_path(marked)
    if jax.tree.structure(made) != jax.tree.structure(marked):
        raise ValueError(
            f"to_params must make the same tree of all buffers, but of {key!r} it made "
            f"{jax.tree.structure(made)} instead of {jax.tree.structure(marked)}. It "
            "must not look at the values."
        )
    for (path, like), leaf in zip(expected, jax.tree.leaves(made), strict=True):
        if np.shape(leaf) != np.shape(like):
            raise ValueError(
                "to_params must treat all buffers of a parameter alike, but in leaf "
                f"{path_str(path)} of {key!r} it made the shape "
                f"{np.shape(leaf)}, and {np.shape(like)} of others with the same "
                "shape. It must not look at the values."
            )
