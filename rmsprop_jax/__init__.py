"""RMSProp for JAX: the one you already know, the same numbers."""

from rmsprop_jax import checkpoints, dialects, precision, sharding
from rmsprop_jax._identify import Match, identify
from rmsprop_jax._optimizer import rmsprop, scale_by_rmsprop
from rmsprop_jax._state import RMSPropState

__all__ = [
    "Match",
    "RMSPropState",
    "checkpoints",
    "dialects",
    "identify",
    "precision",
    "rmsprop",
    "scale_by_rmsprop",
    "sharding",
]
