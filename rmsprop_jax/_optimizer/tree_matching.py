"""Match the pytrees of one update leaf by leaf, or name the leaf that does not fit."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._error_text import (
    TreeDef,
    describe_difference,
    describe_node_mismatch,
    named_leaves,
)
from rmsprop_jax._optimizer.decay_mask import spread_mask
from rmsprop_jax._optimizer.options import Config
from rmsprop_jax._optimizer.rule import Leaf
from rmsprop_jax._optimizer.state import RMSPropState


def is_none(x: object) -> bool:
    """Tell `jax.tree` to treat None as an absent leaf rather than an empty pytree."""
    return x is None


State = TypeVar("State")


def require_transformation(tx: object, example: str) -> None:
    """Raise if ``tx`` is not a gradient transformation.

    Args:
        tx: What the user gave.
        example: A correct call, for the error.
    """
    if hasattr(tx, "init") and hasattr(tx, "update"):
        return
    name = getattr(tx, "__name__", None)  # of a function, but not of a mesh
    was = f"the function {name}, which was not called" if name else f"{tx!r}"
    raise TypeError(
        f"tx must be a gradient transformation, but it was {was}. Write {example}."
    )


def require_state(state: object, expected: type[State]) -> State:
    """Return the state; raise if it isn't of the kind that ``init`` makes."""
    if not isinstance(state, expected):
        raise TypeError(
            f"state must be the {expected.__name__} that init made, but it was a "
            f"{type(state).__name__}. Call update(gradients, state, params). If you "
            "have the state of a chain, give the part that belongs to this "
            "transformation. checkpoints.from_optax converts a state of optax.rmsprop. "
            "If you restored a checkpoint without a template, its states are lists and "
            "dictionaries: restore it with tx.init(params) as the template."
        )
    return state


def require_params(what: str, params: optax.Params | None) -> optax.Params:
    """Return the parameters; raise if ``update`` was called without them."""
    if params is None:
        raise ValueError(
            f"params must be given, because {what} needs them, but it was None: call "
            "update(gradients, state, params)."
        )
    return params


class Matched(NamedTuple):
    """The leaves of one update, in the order of the parameters.

    Attributes:
        leaves: Each leaf as it is stored.
        is_updated: Whether each leaf has a gradient and can be optimized. If not, its g
            or its nu is None.
        structure: The pytree of the parameters, with None as a leaf.
    """

    leaves: list[Leaf]
    is_updated: list[bool]
    structure: TreeDef


def match_trees(
    config: Config,
    updates: optax.Updates,
    state: RMSPropState,
    params: optax.Params | None,
) -> Matched:
    """Match gradients, state, parameters and mask.

    Raises:
        ValueError: If they do not match. The error names the leaf.
    """
    nu, structure = jax.tree.flatten(state.nu, is_leaf=is_none)
    absent: list[Any] = [None] * len(nu)

    def flatten(what: str, tree: optax.Params | None) -> list[Any]:
        return _flatten_as(structure, what, tree, like=state.nu)

    _check_not_lost(config, state)
    g = flatten("The gradients", updates)
    p, mu, grad_mean, decays = absent, absent, absent, absent
    if config.rule.has_momentum:
        mu = flatten("state.mu, which momentum needs,", state.mu)
    if config.rule.centered:
        grad_mean = flatten("state.grad_mean, which centered needs,", state.grad_mean)
    if config.rule.has_weight_decay:
        params = require_params(_describe_weight_decay(config), params)
        p = flatten("params", params)
        mask_name = config.name("weight_decay_mask")
        mask = spread_mask(mask_name, config.weight_decay_mask, params)
        decays = flatten(mask_name, mask)
    elif jax.tree.structure(params, is_leaf=is_none) == structure:
        p = jax.tree.leaves(params, is_leaf=is_none)
    is_updated = [g[i] is not None and nu[i] is not None for i in range(len(nu))]
    leaves = [
        Leaf(
            g=g[i],
            # A leaf that cannot be optimized keeps p, because its zero update is like
            # p.
            p=p[i] if decays[i] or nu[i] is None else None,
            nu=nu[i],
            mu=mu[i],
            grad_mean=grad_mean[i],
        )
        for i in range(len(nu))
    ]
    for i, leaf in enumerate(leaves):
        name = _LeafName(state.nu, i)
        if g[i] is not None:
            _check_gradient_dtype(g[i], nu[i], name)
        if is_updated[i]:
            _check_leaf(config, leaf, name)
    return Matched(leaves, is_updated, structure)


