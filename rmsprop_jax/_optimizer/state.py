"""The state, and what it is initialized to."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jax.typing import ArrayLike

from rmsprop_jax._error_text import Path, path_str
from rmsprop_jax._optimizer import storage
from rmsprop_jax._optimizer.storage import DType, Field

# A step count is int32, and stays at its largest value.
LARGEST_COUNT = 2**31 - 1


class RMSPropState(NamedTuple):
    """The state of RMSProp, whatever its options.

    Attributes:
        count: int32 scalar, the step count: how many updates there were.
        nu: A pytree like the parameters: the second moment of the gradient about the
            origin, or about its mean (the variance) if centered. PyTorch calls it
            ``square_avg``. For a complex leaf, it is complex: one moment for the real
            and one for the imaginary part. Leaves that can't be trained (integers) are
            ``None``.
        mu: The momentum buffer, or ``None`` without momentum. PyTorch calls it
            ``momentum_buffer``.
        grad_mean: The mean of the gradient, or ``None`` if not centered. PyTorch calls
            it ``grad_avg``.

    If you map over the state together with a pytree like the parameters, tell
    ``optax.tree.map_params`` about leaves that are ``None``:
    ``is_leaf=lambda x: x is None``.
    """

    # Every tuple has a method of this name, so a type checker objects to the field.
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: optax.Params
    # These may be None, which optax's types have no place for: with it, the state would
    # not be an optax.OptState.
    mu: optax.Params
    grad_mean: optax.Params


def init_moments(
    params: optax.Params, value: ArrayLike, field: Field, state_dtype: DType
) -> optax.Params:
    """Return a pytree like the parameters: one field of the state before any step."""
    values: dict[DType, jax.Array] = {}

    def init_leaf(path: Path, p: ArrayLike) -> jax.Array | None:
        dtype = moment_dtype(path, p, field, state_dtype)
        if dtype is None:
            return None
        if dtype not in values:  # converted once, because each operation takes time
            values[dtype] = _convert(value, dtype)
        return full_like_sharded(p, values[dtype])

    return jax.tree.map_with_path(init_leaf, params)


def moment_dtype(
    path: Path, p: ArrayLike, field: Field, state_dtype: DType
) -> DType | None:
    """Return the dtype of a leaf of the state; None if p cannot be optimized."""
    try:
        dtype = jnp.result_type(p)
    except (TypeError, ValueError):
        raise TypeError(
            f"params: leaf {path_str(path)} must be an array, but it was a "
            f"{type(p).__name__}. Give init and update the arrays alone; for an "
            "Equinox model these are eqx.filter(model, eqx.is_inexact_array)."
        ) from None
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise TypeError(
            f"params: leaf {path_str(path)} must be an array of numbers, but its dtype "
            f"was {dtype}, which can't be optimized. Leave it out with optax.masked."
        )
    if not jnp.issubdtype(dtype, jnp.inexact):
        return None
    if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64:
        return dtype
    return storage.initial_dtype(field, state_dtype)


def _convert(value: ArrayLike, dtype: DType) -> jax.Array:
    """Return a scalar array; of a complex dtype, with the value in both parts."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(value, dtype)
    part = jnp.asarray(value, jnp.finfo(dtype).dtype)
    return lax.complex(part, part)


def full_like_sharded(p: ArrayLike, value: jax.Array) -> jax.Array:
    """Return an array with the shape and the sharding of p, filled with a scalar."""
    full = jnp.full_like(p, value, dtype=value.dtype)
    if not isinstance(p, Tracer):
        # A scalar would share the value's buffer, so not both could be donated.
        return full if full.ndim else full.copy()
    # Under jit a constant has no sharding, so XLA would put it unsplit on one device or
    # on all. A value that is computed from p is sharded like p. The barrier keeps XLA
    # from seeing that both branches have the same value.
    hidden = lax.optimization_barrier(value)
    return jnp.where(jnp.isnan(p), jnp.full_like(p, hidden, dtype=value.dtype), full)


def init_count(params: optax.Params) -> jax.Array:
    """Return a step count of 0, replicated over the devices of the parameters.

    Under jit it has no sharding. Outside of jit, if the parameters are on no particular
    device, neither is the count.
    """
    shardings: set[NamedSharding | SingleDeviceSharding] = set()
    for p in jax.tree.leaves(params):
        sharding = None if isinstance(p, Tracer) else getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            shardings = {NamedSharding(sharding.mesh, PartitionSpec())}
            break
        if isinstance(sharding, SingleDeviceSharding) and getattr(p, "committed", True):
            shardings.add(sharding)
    device = shardings.pop() if len(shardings) == 1 else None
    return jnp.zeros([], jnp.int32, device=device)


@jax.jit  # one operation outside of jit too
def increment_count(count: jax.Array) -> jax.Array:
    """Add 1, up to `LARGEST_COUNT`."""
    return jnp.asarray(optax.safe_increment(count))
