"""What XLA's compilers for devices that are not here make of a training step."""

import os
import re
from typing import Any

import compilers
import jax
import optax
import pytest
from jax.sharding import SingleDeviceSharding


def devices(name: str) -> list[Any]:
    """Devices to compile for; the test is skipped where their compiler is missing."""
    try:
        return compilers.devices(name)
    except Exception as error:
        if os.environ.get("RMSPROP_JAX_DEVICES") == "required":
            raise
        pytest.skip(f'no compiler for {name}: pip install -e ".[devices]" ({error!r})')


def home(name: str) -> SingleDeviceSharding:
    return SingleDeviceSharding(devices(name)[0])


def placed(tree: Any, sharding: Any) -> Any:
    """The tree's shapes and dtypes, there."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def train_step(tx: Any) -> Any:
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled(tx: Any, params: Any, there: Any) -> Any:
    """A donated training step over trees of shapes, for that device."""
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    trees = (placed(tree, there) for tree in (params, state, params))
    return step.lower(*trees).compile()


def kernels(program: Any) -> int:
    """The fusions that the program runs, one after the other."""
    return len(re.findall(r" fusion\(", program.as_text().partition("\nENTRY")[2]))


def held(program: Any) -> int:
    """The bytes of its temporaries."""
    return program.memory_analysis().temp_size_in_bytes


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
