"""The user's functions between torch's layout and the model's, held to rearranging.

Trees in which each parameter is filled with a label of its own go through them as the
buffers do. They show what each leaf is made of, and values that were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import _errors
from rmsprop_jax._state import RMSPropState
from rmsprop_jax._torch_kinds import to_array
from rmsprop_jax.precision import widened


def apply(what: str, function: Callable[..., Any] | None, tree: Any) -> Any:
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


def label(n: Any) -> Any:
    """What parameter (or group) n is filled with: no function's fixed point."""
    return -(n + 1.5)


def labels_in(what: str, where: str, leaf: Any, count: int) -> dict[int, int]:
    """How often a leaf has each of the labels of 0 to `count` − 1."""
    dtype = str(getattr(leaf, "dtype", type(leaf)))
    if not any(wide in dtype for wide in ("float32", "float64", "complex")):
        raise ValueError(
            f"{what} must leave the dtype as it is, so that no digits are lost, but "
            f"it made {where} {dtype}. Cast the parameters after it."
        )
    array = to_array(leaf).reshape(-1)
    # Most leaves are of one parameter: no need to sort them.
    found, times = array[:1], [array.size]
    if (array != found).any():
        found, times = np.unique(array, return_counts=True)
    numbers = np.round(-1.5 - np.real(np.nan_to_num(found)))
    if not ((found == label(numbers)) & (numbers >= 0) & (numbers < count)).all():
        raise ValueError(
            f"{what} must only rearrange what it is given, as the optimizer's buffers "
            f"are no weights, but it computed or added values in {where}."
        )
    return {int(n): int(often) for n, often in zip(numbers, times, strict=False)}


def check_alike(labels: Any, made: Any, key: str) -> None:
    """Raises where to_params made another tree of the buffers `key` than of labels."""
    expected = jax.tree_util.tree_leaves_with_path(labels)
    if jax.tree.structure(made) != jax.tree.structure(labels):
        raise ValueError(
            f"to_params must make the same tree of all buffers, but of {key!r} it made "
            f"{jax.tree.structure(made)} instead of {jax.tree.structure(labels)}. It "
            "must not look at the values."
        )
    for (path, like), leaf in zip(expected, jax.tree.leaves(made), strict=True):
        if np.shape(leaf) != np.shape(like):
            raise ValueError(
                "to_params must treat all buffers of a parameter alike, but in leaf "
                f"{_errors.leaf(path)} of {key!r} it made the shape "
                f"{np.shape(leaf)}, and {np.shape(like)} of others with the same "
                "shape. It must not look at the values."
            )


def masked(tree: Any, owners: Sequence[int], owner: int) -> Any:
    """The tree with the leaves of one owner, as ``optax.partition`` hides the rest."""
    if tree is None:
        return None
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        leaf if of == owner else optax.MaskedNode()
        for leaf, of in zip(leaves, owners, strict=True)
    )


def merged(trees: Sequence[Any]) -> Any:
    """The inverse: one tree of those that `masked` made for each owner."""

    def is_masked(x):
        return isinstance(x, optax.MaskedNode)

    def unmasked(*leaves):
        return next((x for x in leaves if not is_masked(x)), leaves[0])

    return jax.tree.map(unmasked, *trees, is_leaf=is_masked)


def groups_of(opt_state: Any) -> list[RMSPropState]:
    """The states of the groups."""
    inner = [opt_state]
    if isinstance(opt_state, optax.PartitionState):
        groups = opt_state.inner_states.values()
        inner = [getattr(state, "inner_state", state) for state in groups]
    parts = [state for state in inner if isinstance(state, RMSPropState)]
    if len(parts) < len(inner):
        raise TypeError(
            "opt_state must be an RMSPropState, or the state of an optax.partition of "
            f"rmsprop, but it was {type(opt_state).__name__}. Of a chain, give the "
            "part that is."
        )
    return parts


def field_of(part: RMSPropState, field: str) -> Any:
    """One tree of a state, at least float32; zeros where the state has none."""
    tree = getattr(part, field)
    if tree is None:
        return jax.tree.map(jnp.zeros_like, field_of(part, "nu"))
    return widened(tree)
