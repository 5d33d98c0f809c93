"""The state, and what it holds before the first step."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rmsprop_jax import _codes


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

    In 8 bits ``nu`` and ``mu`` are structs of trees: ``codes`` like the parameters, and
    the scales ``step`` and ``low``; `rmsprop_jax.precision.widened` reads them.
    """

    count: Any
    nu: Any
    mu: Any
    grad_mean: Any


def moment(p: Any, value: Any, state_dtype: Any, *, has_low: bool = False) -> Any:
    """A leaf of the state, filled with a value; None where p cannot be optimized."""
    if p is None or not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
        return None
    dtype = jnp.result_type(p)
    wide = jnp.finfo(dtype).bits == 64
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.asarray(value, jnp.float64 if wide else jnp.float32)
        return _filled(p, lax.complex(part, part))
    if wide:
        return _filled(p, jnp.asarray(value, jnp.float64))
    if state_dtype != jnp.int8:
        return _filled(p, jnp.asarray(value, state_dtype))
    full = _filled(p, jnp.asarray(value, jnp.float32))
    return full if _codes.block(full.shape) is None else _coded(full, has_low=has_low)


@partial(jax.jit, static_argnames="has_low")  # of many operations, outside of jit
def _coded(full: jax.Array, *, has_low: bool) -> Any:
    scales = _codes.scales(full, has_low=has_low)
    return _codes.coded(full, *scales, jnp.uint32(0))


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


def no_steps(params: Any) -> jax.Array:
    """A count of 0: outside of jit, on the parameters' device or all their mesh's."""
    device = None
    for p in jax.tree.leaves(params):
        sharding = None if isinstance(p, Tracer) else getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            device = NamedSharding(sharding.mesh, PartitionSpec())
        elif isinstance(sharding, SingleDeviceSharding) and device is None:
            # Where nothing is said to be anywhere, neither is the count.
            device = sharding if getattr(p, "committed", True) else None
    return jnp.zeros([], jnp.int32, device=device)
