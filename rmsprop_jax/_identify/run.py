"""Read and check the trees that the user recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._error_text import TreeDef, describe_difference, named_leaves
from rmsprop_jax._identify.thresholds import LEAST_STEPS

Leaves: TypeAlias = dict[str, np.ndarray]  # by their paths


class Run(NamedTuple):
    """A whole run: each leaf is a real array of two dimensions.

    Attributes:
        params: [T + 1, size], by the paths of the leaves.
        gradients: [T, size], by the paths of the leaves.
        shapes: The shape of each leaf at one step.
        structure: The pytree structure of the parameters.
        is_optimized: For each leaf of the parameters, whether it can be optimized.
    """

    params: Leaves
    gradients: Leaves
    shapes: list[tuple[int, ...]]
    structure: TreeDef
    is_optimized: list[bool]


class _Tree(NamedTuple):
    """The leaves that can be optimized."""

    leaves: Leaves
    structure: TreeDef
    is_optimized: list[bool]


def read_run(params: optax.Params, gradients: optax.Updates) -> Run:
    """Read what the user recorded.

    Raises:
        TypeError: If a leaf is not an array of numbers.
        ValueError: If the trees, their lengths or their shapes do not match. The error
            names the leaf.
    """
    p_tree, g_tree = _read_trees(params, gradients)
    _check_trees(p_tree.leaves, g_tree.leaves)
    check_finite("params", p_tree.leaves)
    return Run(
        params={name: _to_real_rows(p) for name, p in p_tree.leaves.items()},
        gradients={name: _to_real_rows(g) for name, g in g_tree.leaves.items()},
        shapes=[_get_real_shape(p) for p in p_tree.leaves.values()],
        structure=p_tree.structure,
        is_optimized=p_tree.is_optimized,
    )


def _read_trees(params: optax.Params, gradients: optax.Updates) -> tuple[_Tree, _Tree]:
    if isinstance(params, list | tuple) and isinstance(gradients, list | tuple):
        # If both were trees whose root is a list, the lists would have the same length.
        if len(params) == len(gradients) + 1 > 1:
            return _stack_steps("params", params), _stack_steps("gradients", gradients)
        if any(isinstance(x, Mapping) for x in (*params[:1], *gradients[:1])):
            raise ValueError(
                "params must have one tree more than gradients, because the parameters "
                "before the first step come first, but there were "
                f"{len(params)} trees of params and {len(gradients)} of gradients."
            )
    return _read_tree("params", params), _read_tree("gradients", gradients)


def _stack_steps(what: str, steps: Iterable[object]) -> _Tree:
    """Stack one tree per step into one tree."""
    trees = [_read_tree(what, step) for step in steps]
    first = trees[0].leaves
    for i, tree in enumerate(trees):
        odd = describe_difference(list(tree.leaves), list(first))
        if not odd:
            odd = "; ".join(
                f"leaf {name} has shape {x.shape}, and {first[name].shape} at first"
                for name, x in tree.leaves.items()
                if x.shape != first[name].shape
            )
        if odd:
            raise ValueError(
                f"{what} must have the same leaves at every step, but in tree {i} "
                f"(from 0) {odd}."
            )
    leaves = {name: np.stack([tree.leaves[name] for tree in trees]) for name in first}
    return trees[0]._replace(leaves=leaves)


def _read_tree(what: str, tree: object) -> _Tree:
    if isinstance(tree, Mapping) and not isinstance(tree, dict):
        tree = dict(tree)  # an open .npz file
    arrays = {name: _read_array(what, name, x) for name, x in named_leaves(tree)}
    optimized = {
        name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)
    }
    flags = [name in optimized for name in arrays]
    return _Tree(optimized, jax.tree.structure(tree), flags)


def _read_array(what: str, name: str, leaf: object) -> np.ndarray:
    x = np.asarray(leaf)
    if x.dtype.kind == "V" and x.dtype.itemsize == 2 and x.dtype.names is None:
        return x.view(jnp.bfloat16)  # np.save stores bfloat16 as two nameless bytes
    if jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool:
        return x
    advice = ""
    if x.dtype.kind == "V":
        advice = (
            " np.save does not store the name of this dtype. Restore it, for example "
            "with .view(ml_dtypes.float8_e4m3fn)."
        )
    raise TypeError(
        f"{what}: leaf {name} must be an array of numbers, but its dtype was "
        f"{x.dtype.str}.{advice}"
    )


def _check_trees(params: Leaves, gradients: Leaves) -> None:
    odd = describe_difference(list(gradients), list(params))
    if odd:
        raise ValueError(
            f"gradients must be a tree like params, but in gradients {odd}. Give both "
            "as one tree of arrays with a leading axis of steps, or as a list of one "
            "tree per step."
        )
    if not params:
        raise ValueError("params must hold floating-point leaves, but it has none.")
    for what, leaves in (("params", params), ("gradients", gradients)):
        for name, x in leaves.items():
            if x.ndim == 0:
                raise ValueError(
                    f"{what} must be stacked, with a leading axis of steps, but leaf "
                    f"{name} was a scalar."
                )
    steps = len(next(iter(gradients.values())))
    if steps < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps, but there were {steps} "
            "gradients. A few dozen say more."
        )
    for name in params:
        p, g = params[name].shape, gradients[name].shape
        if g[0] != steps or p[0] != steps + 1:
            raise ValueError(
                "params must hold the parameters before the first step and after each, "
                f"so one more than there are gradients, but leaf {name} has {p[0]} of "
                f"parameters and {g[0]} of gradients, and the first leaf has {steps} "
                "of gradients. params is the first argument."
            )
        if p[1:] != g[1:]:
            raise ValueError(
                f"gradients: leaf {name} must have shape {g[:1] + p[1:]}, as its "
                f"parameter has, but it was {g}."
            )


def _to_real_rows(x: np.ndarray) -> np.ndarray:
    """Return an array [T, size] of float32 or wider; a complex number is two reals."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = np.stack([np.real(x), np.imag(x)], axis=-1)
    elif x.dtype.itemsize < 4:
        x = x.astype(np.float32)
    return x.reshape(len(x), -1)


def _get_real_shape(x: np.ndarray) -> tuple[int, ...]:
    """Return the shape of one step's array of reals, or of pairs of them."""
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return x.shape[1:] + ((2,) if is_complex else ())


def check_finite(what: str, leaves: Leaves, must: np.ndarray | None = None) -> None:
    for name, x in leaves.items():
        rows = x.reshape(len(x), -1)
        is_bad = ~np.isfinite(rows)
        if must is not None:
            is_bad &= must[:, None]
        if np.any(is_bad):
            step, element = np.argwhere(is_bad)[0]
            where = "in set" if what == "params" else "at step"
            raise ValueError(
                f"{what} must be finite, but leaf {name} was {rows[step, element]} "
                f"{where} {step} (from 0)."
            )
