"""State in the host's memory: none of it stays on the device, and little at once."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilers import collectives
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.devices import (
    bytes_of,
    devices,
    held,
    home,
    placed,
    state_of,
    transferred,
)
from support.steps import RULES, train_step
from support.untyped import offload, rmsprop

pytestmark = pytest.mark.devices
each_device = pytest.mark.parametrize(
    "device", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4", "h100:1x1x1"]
)
PAGE = Path(__file__).parents[2] / "docs/many-devices.md"
LEAVES, SHAPE = 16, (1024, 2048)
UPDATE = 4 * 1024 * 2048  # the bytes of one


def compile_step(tx, sharding) -> Any:
    """A step, whose state of the leaves is in the host's memory, and that state."""
    shapes = {
        f"leaf_{i:02}": jax.ShapeDtypeStruct(SHAPE, jnp.float32) for i in range(LEAVES)
    }
    params = placed(shapes, sharding)
    state = state_of(tx, params)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    return step.lower(params, state, params).compile(), state


def bytes_of_leaves(state):
    return bytes_of([x for x in jax.tree.leaves(state) if x.ndim])


def most(device, size):
    """What may be on the device at once: two leaves' states on a GPU.

    On a TPU three, as its scheduler brings the next one early, and the update.
    """
    one = size / LEAVES
    scalars = 2**16
    least = 2 * one if device.startswith("h100") else 3 * one + 1.5 * UPDATE
    return least + scalars


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("device", ["v5e:2x4", "h100:1x1x1"])
def test_a_step(device, rule):
    options = RULES[rule]
    for dtype in ("float32", "bfloat16"):
        tx = offload(rmsprop(0.1, state_dtype=dtype, **options))
        program, state = compile_step(tx, home(device))
        size = bytes_of_leaves(state)
        memory = program.memory_analysis()
        assert memory.host_argument_size_in_bytes == size
        assert memory.host_alias_size_in_bytes == size
        assert memory.host_temp_size_in_bytes == 0
        # Parameters, gradients and the count.
        left = memory.argument_size_in_bytes - 2 * LEAVES * UPDATE
        assert left <= 1024
        assert transferred(program) == (size, size)
        assert held(program) <= most(device, size)


@each_device
def test_the_table(device):
    """Of the documentation: naively, all of it comes at once."""
    tx = rmsprop(0.1, momentum=0.9)

    def move(tree, space):
        return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, tree)

    def update(updates, state, params=None):
        state = move(state, jax.memory.Space.Device)
        updates, state = tx.update(updates, state, params)
        return updates, move(state, jax.memory.Space.Host)

    naive = optax.GradientTransformation(offload(tx).init, update)
    kind, _, _ = device.partition(":")
    name = "H100" if kind == "h100" else f"TPU {kind}"
    found = [compile_step(each, home(device))[0] for each in (naive, offload(tx))]
    sizes = [f"{held(program) / 1e6:.0f} MB" for program in found]
    assert f"| {name} | {' | '.join(sizes)} |" in PAGE.read_text()


@pytest.mark.parametrize("device", ["v5e:2x4", "v6e:2x4"])
def test_a_step_in_fsdp(device):
    """An H100 that is only described has no memory in which a mesh could put it."""
    mesh = Mesh(np.array(devices(device)), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    tx = offload(rmsprop(0.1, momentum=0.9))
    program, state = compile_step(tx, sharding)
    own = bytes_of_leaves(state) // 8
    assert program.memory_analysis().host_alias_size_in_bytes == own
    assert transferred(program) == (own, own)
    assert not collectives(program)
    assert held(program) <= 5 * own / LEAVES


@each_device
def test_a_chain_that_clips(device):
    """Behind the rule, all updates wait for their norm, but the state does not."""
    clip, tx = optax.clip_by_global_norm(1.0), rmsprop(0.1, momentum=0.9)
    for chain, waiting in ((optax.chain(clip, tx), 1), (optax.chain(tx, clip), LEAVES)):
        program, state = compile_step(offload(chain), home(device))
        size = bytes_of_leaves(state)
        assert transferred(program) == (size, size)
        assert held(program) <= most(device, size) + waiting * UPDATE
