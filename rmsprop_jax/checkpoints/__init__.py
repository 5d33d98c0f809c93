"""Resume the runs of other frameworks, and export the state back.

Each ``from_...`` takes a file, or its content, and returns ``(tx, opt_state)``: the
framework's rule with its settings, and the state that resumes the run. (`from_optax`
converts a state in memory, and returns only a state.) `load_weights` returns the
weights, by the framework's names. The functions ``to_...`` export the state back. None
of them imports the framework or executes anything in a file.

To train with Flax, let ``to_params`` make nested dictionaries. ``tx`` and ``opt_state``
may have one parameter group or several:

    # Flax's linen, or any TrainState
    tx, opt_state = from_torch(path, to_params)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = state.replace(opt_state=opt_state)

    # Flax's nnx, which computes with a State of arrays
    tx, opt_state = from_torch(path, lambda weights: nnx.State(to_params(weights)))
    tx = tx._replace(init=lambda params: opt_state)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
"""

from rmsprop_jax.checkpoints._keras_family.keras import from_keras
from rmsprop_jax.checkpoints._keras_family.tensorflow import from_tensorflow
from rmsprop_jax.checkpoints._optax import from_optax
from rmsprop_jax.checkpoints._paddle import from_paddle
from rmsprop_jax.checkpoints._torch_family.stable_baselines3 import (
    from_stable_baselines3,
    to_stable_baselines3,
)
from rmsprop_jax.checkpoints._torch_family.timm import from_timm, to_timm
from rmsprop_jax.checkpoints._torch_family.torch import from_torch, to_torch
from rmsprop_jax.checkpoints._weights import load_weights, read

__all__ = [
    "from_keras",
    "from_optax",
    "from_paddle",
    "from_stable_baselines3",
    "from_tensorflow",
    "from_timm",
    "from_torch",
    "load_weights",
    "read",
    "to_stable_baselines3",
    "to_timm",
    "to_torch",
]
