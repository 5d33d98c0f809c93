"""The package and optax, in whose states a test may look without a type checker.

optax types a state as any pytree of arrays. Tests know which fields theirs has.
"""

from typing import Any

import optax

import rmsprop_jax

RMSPropState: Any = rmsprop_jax.RMSPropState
apply_updates: Any = optax.apply_updates
checkpoints: Any = rmsprop_jax.checkpoints
dialects: Any = rmsprop_jax.dialects
rmsprop: Any = rmsprop_jax.rmsprop
scale_by_rmsprop: Any = rmsprop_jax.scale_by_rmsprop

master_weights: Any = rmsprop_jax.precision.master_weights
stochastic_rounding: Any = rmsprop_jax.precision.stochastic_rounding
offload: Any = rmsprop_jax.sharding.offload
state_shardings: Any = rmsprop_jax.sharding.state_shardings
zero1: Any = rmsprop_jax.sharding.zero1

from_keras: Any = checkpoints.from_keras
from_optax: Any = checkpoints.from_optax
from_paddle: Any = checkpoints.from_paddle
from_tensorflow: Any = checkpoints.from_tensorflow
from_torch: Any = checkpoints.from_torch
to_torch: Any = checkpoints.to_torch
