"""Check that a user's function only rearranges.

The function converts a dictionary by another framework's names to the parameters of a
JAX model, or back. Before it gets the moments, it gets each parameter filled with a
different number, its mark. The marks show which parameters each leaf is made of, and
whether the function computed anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax._error_text import Path, TreeDef, named_leaves
from rmsprop_jax.checkpoints._convert.arrays import NumpyArray, Value, fill_each
from rmsprop_jax.checkpoints._convert.placement import View, find_views

T = TypeVar("T")
R = TypeVar("R")


def apply_function(what: str, function: Callable[[T], R] | None, tree: T) -> T | R:
    """Apply the user's function, called `what`, if there is one."""
    if function is None:
        return tree
    try:
        return function(tree)
    except KeyError as error:
        has = [repr(name) for name in tree] if isinstance(tree, Mapping) else []
        close = difflib.get_close_matches(str(error), has, 4, 0.0)
        similar = f"The most similar names are {', '.join(close)}. " if close else ""
        raise ValueError(
            f"{what} must work with the names that it is given, but it asked for "
            f"{error}. {similar}If it is a running mean or a frozen weight, of which "
            f"an optimizer has no state, let {what} skip it where it is missing."
        ) from error


class TracedTree(NamedTuple):
    """The pytree that to_params makes, independent of the parameters' values.

    Attributes:
        structure: The pytree structure of the model's parameters.
        paths: The path of each leaf.
        names: The path of each leaf as text, for errors.
        shapes: The shape of each leaf.
        counts: For each leaf, how many elements it has of each parameter, by number.
        views: Which part of a parameter each leaf is; None if it was copied.
    """

    structure: TreeDef
    paths: list[Path]
    names: list[str]
    shapes: list[tuple[int, ...]]
    counts: list[dict[int, int]]
    views: list[View | None]


def trace_to_params(
    to_params: Callable[[dict[str, NumpyArray]], optax.Params] | None,
    values: Mapping[str, Value],
    key: str,
) -> TracedTree:
    """Find out what the user's function makes of parameters like these.

    Args:
        to_params: The user's function.
        values: A moment of each parameter, by the parameter's name.
        key: What the other framework calls the moment.

    Raises:
        ValueError: If it does not only rearrange.
    """
    marks = fill_each([*values.values()], [make_mark(n) for n in range(len(values))])
    marked = dict(zip(values, marks, strict=True))
    tree = apply_function("to_params", to_params, marked)
    leaves = named_leaves(tree)
    traced = TracedTree(
        structure=jax.tree.structure(tree),
        paths=[path for path, _ in jax.tree.leaves_with_path(tree)],
        names=[name for name, _ in leaves],
        shapes=[np.shape(leaf) for _, leaf in leaves],
        counts=count_marks(
            "to_params", [(f"leaf {name}", leaf) for name, leaf in leaves], len(values)
        ),
        views=[],
    )
    if to_params is None:
        names = [*values]  # JAX sorts the leaves of a dictionary
        order = sorted(range(len(names)), key=lambda n: names[n])
        return traced._replace(views=[View(n, 0, marks[n].shape) for n in order])
    # The zeros take no memory, because the system allocates it when they are written,
    # and they are only read. A leaf's address shows of which parameter it is a view.
    zeros = [np.zeros(mark.shape, mark.dtype) for mark in marks]
    for array in zeros:
        array.flags.writeable = False
    made = apply_function("to_params", to_params, dict(zip(values, zeros, strict=True)))
    check_alike(traced, made, key)
    views = find_views(jax.tree.leaves(made), zeros)
    return traced._replace(views=views)


def make_mark(number: int) -> float:
    """Return the mark that a parameter (or a group) of this number is filled with.

    No usual function leaves it unchanged.
    """
    return -(number + 1.5)


def count_marks(
    what: str, leaves: Iterable[tuple[str, npt.ArrayLike]], marks: int
) -> list[dict[int, int]]:
    """Return how often each leaf contains each of the first `marks` marks.

    Args:
        what: What the user calls the function that made the leaves.
        leaves: The leaves, each after what errors call it.
        marks: The number of marks.

    Raises:
        ValueError: If a leaf has other values, or a dtype with too few digits.
    """
    return [_count_marks_of_leaf(what, where, leaf, marks) for where, leaf in leaves]


def _count_marks_of_leaf(
    what: str, where: str, leaf: npt.ArrayLike, marks: int
) -> dict[int, int]:
    dtype = str(getattr(leaf, "dtype", type(leaf)))
    if not any(wide in dtype for wide in ("float32", "float64", "complex")):
        raise ValueError(
            f"{what} must not change the dtype, because digits would be lost, but "
            f"{where} was {dtype}. Cast the parameters afterwards."
        )
    array: NumpyArray = np.asarray(leaf).reshape(-1)
    # Most leaves come from one parameter, and need no sorting; without to_params their
    # elements are the same one.
    values, counts = array[:1], np.array([array.size])
    if any(array.strides) and (array != values).any():
        values, counts = np.unique(array, return_counts=True)
    numbers = [int(n) for n in np.round(-1.5 - np.real(np.nan_to_num(values)))]
    pairs = zip(numbers, values, strict=False)
    if not all(0 <= n < marks and value == make_mark(n) for n, value in pairs):
        raise ValueError(
            f"{what} must only rearrange what it is given, because the optimizer's "
            f"moments are not weights, but it computed or added values in {where}."
        )
    return {n: int(count) for n, count in zip(numbers, counts, strict=False)}


def check_alike(traced: TracedTree, made: optax.Params, key: str) -> None:
    """Raise if to_params makes a different tree from a moment than from the marks.

    Args:
        traced: What to_params made from the marks.
        made: What to_params made from the moment.
        key: What the other framework calls the moment.
    """
    structure = jax.tree.structure(made)
    if structure != traced.structure:
        raise ValueError(
            f"to_params must make the same pytree from every moment, but from {key!r} "
            f"it made {structure} instead of {traced.structure}. What it does must not "
            "depend on the values."
        )
    leaves = zip(traced.names, traced.shapes, jax.tree.leaves(made), strict=True)
    for name, shape, leaf in leaves:
        if np.shape(leaf) != shape:
            raise ValueError(
                "to_params must treat all moments of a parameter alike, but it gave "
                f"leaf {name} the shape {np.shape(leaf)} for {key!r}, and the shape "
                f"{shape} for other arrays of the same shapes. What it does must not "
                "depend on the values."
            )
