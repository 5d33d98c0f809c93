"""State and parameters in fewer bits, without losing the run.

If an average is rounded to the nearest bfloat16 and moves by less than half a unit in
the last place per step, it does not move at all: with α = 0.999 the second moment never
decreases. If it is rounded up or down at random, with probabilities that make
the mean right, it moves as it should on average.

The random bits are a hash of the seed, the step, the leaf and the element, so there is
no key to carry. The same run has the same bits, however a leaf is sharded. Under
``vmap``, ``pmap`` and ``shard_map``, every part has the same bits unless it has its own
seed.

`stochastic_rounding` and `master_weights` return float32 updates for low-precision
parameters, and ``optax.apply_updates`` keeps the dtype of the parameters. Equinox's
``eqx.apply_updates`` does not: with it, the model is float32 after the first step. So
split the model, and combine it again:

    params, static = eqx.partition(model, eqx.is_inexact_array)
    updates, state = tx.update(gradients, state, params)
    model = eqx.combine(optax.apply_updates(params, updates), static)

A moving average of bfloat16 parameters stops changing for the same reason if it is
itself bfloat16. Keep it in float32, as ``optax.ema(0.999,
accumulator_dtype="float32")`` and ``optax.incremental_update`` of a float32 average do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._error_text import (
    Path,
    path_str,
)
from rmsprop_jax._optimizer.bfloat16_rounding import round_to_bfloat16
from rmsprop_jax._optimizer.options import Seed, validate_seed
from rmsprop_jax._optimizer.random_bits import Salt, make_random_bits, make_salts
from rmsprop_jax._optimizer.state import increment_count
from rmsprop_jax._optimizer.tree_matching import (
    is_none,
    require_params,
    require_state,
    require_transformation,
)

__all__ = [
    "MasterWeightsState",
    "StochasticRoundingState",
    "master_weights",
    "stochastic_rounding",
]


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`.

    Attributes:
        count: int32 scalar, the step count: how many updates there were.
    """

    # Every tuple has a method of this name, so a type checker objects to the field.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def stochastic_rounding(*, seed: Seed = 0) -> optax.GradientTransformationExtraArgs:
    """Round bfloat16 parameters stochastically. It comes last in a chain.

    If an update is small compared with its parameter, p + u rounded to the nearest
    bfloat16 is p again, and training stops. The updates of this transformation make
    ``optax.apply_updates`` (and so Flax's ``TrainState`` and ``nnx.Optimizer``) arrive
    exactly at p + u rounded up or down at random, with a mean of p + u. They are
    float32; updates of parameters that are not bfloat16 are unchanged. (For an Equinox
    model, see `rmsprop_jax.precision`.)

    Args:
        seed: The seed of the random bits: an integer or an integer scalar array.

    Returns:
        A gradient transformation with a `StochasticRoundingState`, whose ``update``
        needs ``params``. ``optax.apply_if_finite`` goes inside the chain, before it.

    Raises:
        ValueError: From ``update``, if params are missing, or if a parameter has
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
    seed = validate_seed(seed)

    def init(params: optax.Params) -> StochasticRoundingState:
        del params  # the state does not depend on them
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args  # unused here, but allowed for others in a chain
        state = require_state(state, StochasticRoundingState)
        params = require_params("stochastic_rounding", params)
        us, structure = jax.tree.flatten(updates, is_leaf=is_none)
        ps = structure.flatten_up_to(params)
        _check_only_bfloat16(updates, params)
        salts = make_salts(seed, state.count, leaves=len(us), use="parameters")
        rounded = [
            round_update(u, p, salt) if u is not None and _is_low_precision(p) else u
            for u, p, salt in zip(us, ps, salts, strict=True)
        ]
        count = increment_count(state.count)
        return structure.unflatten(rounded), StochasticRoundingState(count)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def round_update(u: jax.Array, p: jax.Array, salt: Salt) -> jax.Array:
    """Return the update with which p becomes p + u, rounded to bfloat16 at random."""
    exact = p.astype(jnp.float32) + u.astype(jnp.float32)
    bits = make_random_bits(p, salt) >> 16
    return update_to_reach(round_to_bfloat16(exact, bits), p)


def update_to_reach(target: jax.Array, p: jax.Array) -> jax.Array:
    """Return the float32 update with which optax.apply_updates makes p the target."""
    return target.astype(jnp.float32) - p.astype(jnp.float32)


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        masters: A pytree like the parameters: float32 copies of the parameters of 16
            bits, and None for the others, which need no copy.
        inner: The state of the inner transformation.
    """

    masters: optax.Params
    inner: optax.OptState


