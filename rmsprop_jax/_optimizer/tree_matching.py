"""Trees that belong together: matched leaf by leaf, or refused with the leaf's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from rmsprop_jax import _errors
from rmsprop_jax._options import Mask, Options
from rmsprop_jax._rule import Leaf
from rmsprop_jax._state import RMSPropState


def is_none(x: object) -> bool:
    """For `is_leaf`, where None stands for an absent leaf rather than an empty tree."""
    return x is None


def given(what: str, params: optax.Params | None) -> optax.Params:
    """The parameters, which `what` needs; raises where `update` was called without."""
    if params is None:
        raise ValueError(
            f"params must be given, as {what} needs them, but it was None: call "
            "update(gradients, state, params)."
        )
    return params


def made_by_init(state: object, kind: type) -> None:
    """Raises where `update` was given another state than its `init` makes."""
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init made, but it was a "
            f"{type(state).__name__}. Call update(gradients, state, params). Of a "
            "chain's state give the part that is one. Of a state of optax.rmsprop "
            "checkpoints.from_optax makes one. A checkpoint that was restored without "
            "a template is lists and dictionaries: restore it with tx.init(params)."
        )


def matched(
    options: Options,
    updates: optax.Updates,
    state: RMSPropState,
    params: optax.Params | None,
) -> tuple[list[Leaf], Callable[[Iterable[Any]], Any]]:
    """Every `Leaf` as it is kept, and what makes a tree like these of as many leaves.

    What the rule does not use is None. The parameter is there where the leaf decays,
    and where it is an integer.

    Raises:
        ValueError: Where the gradients, the parameters, the mask and the state do not
            belong together. It names the leaf.
        TypeError: Where the state is another one.
    """
    made_by_init(state, RMSPropState)
    nus: list[Any]
    nus, structure = jax.tree.flatten(state.nu, is_leaf=is_none)
    rule = options.rule

    def leaves(what: str, tree: optax.Params) -> list[Any]:
        return _leaves(what, tree, state.nu, structure)

    gs = leaves("The tree of the gradients", updates)
    mus: list[Any] = [None] * len(nus)
    ps, means, decays = list(mus), list(mus), [False] * len(nus)
    if rule.momentum:
        mus = leaves("state.mu, which momentum needs,", state.mu)
    if rule.centered:
        means = leaves("state.grad_mean, which centered needs,", state.grad_mean)
    if options.decays:
        params = given("weight decay", params)
        ps = leaves("The tree of params", params)
        mask = _mask(options.name("weight_decay_mask"), options.weight_decay_mask)
        decays = leaves(options.name("weight_decay_mask"), mask(params))
    elif jax.tree.structure(params, is_leaf=is_none) == structure:
        ps = jax.tree.leaves(params, is_leaf=is_none)

    found = []
    for i, (g, p, nu, mu, mean) in enumerate(zip(gs, ps, nus, mus, means, strict=True)):

        def check(what: str, leaf: Any, i: int = i, nu: Any = nu) -> None:
            shape = None if leaf is None else jnp.shape(leaf)
            if shape != nu.shape:
                name = _name(state.nu, i)
                raise ValueError(_other_shape(what, name, shape, nu.shape))

        if g is not None:
            _check_kind(lambda i=i: _name(state.nu, i), g, nu)
        if g is not None and nu is not None:
            if rule.cautious and jnp.iscomplexobj(g):
                raise ValueError(
                    f"{options.name('cautious')} is for real leaves, but the gradient "
                    f"of leaf {_name(state.nu, i)} was complex. Leave it out, or give "
                    "this leaf a rule of its own with optax.partition."
                )
            check("The gradients", g)
            if rule.momentum:
                check("state.mu", mu)
            if rule.centered:
                check("state.grad_mean", mean)
            if decays[i]:
                check("params", p)
        row: Any = (g, p if decays[i] or nu is None else None, nu, mu, mean)
        found.append(Leaf(*row))
    return found, structure.unflatten


def _names(tree: optax.Params) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)
    return [_errors.leaf(path) for path, _ in paths]


def _name(tree: optax.Params, i: int) -> str:
    return _names(tree)[i]


def _leaves(
    what: str, tree: optax.Params, like: optax.Params, structure: object
) -> list[Any]:
    """The leaves of a tree that must be like the state's second moment."""
    leaves, its_structure = jax.tree.flatten(tree, is_leaf=is_none)
    if its_structure == structure:
        return leaves
    odd = _errors.difference(_names(tree), _names(like))
    odd = odd or _errors.kinds(its_structure, structure)
    raise ValueError(
        f"{what} must be a tree like the parameters that init was given, but {odd}. "
        "If the model or the optimizer has changed, make a new state with init."
    )


