"""On eight devices: what they send to each other, and what each of them holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import collectives
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from support.devices import bytes_of, devices, held, state_of
from support.steps import train_step
from support.untyped import rmsprop, zero1

pytestmark = pytest.mark.devices
each_device = pytest.mark.parametrize("device", ["v5e:2x4", "h100:1x8x1"])
each_axis_type = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit]
)
each_state = pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
SPECS = {"tensor": (None, "model"), "FSDP": ("data",), "both": ("data", "model")}


def make_mesh(device, axis_type, **axes):
    shape = tuple(axes.values())
    types = (axis_type,) * len(axes)
    return Mesh(np.array(devices(device)).reshape(shape), tuple(axes), axis_types=types)


def leaf(mesh, shape, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def bytes_on_one(tree):
    shards = (
        jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
        for x in jax.tree.leaves(tree)
    )
    return bytes_of(list(shards))


@each_state
@each_axis_type
@each_device
def test_an_update_sends_nothing(device, axis_type, state_dtype):
    mesh = make_mesh(device, axis_type, data=4, model=2)
    params = {name: leaf(mesh, (4096, 2048), *spec) for name, spec in SPECS.items()}
    for options in ({"momentum": 0.9}, {"centered": True, "weight_decay": 0.1}):
        tx = rmsprop(0.1, state_dtype=state_dtype, **options)
        state = state_of(tx, params)
        step = jax.jit(train_step(tx), donate_argnums=(0, 1))
        program: Any = step.lower(params, state, params).compile()
        assert not collectives(program)
        # On a TPU the place of a leaf's part is a scalar, which takes 64 kB.
        assert held(program) < 2**20
        kept = program.memory_analysis().alias_size_in_bytes
        assert kept >= bytes_on_one((params, state))


@each_state
@each_axis_type
@each_device
def test_zero1_scatters_and_gathers(device, axis_type, state_dtype):
    mesh = make_mesh(device, axis_type, data=8)
    params = leaf(mesh, (1024, 512))
    x = leaf(mesh, (64, 1024), "data")
    tx = zero1(rmsprop(0.1, momentum=0.9, state_dtype=state_dtype), mesh)
    state = state_of(tx, params)
    one = bytes_on_one(state) - 4
    assert 8 * one == bytes_of((state.nu, state.mu))

    def step(params, state, x):
        gradients = jax.grad(lambda p: jnp.mean(jnp.sin(x @ p)))(params)
        return train_step(tx)(params, state, gradients)

    jitted = jax.jit(step, donate_argnums=(0, 1))
    program: Any = jitted.lower(params, state, x).compile()
    assert collectives(program) == {"reduce-scatter": 1, "all-gather": 1}
    kept = program.memory_analysis().alias_size_in_bytes
    assert kept >= bytes_on_one((params, state))