def master_weights(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Train float32 copies of low-precision parameters.

    The inner transformation sees the float32 copies (the masters) as its parameters, so
    weight decay acts on them, and it sees float32 gradients. The updates make
    ``optax.apply_updates`` arrive exactly at the masters, rounded to the nearest value
    of the parameter's dtype. (If an update makes a parameter thousands of times
    smaller, they arrive as close as float32 can represent the difference.) For an
    Equinox model, see `rmsprop_jax.precision`.

    Args:
        tx: The whole optimizer, including ``optax.apply_if_finite`` if you want it.

    Returns:
        A gradient transformation with a `MasterWeightsState`, whose ``update`` needs
        ``params``. The updates of parameters of 16 bits are float32.

    Raises:
        ValueError: From ``init``, if a parameter has fewer than 16 bits. From
            ``update``, if params are missing, or if a low-precision parameter has
            become float32.
        TypeError: If ``tx`` is not a gradient transformation.

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
    require_transformation(tx, "master_weights(rmsprop(0.01))")
    inner_tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> MasterWeightsState:
        jax.tree.map_with_path(_check_has_16_bits, params, is_leaf=is_none)
        masters = _map_leaves(
            lambda p: jnp.asarray(p, jnp.float32) if _is_low_precision(p) else None,
            params,
        )
        return MasterWeightsState(masters, inner_tx.init(_merge(masters, params)))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, MasterWeightsState]:
        state = require_state(state, MasterWeightsState)
        params = require_params("master_weights", params)
        jax.tree.map_with_path(
            _check_low_precision, state.masters, params, is_leaf=is_none
        )
        updates, inner = inner_tx.update(
            _map_leaves(_widen, updates, params),
            state.inner,
            _merge(state.masters, params),
            **extra_args,
        )
        masters = _map_leaves(
            lambda u, m: m if m is None or u is None else m + u, updates, state.masters
        )
        updates = _map_leaves(rounded_update, updates, masters, params)
        return updates, MasterWeightsState(masters, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def rounded_update(
    u: jax.Array | None, master: jax.Array | None, p: jax.Array
) -> jax.Array | None:
    """Return the update with which p becomes its master, rounded to the nearest."""
    if u is None or master is None:
        return u
    return update_to_reach(master.astype(p.dtype), p)


def _map_leaves(
    function: Callable[..., jax.Array | None], *trees: optax.Params
) -> optax.Params:
    return jax.tree.map(function, *trees, is_leaf=is_none)


def _merge(masters: optax.Params, params: optax.Params) -> optax.Params:
    """Return the parameters, with masters in place of those that have a master."""
    return _map_leaves(lambda m, p: p if m is None else m, masters, params)


def _widen(x: jax.Array | None, p: jax.Array) -> jax.Array | None:
    return x if x is None or not _is_low_precision(p) else x.astype(jnp.float32)


def _is_low_precision(p: jax.Array | None) -> bool:
    """Whether a parameter is floating-point and has 16 bits or fewer."""
    if p is None or not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
        return False
    return jnp.finfo(jnp.result_type(p)).bits < 32


def _check_has_16_bits(path: Path, p: jax.Array | None) -> None:
    if p is not None and _is_low_precision(p):
        dtype = jnp.result_type(p)
        if jnp.finfo(dtype).bits < 16:
            raise ValueError(
                "master_weights is for parameters of 16 or more bits, but leaf "
                f"{path_str(path)} was {dtype}, to which optax.apply_updates can't add "
                "a float32 update. Keep it in bfloat16, and cast it where the model "
                "uses it."
            )


def _check_low_precision(
    path: Path, master: jax.Array | None, p: jax.Array | None
) -> None:
    if master is not None and not _is_low_precision(p):
        was = None if p is None else jnp.result_type(p)
        raise ValueError(
            f"Leaf {path_str(path)} of params must have 16 bits, as it had "
            f"when init saw it, but it was {was}. Add the updates with "
            "optax.apply_updates, which keeps the parameters' dtype."
        )


def _check_only_bfloat16(updates: optax.Updates, params: optax.Params) -> None:
    def check(path: Path, u: jax.Array | None, p: jax.Array) -> None:
        if u is not None and _is_low_precision(p) and p.dtype != jnp.bfloat16:
            raise ValueError(
                "stochastic_rounding is for bfloat16 parameters, but leaf "
                f"{path_str(path)} was {p.dtype}. Keep it in bfloat16"
                + (
                    ", or wrap the optimizer in master_weights instead."
                    if p.dtype == jnp.float16
                    else "."
                )
            )

    jax.tree.map_with_path(check, updates, params, is_leaf=is_none)
