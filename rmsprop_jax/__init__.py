"""RMSProp for JAX: the one you already know, the same numbers."""

from rmsprop_jax import checkpoints, dialects, precision, sharding
from rmsprop_jax._optimizer import rmsprop, scale_by_rmsprop
from rmsprop_jax._state import RMSPropState

__all__ = [
    "RMSPropState",
    "checkpoints",
    "dialects",
    "precision",
    "rmsprop",
    "scale_by_rmsprop",
    "sharding",
]
