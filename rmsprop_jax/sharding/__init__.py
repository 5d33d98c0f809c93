"""Where the optimizer's state lives on a mesh of devices.

RMSProp is elementwise, so its state belongs where the parameters are: ``init`` gives it
their shardings, and ``update`` keeps them without any communication. `state_shardings`
predicts these shardings for any chain, and `check_shardings` raises if a leaf is
sharded otherwise. `zero1` splits the state over devices on which the parameters are
replicated, and `offload` keeps it in the host's memory.
"""

from rmsprop_jax.sharding._offload import offload
from rmsprop_jax.sharding._placement import check_shardings, state_shardings
from rmsprop_jax.sharding._zero import zero1

__all__ = ["check_shardings", "offload", "state_shardings", "zero1"]
