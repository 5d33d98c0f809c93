"""The gradient transformation of a rule: ``init`` and ``update`` over pytrees."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer import random_bits, storage
from rmsprop_jax._optimizer.barriers import barrier_numbers_on_gpu
from rmsprop_jax._optimizer.leaf_update import update_leaf
from rmsprop_jax._optimizer.options import Config, Options, validate_options
from rmsprop_jax._optimizer.random_bits import Salt
from rmsprop_jax._optimizer.state import (
    RMSPropState,
    increment_count,
    init_count,
    init_moments,
)
from rmsprop_jax._optimizer.step_numbers import compute_step_numbers
from rmsprop_jax._optimizer.tree_matching import match_trees


def make_transformation(options: Options) -> optax.GradientTransformationExtraArgs:
    """Make the gradient transformation with these options, which are validated."""
    return make_transformation_of_config(validate_options(options))


def make_transformation_of_config(
    config: Config,
) -> optax.GradientTransformationExtraArgs:
    """Make the gradient transformation with these validated options.

    ``init`` and ``update`` are functions that close over the options because Equinox
    looks into closures for arrays: with ``functools.partial``, a new learning rate in
    an array would compile again.
    """

    # optax's type of a state has no place for the fields that are None.
    def init(params: optax.Params) -> Any:
        return init_state(config, params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, Any]:
        del extra_args  # unused here, but allowed for others in a chain
        return update_trees(config, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def get_config(tx: optax.GradientTransformation) -> Config:
    """Return the validated options that a transformation of ours closes over."""
    return inspect.getclosurevars(tx.init).nonlocals["config"]


def init_state(config: Config, params: optax.Params) -> RMSPropState:
    """Return the state before the first step."""
    rule, dtype = config.rule, config.state_dtype
    return RMSPropState(
        count=init_count(params),
        nu=init_moments(params, config.initial_scale, "nu", dtype),
        mu=init_moments(params, 0.0, "mu", dtype) if rule.has_momentum else None,
        grad_mean=init_moments(params, 0.0, "grad_mean", dtype)
        if rule.centered
        else None,
    )


def update_trees(
    config: Config,
    updates: optax.Updates,
    state: RMSPropState,
    params: optax.Params | None,
) -> tuple[optax.Updates, RMSPropState]:
    """Return the updates and the state after one step."""
    leaves, is_updated, structure = match_trees(config, updates, state, params)
    numbers = compute_step_numbers(
        config.rule, config.hyperparams, state.count, config.names
    )
    shared_numbers = barrier_numbers_on_gpu(numbers)
    salts: Sequence[Salt | None] = [None] * len(leaves)
    if storage.is_any_rounded(leaves):
        salts = random_bits.make_salts(
            config.seed, state.count, leaves=len(leaves), use="state"
        )
    rows = [
        update_leaf(config.rule, shared_numbers, salt, leaf)
        if has_update
        else (zero_update(leaf.g, leaf.p), leaf.nu, leaf.mu, leaf.grad_mean)
        for leaf, salt, has_update in zip(leaves, salts, is_updated, strict=True)
    ]
    update, nu, mu, grad_mean = ([row[i] for row in rows] for i in range(4))
    return structure.unflatten(update), RMSPropState(
        count=increment_count(state.count),
        nu=structure.unflatten(nu),
        mu=structure.unflatten(mu) if config.rule.has_momentum else None,
        grad_mean=structure.unflatten(grad_mean) if config.rule.centered else None,
    )


def zero_update(g: Any, p: Any) -> jax.Array | None:
    """Return the update of a leaf without gradient (None) or without state (zeros)."""
    if g is None:
        return None
    like = g if p is None else p
    if getattr(like, "dtype", None) == jax.dtypes.float0:
        return jnp.zeros(like.shape, bool)
    return jnp.zeros_like(like)
