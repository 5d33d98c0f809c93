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
from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.state import (
    RMSPropState,
    increment_count,
    init_count,
    init_moments,
)
from rmsprop_jax._optimizer.step_numbers import compute_step_numbers
from rmsprop_jax._optimizer.storage import Field
from rmsprop_jax._optimizer.tree_matching import match_trees, require_state


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

    def init(params: optax.Params) -> RMSPropState:
        return init_state(config, params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, RMSPropState]:
        del extra_args  # unused here, but allowed for others in a chain
        return update_trees(config, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def get_config(tx: optax.GradientTransformation) -> Config:
    """Return the validated options that a transformation of this package has."""
    return inspect.getclosurevars(tx.init).nonlocals["config"]


def init_state(config: Config, params: optax.Params) -> RMSPropState:
    """Return the state before the first step."""

    def init_field(field: Field, value: Number, *, is_kept: bool = True) -> Any:
        if not is_kept:
            return None
        return init_moments(params, value, field, config.state_dtype)

    return RMSPropState(
        count=init_count(params),
        nu=init_field("nu", config.initial_scale),
        mu=init_field("mu", 0.0, is_kept=config.rule.has_momentum),
        grad_mean=init_field("grad_mean", 0.0, is_kept=config.rule.centered),
    )


def update_trees(
    config: Config,
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None,
) -> tuple[optax.Updates, RMSPropState]:
    """Return the updates and the state after one step."""
    state = require_state(state, RMSPropState)
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

    def unflatten(field: list[Any], *, is_kept: bool = True) -> Any:
        return structure.unflatten(field) if is_kept else None

    return unflatten(update), RMSPropState(
        count=increment_count(state.count),
        nu=unflatten(nu),
        mu=unflatten(mu, is_kept=config.rule.has_momentum),
        grad_mean=unflatten(grad_mean, is_kept=config.rule.centered),
    )


def zero_update(g: Any, p: Any) -> jax.Array | None:
    """Return the update of a leaf without gradient (None) or without state (zeros)."""
    if g is None:
        return None
    like = g if p is None else p
    if getattr(like, "dtype", None) == jax.dtypes.float0:
        return jnp.zeros(like.shape, bool)
    return jnp.zeros_like(like)