def _check_not_lost(config: Config, state: RMSPropState) -> None:
    """Raise if the state has a moment that the rule does not keep."""
    if not config.rule.has_momentum and jax.tree.leaves(state.mu):
        field, option = "mu", "momentum"
    elif not config.rule.centered and jax.tree.leaves(state.grad_mean):
        field, option = "grad_mean", "centered"
    else:
        return
    raise ValueError(
        f"state.{field} must be None without {option}, because update would drop it, "
        f"but the state has one. Give the optimizer the {option} of the run that made "
        f"the state, or drop the moment yourself: state._replace({field}=None)."
    )


def _describe_weight_decay(config: Config) -> str:
    """Return what needs the parameters, for an error."""
    if isinstance(config.hyperparams.weight_decay, float):
        return "weight decay"
    return (
        "weight decay (an array or a schedule, even if it is 0: under "
        "optax.inject_hyperparams leave weight_decay out, or name it in static_args)"
    )


class _LeafName(NamedTuple):
    """The path of a leaf, found only when an error is formatted."""

    tree: optax.Params
    position: int

    def __str__(self) -> str:
        return _leaf_names(self.tree)[self.position]


def _leaf_names(tree: optax.Params | None) -> list[str]:
    return [name for name, _ in named_leaves(tree, is_leaf=is_none)]


def _flatten_as(
    expected: TreeDef,
    what: str,
    tree: optax.Params | None,
    *,
    like: optax.Params,
) -> list[object]:
    """Return the leaves of a tree, which must have the structure that `like` has."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_none)
    if structure == expected:
        return leaves
    odd = describe_difference(_leaf_names(tree), _leaf_names(like))
    odd = odd or describe_node_mismatch(structure, expected)
    raise ValueError(
        f"{what} must have the same tree structure as the parameters that init was "
        f"given, but {odd}. "
        "If the model or the optimizer has changed, make a new state with init, and "
        "copy into it what still fits of the old one."
    )


def _check_leaf(config: Config, leaf: Leaf, name: _LeafName) -> None:
    """Raise if the arrays of a leaf do not fit its second moment."""
    if config.rule.cautious and jnp.iscomplexobj(leaf.g):
        raise ValueError(
            f"{config.name('cautious')} is for real leaves, but the gradient of leaf "
            f"{name} was complex. Leave it out, or give this leaf its own "
            "transformation with optax.partition."
        )
    _check_shape("The gradients", leaf.g, leaf, name)
    if config.rule.has_momentum:
        _check_shape("state.mu", leaf.mu, leaf, name)
    if config.rule.centered:
        _check_shape("state.grad_mean", leaf.grad_mean, leaf, name)
    if leaf.p is not None:
        _check_shape("params", leaf.p, leaf, name)


def _check_shape(what: str, x: Any, leaf: Leaf, name: _LeafName) -> None:
    shape = None if x is None else jnp.shape(x)
    if shape != leaf.nu.shape:
        raise ValueError(
            f"{what}: leaf {name} must have shape {leaf.nu.shape}, as its parameter "
            f"had when init saw it, but it was {shape}."
        )


def _check_gradient_dtype(g: Any, nu: Any, name: _LeafName) -> None:
    """Raise if a gradient is of another kind than its parameter was."""
    dtype = g.dtype if hasattr(g, "dtype") else jnp.result_type(g)
    optimizable = jnp.issubdtype(dtype, jnp.inexact)
    if nu is None and optimizable:
        raise ValueError(
            f"The gradient of leaf {name} was {dtype}, but its parameter was an "
            "integer, a boolean or None when init saw it, so it has no state and "
            "can't be optimized. Make the parameter floating-point, or leave it out "
            "with optax.masked."
        )
    if nu is None:
        return
    is_complex = jnp.issubdtype(getattr(nu, "dtype", jnp.int8), jnp.complexfloating)
    if not optimizable or jnp.iscomplexobj(g) != is_complex:
        kind = "complex" if is_complex else "real and floating-point"
        raise ValueError(
            f"The gradient of leaf {name} must be {kind}, as its parameter was when "
            f"init saw it, but it was {dtype}."
        )
