"""RMSProp for JAX: the one you already know, the same numbers."""

from rmsprop_jax import (
    dialects,
    optax_checkpoint,
    precision,
    sharding,
    torch_checkpoint,
)
from rmsprop_jax._optimizer import rmsprop, scale_by_rmsprop
from rmsprop_jax._state import RMSPropState

__all__ = [
    "RMSPropState",
    "dialects",
    "optax_checkpoint",
    "precision",
    "rmsprop",
    "scale_by_rmsprop",
    "sharding",
    "torch_checkpoint",
]
