"""Which leaves decay: the user's mask, spread over the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._error_text import (
    Path,
    describe_node_mismatch,
    join_first,
    path_str,
)
from rmsprop_jax._optimizer.options import Mask


def spread_mask(name: str, mask: Mask | None, params: optax.Params) -> optax.Params:
    """Return a pytree like the parameters that says of each leaf whether it decays.

    Args:
        name: What the user calls the mask, for errors.
        mask: A pytree of booleans like the parameters, a prefix of one, a function from
            the parameters to one, or None if all leaves decay.
        params: The parameters.

    Raises:
        ValueError: If the mask does not fit the parameters. It names the leaf.
    """
    # A callable module, such as Equinox's, is a mask and not a function to one.
    is_one_leaf = jax.tree_util.all_leaves([mask])
    decays = mask(params) if is_one_leaf and callable(mask) else mask
    if decays is None:
        decays = True
    elif decays is mask and is_one_leaf and not jax.tree_util.all_leaves([params]):
        raise ValueError(
            f"{name} must be a pytree of booleans with the structure of the "
            f"parameters, or a function from them to one, but it was {mask}. To decay "
            "all leaves, leave it out. optax.inject_hyperparams takes a function for a "
            f"schedule: add static_args={name!r}."
        )
    mismatch = describe_prefix_mismatch(decays, params)
    if mismatch:
        raise ValueError(
            f"{name} must be a pytree of booleans with the structure of the "
            "parameters, or a prefix of it, or a function from them to one, but "
            f"{mismatch}"
        )

    def spread(path: Path, decays: ArrayLike, under: optax.Params) -> optax.Params:
        if jnp.ndim(decays):
            raise ValueError(
                f"{name} must have one boolean per leaf, but leaf {path_str(path)} was "
                f"an array of shape {jnp.shape(decays)}."
            )
        leaves, structure = jax.tree.flatten(under)
        return structure.unflatten([bool(decays)] * len(leaves))

    return jax.tree.map_with_path(spread, decays, params)


def describe_prefix_mismatch(mask: object, params: optax.Params) -> str:
    """Describe why a mask isn't a prefix of the parameters; empty if it is one."""
    try:
        jax.tree.broadcast(mask, params)
    except ValueError:
        pass
    else:
        return ""
    have, want = _leaf_paths(mask), _leaf_paths(params)
    odd = [
        f"leaf {path_str(path)} is unexpected"
        for path in have
        if not any(path == other[: len(path)] for other in want)
    ] + [
        f"leaf {path_str(path)} is missing"
        for path in want
        if not any(other == path[: len(other)] for other in have)
    ]
    nodes = describe_node_mismatch(jax.tree.structure(mask), jax.tree.structure(params))
    why = (join_first(odd) or nodes) + "."
    if any(map(_is_masked, jax.tree.leaves(params, is_leaf=_is_masked))):
        why += (
            " The parameters are masked, as inside optax.masked and optax.partition. "
            "Give a function there, which sees only the leaves that are left: "
            "lambda params: jax.tree.map(lambda p: p.ndim > 1, params)."
        )
    return why


def _is_masked(x: object) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_none_or_masked(x: object) -> bool:
    return x is None or _is_masked(x)


def _leaf_paths(tree: object) -> list[Path]:
    return [path for path, _ in jax.tree.leaves_with_path(tree, _is_none_or_masked)]
