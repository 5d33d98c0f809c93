"""The states of other frameworks' runs into ours, and back.

Each ``from_...`` takes a file or its dictionary, and returns ``(tx, opt_state)``: the
framework's rule with its settings, and the state with which it goes on. `weights` takes
the weights along, by the same names. The ``to_...`` go back. No framework is imported
for this, and no file is executed.

What Flax trains with, where ``to_params`` makes nested dictionaries, and ``tx`` and
``opt_state`` are of one group or of several:

    # Flax's linen, or any TrainState
    tx, opt_state = from_torch(path, to_params)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = state.replace(opt_state=opt_state)

    # Flax's nnx, which computes with a State of arrays
    tx, opt_state = from_torch(path, lambda weights: nnx.State(to_params(weights)))
    tx = tx._replace(init=lambda params: opt_state)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
"""

from rmsprop_jax.checkpoints._keras import from_keras
from rmsprop_jax.checkpoints._optax import from_optax
from rmsprop_jax.checkpoints._paddle import from_paddle
from rmsprop_jax.checkpoints._pickles import read
from rmsprop_jax.checkpoints._stable_baselines3 import (
    from_stable_baselines3,
    to_stable_baselines3,
)
from rmsprop_jax.checkpoints._tensorflow import from_tensorflow
from rmsprop_jax.checkpoints._timm import from_timm, to_timm
from rmsprop_jax.checkpoints._torch import from_torch, to_torch
from rmsprop_jax.checkpoints._weights import weights

__all__ = [
    "from_keras",
    "from_optax",
    "from_paddle",
    "from_stable_baselines3",
    "from_tensorflow",
    "from_timm",
    "from_torch",
    "read",
    "to_stable_baselines3",
    "to_timm",
    "to_torch",
    "weights",
]