def _mask(name: str, mask: Mask | None) -> Callable[[optax.Params], optax.Params]:
    """From the parameters to a tree like them that says of each leaf if it decays."""

    def whole(params: optax.Params) -> optax.Params:
        # A module that can be called is a tree all the same.
        is_one_leaf = jax.tree_util.all_leaves([mask])
        found: Any = mask(params) if is_one_leaf and callable(mask) else mask
        if found is None:
            found = True
        elif found is mask and is_one_leaf and not jax.tree_util.all_leaves([params]):
            raise ValueError(
                f"{name} must be a tree of booleans like the parameters, or a function "
                f"from them to one, but it was {mask}. If all leaves shall decay, "
                "leave it out. optax.inject_hyperparams takes a function for a "
                f"schedule: add static_args={name!r}."
            )

        def spread(path: KeyPath, decays: Any, under: optax.Params) -> optax.Params:
            if jnp.ndim(decays):
                raise ValueError(
                    f"{name} must have one boolean for a leaf, but leaf "
                    f"{_errors.leaf(path)} was an array of shape {jnp.shape(decays)}."
                )
            return jax.tree.map(
                lambda p: None if p is None else bool(decays), under, is_leaf=is_none
            )

        why = _misfit(found, params)
        if why:
            raise ValueError(
                f"{name} must be a tree of booleans like the parameters, or a prefix "
                f"of it, or a function from them to one, but {why}"
            )
        return jax.tree_util.tree_map_with_path(spread, found, params)

    return whole


def _misfit(mask: optax.Params, params: optax.Params) -> str:
    """Why a mask is no prefix of the parameters; empty where it is one."""
    try:
        jax.tree.map(lambda *_: None, mask, params)
    except ValueError:
        pass
    else:
        return ""

    def is_masked(x: object) -> bool:
        return isinstance(x, optax.MaskedNode)

    def paths(tree: optax.Params) -> list[KeyPath]:
        leaves = jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: is_none(x) or is_masked(x)
        )
        return [path for path, _ in leaves]

    have, want = paths(mask), paths(params)
    odd = [
        f"leaf {_errors.leaf(path)} is unexpected"
        for path in have
        if not any(path == other[: len(path)] for other in want)
    ] + [
        f"leaf {_errors.leaf(path)} is missing"
        for path in want
        if not any(other == path[: len(other)] for other in have)
    ]
    structures = map(jax.tree.structure, (mask, params))
    why = (_errors.few(odd) or _errors.kinds(*structures)) + "."
    if any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked))):
        why += (
            " The parameters are masked, as inside of optax.masked and "
            "optax.partition. There give a function, which sees only what is left: "
            "lambda params: jax.tree.map(lambda p: p.ndim > 1, params)."
        )
    return why


def _check_kind(name: Callable[[], str], g: Any, nu: Any) -> None:
    """Raises where a gradient is of another kind than its parameter was."""
    dtype = g.dtype if hasattr(g, "dtype") else jnp.result_type(g)
    optimizable = jnp.issubdtype(dtype, jnp.inexact)
    if nu is None and optimizable:
        raise ValueError(
            f"The gradient of leaf {name()} was {dtype}, but its parameter was an "
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
            f"The gradient of leaf {name()} must be {kind}, as its parameter was when "
            f"init saw it, but it was {dtype}."
        )


def _other_shape(what: str, name: str, was: object, must: object) -> str:
    return (
        f"{what}: leaf {name} must have shape {must}, as its parameter had when "
        f"init saw it, but it was {was}."
    )
