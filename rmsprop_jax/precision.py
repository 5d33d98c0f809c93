"""State and parameters in fewer bits, without losing the run.

Rounded to the nearest bfloat16, an average that moves by less than half a unit in its
last place a step does not move at all: with α = 0.999 the second moment never comes
down again. Rounded up or down at random, with the probabilities that make the mean
right, it moves as it should on average.

The random bits are a hash of the seed, the step, the leaf and the element. So there is
no key to carry. The same run has the same bits, however a leaf is sharded. Under
``vmap``, ``pmap`` and ``shard_map`` each part has the same bits, unless it has a seed
of its own.

Updates of narrow parameters are float32 here, and ``optax.apply_updates`` keeps the
parameters' dtype. Equinox's ``eqx.apply_updates`` does not: with it the model is
float32 after the first step. There split the model, and put it together again:

    params, static = eqx.partition(model, eqx.is_inexact_array)
    updates, state = tx.update(gradients, state, params)
    model = eqx.combine(optax.apply_updates(params, updates), static)

An average of bfloat16 parameters stands still for the same reason, if it is kept in
bfloat16. Keep it in float32, as ``optax.ema(0.999, accumulator_dtype="float32")`` does
and ``optax.incremental_update`` of a float32 average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from rmsprop_jax import _errors, _options, _storage, _trees
from rmsprop_jax._options import Seed
from rmsprop_jax._state import advanced
from rmsprop_jax._storage import Salt
from rmsprop_jax._storage.formats import bfloat16

__all__ = [
    "MasterWeightsState",
    "StochasticRoundingState",
    "master_weights",
    "stochastic_rounding",
]


def _is_narrow(p: jax.Array | None) -> bool:
    """Whether a parameter is a floating-point one of 16 bits or fewer."""
    if p is None or not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
        return False
    return jnp.finfo(jnp.result_type(p)).bits < 32


def _check_still_narrow(
    path: KeyPath, master: jax.Array | None, p: jax.Array | None
) -> None:
    if master is not None and not _is_narrow(p):
        was = None if p is None else jnp.result_type(p)
        raise ValueError(
            f"Leaf {_errors.leaf(path)} of params must have 16 bits, as it had when "
            f"init saw it, but it was {was}. Add the updates with optax.apply_updates, "
            "which keeps the parameters' dtype."
        )


def _lands_on(target: jax.Array, p: jax.Array) -> jax.Array:
    """The update, in float32, with which optax.apply_updates makes p the target."""
    return target.astype(jnp.float32) - p.astype(jnp.float32)


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`: the number of updates, an int32 scalar."""

    count: Any  # jax.Array, but every tuple has a method of that name


