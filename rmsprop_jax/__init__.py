"""RMSProp for JAX: the one you already know, the same numbers."""

from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax._rule import RMSPropState, scale_by_rmsprop

__all__ = ["RMSPropState", "rmsprop", "scale_by_rmsprop"]
