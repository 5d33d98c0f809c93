"""The gradient transformation of a rule: `init` and `update` over trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax import _numbers, _options, _storage, _trees
from rmsprop_jax._leaf import updated
from rmsprop_jax._options import Options
from rmsprop_jax._rule import Leaf
from rmsprop_jax._state import RMSPropState, advanced, moments, no_steps


def transformation(options: Options) -> optax.GradientTransformationExtraArgs:
    """The gradient transformation with these options, which are checked."""
    options = _options.checked(options)
    return optax.GradientTransformationExtraArgs(
        partial(_init, options), partial(_update, options)
    )


def _init(options: Options, params: optax.Params) -> RMSPropState:
    rule = options.rule

    def field(name: str, value: ArrayLike = 0.0) -> Any:
        return moments(params, value, name, options.state_dtype)

    return RMSPropState(
        count=no_steps(params),
        nu=field("nu", options.initial_scale),
        mu=field("mu") if rule.momentum else None,
        grad_mean=field("grad_mean") if rule.centered else None,
    )


def _update(
    options: Options,
    updates: optax.Updates,
    state: Any,
    params: optax.Params | None = None,
    **extra_args: object,
) -> tuple[optax.Updates, RMSPropState]:
    del extra_args  # unused here, and allowed, for others in a chain
    rule = options.rule
    leaves, tree = _trees.matched(options, updates, state, params)
    numbers = _storage.shared(_numbers.of_step(options, state.count))
    salts = [None] * len(leaves)
    if any(_storage.is_rounded(x) for leaf in leaves for x in (leaf.nu, leaf.mu)):
        salts = _storage.salts(
            options.seed, state.count, leaves=len(leaves), use="state"
        )
    out, new = [], []
    for leaf, salt in zip(leaves, salts, strict=True):
        if leaf.g is None or leaf.nu is None:  # no news of it, or nothing to optimize
            u = _no_update(leaf.g, leaf.p)
        else:
            u, *fields = updated(rule, numbers, salt, leaf)
            leaf = Leaf(leaf.g, leaf.p, *fields)
        out.append(u)
        new.append(leaf)

    def field(name: str) -> Any:
        return tree(getattr(leaf, name) for leaf in new)

    return tree(out), RMSPropState(
        count=advanced(state.count),
        nu=field("nu"),
        mu=field("mu") if rule.momentum else None,
        grad_mean=field("grad_mean") if rule.centered else None,
    )


def _no_update(g: Any, p: Any) -> Any:
    """The update of a leaf that has none: zeros for an integer, None for None."""
    if g is None:
        return None
    like = g if p is None else p
    if getattr(like, "dtype", None) == jax.dtypes.float0:
        return jnp.zeros(like.shape, bool)
    return jnp.zeros_like(like)