def stochastic_rounding(*, seed: Seed = 0) -> optax.GradientTransformationExtraArgs:
    """For the end of a chain: bfloat16 parameters are rounded stochastically.

    Where an update is small beside its parameter, p + u rounded to the nearest
    bfloat16 is p again, and training stands still. The updates that this makes take
    ``optax.apply_updates`` (and so Flax's ``TrainState`` and ``nnx.Optimizer``)
    exactly to p + u rounded up or down at random, with a mean of p + u. They are
    float32; those of parameters that are not bfloat16 pass as they are. (For an Equinox
    model see `rmsprop_jax.precision`.)

    Args:
        seed: Of the random bits: an integer or a scalar array.

    Returns:
        A gradient transformation with a `StochasticRoundingState`; ``update`` needs
        ``params``. ``optax.apply_if_finite`` goes inside the chain, before it.

    Raises:
        ValueError: From ``update``, where params are missing, or a parameter is in
            another dtype of 16 bits or fewer.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.precision import stochastic_rounding
        >>> tx = optax.chain(rmsprop(1e-4), stochastic_rounding())
        >>> params = jnp.ones(10_000, jnp.bfloat16)  # the next one is 1.0078125
        >>> updates, _ = tx.update(-params, tx.init(params), params)
        >>> mean = optax.apply_updates(params, updates).astype(jnp.float32).mean()
        >>> print(f"{mean:.4f}")  # 1 + 1e-4·g/√(0.01·g²)
        1.0010
    """
    seed = _options.seed(seed)

    def init(params: optax.Params) -> StochasticRoundingState:
        del params  # there is nothing to keep of them
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args  # unused here, and allowed, for others in a chain
        _trees.made_by_init(state, StochasticRoundingState)
        params = _trees.given("stochastic_rounding", params)
        us, structure = jax.tree.flatten(updates, is_leaf=_trees.is_none)
        ps = structure.flatten_up_to(params)
        salts = _storage.salts(seed, state.count, leaves=len(us), use="parameters")
        new = []
        for i, (u, p, salt) in enumerate(zip(us, ps, salts, strict=True)):
            narrow = u is not None and _is_narrow(p)
            if narrow and p.dtype != jnp.bfloat16:
                named = jax.tree_util.tree_leaves_with_path(
                    updates, is_leaf=_trees.is_none
                )
                raise ValueError(
                    "stochastic_rounding is for bfloat16 parameters, but leaf "
                    f"{_errors.leaf(named[i][0])} was {p.dtype}. Keep it in bfloat16, "
                    "or wrap the optimizer in master_weights instead."
                )
            new.append(_rounded(u, p, salt) if narrow else u)
        count = advanced(state.count)
        return structure.unflatten(new), StochasticRoundingState(count)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _rounded(u: jax.Array, p: jax.Array, salt: Salt) -> jax.Array:
    """The update with which p becomes p + u, rounded to bfloat16 at random."""
    exact = p.astype(jnp.float32) + u.astype(jnp.float32)
    bits = _storage.random_bits(p, salt) >> 16
    return _lands_on(bfloat16.rounded(exact, bits), p)


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        masters: A tree like the parameters: float32 copies of those of 16 bits or
            fewer, and None for the others, which are their own masters.
        inner: The state of the inner transformation.
    """

    masters: optax.Params
    inner: optax.OptState


def master_weights(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Trains float32 copies of narrow parameters, which show their rounding.

    The inner transformation sees the masters as its parameters (so decay acts on them)
    and float32 gradients. The updates take ``optax.apply_updates`` exactly to the
    masters rounded to the nearest value of the parameter's dtype (or, from a parameter
    a thousand times larger, as near as float32 holds the difference). For an Equinox
    model see `rmsprop_jax.precision`.

    Args:
        tx: The whole optimizer, with ``optax.apply_if_finite`` if you want it.

    Returns:
        A gradient transformation with a `MasterWeightsState`; ``update`` needs
        ``params``. Updates of parameters of 16 bits or fewer are float32.

    Raises:
        ValueError: From ``update``, where params are missing, or a narrow one has
            become wide.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.precision import master_weights
        >>> tx = master_weights(rmsprop(1e-4))
        >>> params = jnp.ones(1, jnp.bfloat16)
        >>> state = tx.init(params)
        >>> for _ in range(10):
        ...     updates, state = tx.update(-params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(f"{params[0]:.4f} {state.masters[0]:.3f}")
        1.0078 1.005
    """
    tx = optax.with_extra_args_support(tx)

    def wide(x: jax.Array | None, p: jax.Array) -> jax.Array | None:
        return x if x is None or not _is_narrow(p) else x.astype(jnp.float32)

    def tree_map(
        function: Callable[..., jax.Array | None], *trees: optax.Params
    ) -> optax.Params:
        return jax.tree.map(function, *trees, is_leaf=_trees.is_none)

    def init(params: optax.Params) -> MasterWeightsState:
        masters = tree_map(
            lambda p: jnp.asarray(p, jnp.float32) if _is_narrow(p) else None, params
        )
        full = tree_map(lambda m, p: p if m is None else m, masters, params)
        return MasterWeightsState(masters, tx.init(full))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, MasterWeightsState]:
        _trees.made_by_init(state, MasterWeightsState)
        params = _trees.given("master_weights", params)
        jax.tree_util.tree_map_with_path(
            _check_still_narrow, state.masters, params, is_leaf=_trees.is_none
        )
        full = tree_map(lambda m, p: p if m is None else m, state.masters, params)
        updates = tree_map(wide, updates, params)
        updates, inner = tx.update(updates, state.inner, full, **extra_args)

        def trained(u: jax.Array | None, m: jax.Array | None) -> jax.Array | None:
            return m if m is None or u is None else m + u

        def landing(
            u: jax.Array | None, m: jax.Array | None, p: jax.Array
        ) -> jax.Array | None:
            return u if m is None or u is None else _lands_on(m.astype(p.dtype), p)

        masters = tree_map(trained, updates, state.masters)
        updates = tree_map(landing, updates, masters, params)
        return updates, MasterWeightsState(masters, inner)

    return optax.GradientTransformationExtraArgs(init, update)
