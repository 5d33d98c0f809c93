"""PyTorch's RMSProp for JAX: same arguments, same results."""

from rmsprop_jax import checkpoints, dialects, precision, schedules, sharding
from rmsprop_jax._identify import Explanation, Match, identify
from rmsprop_jax._optimizer import RMSPropState, rmsprop, scale_by_rmsprop

__all__ = [
    "Explanation",
    "Match",
    "RMSPropState",
    "checkpoints",
    "dialects",
    "identify",
    "precision",
    "rmsprop",
    "scale_by_rmsprop",
    "schedules",
    "sharding",
]
