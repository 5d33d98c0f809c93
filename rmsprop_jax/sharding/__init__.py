"""Where the optimizer's state lives on a mesh of devices.

RMSProp is elementwise, so an update needs no communication if the state is sharded like
the parameters. ``init`` gives the state their shardings. `state_shardings` returns the
shardings of the state of any chain, and `check_shardings` raises if a leaf has another.
`zero1` shards the state over devices on which the parameters are replicated, and
`offload` keeps it in the host's memory.
"""

from rmsprop_jax.sharding._offload import offload
from rmsprop_jax.sharding._placement import check_shardings, state_shardings
from rmsprop_jax.sharding._zero import zero1

__all__ = ["check_shardings", "offload", "state_shardings", "zero1"]
