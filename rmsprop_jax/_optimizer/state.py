"""The state, and what it holds before the first step."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.tree_util import KeyPath
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax import _errors, _storage


class RMSPropState(NamedTuple):
    """The state of RMSProp, whatever its options.

    Attributes:
        count: int32 scalar, the number of updates so far.
        nu: a tree like the parameters: the second moment of the gradient about the
            origin, or about its mean (the variance) if centered. torch says
            ``square_avg``. A complex leaf holds one moment for the real and one for
            the imaginary part. Leaves that cannot be optimized (integers) are ``None``.
        mu: the momentum buffer, or ``None`` without momentum. torch says
            ``momentum_buffer``.
        grad_mean: the mean of the gradient, or ``None`` if not centered. torch says
            ``grad_avg``.

    Where a tree like the parameters goes along, ``optax.tree.map_params`` has to be
    told of leaves that are ``None``: ``is_leaf=lambda x: x is None``.
    """

    count: Any  # jax.Array, but every tuple has a method of that name
    # Trees like the user's parameters, whose type only the user knows.
    nu: Any
    mu: Any
    grad_mean: Any


def moments(
    params: optax.Params, value: ArrayLike, field: str, state_dtype: DTypeLike
) -> Any:
    """A tree like the parameters: the state's field before the first step."""
    return jax.tree.map_with_path(
        lambda path, p: _moment(path, p, value, field, state_dtype),
        params,
        is_leaf=lambda x: x is None,
    )


def _moment(
    path: KeyPath, p: Any, value: ArrayLike, field: str, state_dtype: DTypeLike
) -> Any:
    """A leaf of the state, filled with a value; None where p cannot be optimized."""
    if p is None:
        return None
    try:
        dtype = jnp.result_type(p)
    except (TypeError, ValueError):
        raise TypeError(
            f"params: leaf {_errors.leaf(path)} must be an array, but it was a "
            f"{type(p).__name__}. Give init and update the arrays alone; of an "
            "Equinox model these are eqx.filter(model, eqx.is_inexact_array)."
        ) from None
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    wide = jnp.float64 if jnp.finfo(dtype).bits == 64 else jnp.float32
    number = jnp.asarray(value, wide)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return _filled(p, lax.complex(number, number))
    if wide == jnp.float64:
        return _filled(p, number)
    return _started(_filled(p, number), field, str(jnp.dtype(state_dtype)))


@partial(jax.jit, static_argnums=(1, 2))  # of many operations, outside of jit
def _started(full: jax.Array, field: str, state_dtype: str) -> Any:
    return _storage.started(full, field, state_dtype)


def _filled(p: Any, value: jax.Array) -> jax.Array:
    """An array like p, and sharded like it, of one value."""
    full = jnp.full_like(p, value, dtype=value.dtype)
    if not isinstance(p, Tracer):
        return full
    # Under jit a constant has no sharding, and is whole on one device or on all. What
    # is computed from p is sharded like p; behind the barrier XLA can't see that the
    # two values are the same.
    again = jnp.full_like(p, lax.optimization_barrier(value), dtype=value.dtype)
    return jnp.where(jnp.isnan(p), again, full)


def no_steps(params: optax.Params) -> jax.Array:
    """A count of 0: outside of jit, on the parameters' device or all their mesh's."""
    places = set()
    for p in jax.tree.leaves(params):
        sharding = None if isinstance(p, Tracer) else getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            places = {NamedSharding(sharding.mesh, PartitionSpec())}
            break
        if isinstance(sharding, SingleDeviceSharding) and getattr(p, "committed", True):
            places.add(sharding)
    # Where nothing is said to be in one place, neither is the count.
    device = places.pop() if len(places) == 1 else None
    return jnp.zeros([], jnp.int32, device=device)


advanced = jax.jit(optax.safe_increment)  # of a count; one piece outside of jit too
