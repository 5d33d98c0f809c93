"""The states of other optimizers' runs into ours, and back.

`from_torch` and `to_torch` move a run of ``torch.optim.RMSprop``, `from_optax` one of
``optax.rmsprop``. No other package is imported for this: torch is not needed.
"""

from rmsprop_jax.checkpoints._optax import from_optax
from rmsprop_jax.checkpoints._torch import from_torch, to_torch

__all__ = ["from_optax", "from_torch", "to_torch"]
