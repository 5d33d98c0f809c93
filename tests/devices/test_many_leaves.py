"""Steps over many leaves of few shapes: kernels, temporaries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilers import hbm_bytes
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.devices import (
    bytes_of,
    compiled,
    devices,
    held,
    home,
    kernels,
    placed,
    state_of,
)
from support.steps import train_step
from support.untyped import rmsprop

pytestmark = pytest.mark.devices
each_state = pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])


def leaves(number, shapes):
    return {
        f"layer_{i}": jax.ShapeDtypeStruct((128, 64 * (i % shapes + 1)), jnp.float32)
        for i in range(number)
    }


def schedule(t):
    return 0.5 / (2 + t.astype(float))


OPTIMIZERS = {
    "constants": lambda **state: rmsprop(0.1, momentum=0.9, **state),
    "rate": lambda **state: rmsprop(schedule, momentum=0.9, **state),
    "everything": lambda **state: rmsprop(
        schedule, schedule, schedule, schedule, schedule, centered=True, **state
    ),
    "bias correction": lambda **state: rmsprop(0.1, bias_correction=True, **state),
    "injected": lambda **state: optax.inject_hyperparams(
        rmsprop, static_args=("state_dtype",)
    )(0.1, momentum=schedule, **state),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@each_state
def test_a_gpu_runs_few_kernels(state_dtype, name):
    """optax has one for each leaf."""
    tx = OPTIMIZERS[name](state_dtype=state_dtype)
    program = compiled(tx, leaves(100, 10), home("h100:1x1x1"))
    assert kernels(program) <= 25
    assert held(program) < 2**13


@each_state
def test_with_numbers_that_are_arguments(state_dtype):
    def step(numbers, params, state, gradients):
        tx = rmsprop(*numbers, state_dtype=state_dtype)
        return train_step(tx)(params, state, gradients)

    params, there = leaves(100, 10), home("h100:1x1x1")
    state = jax.eval_shape(
        rmsprop(0.1, momentum=0.9, state_dtype=state_dtype).init, params
    )
    numbers = (jax.ShapeDtypeStruct((), jnp.float32),) * 5
    trees = (placed(tree, there) for tree in (numbers, params, state, params))
    program = jax.jit(step, donate_argnums=(1, 2)).lower(*trees).compile()
    assert kernels(program) <= 25
    assert held(program) < 2**13


@each_state
def test_of_leaves_that_are_sharded(state_dtype):
    mesh = Mesh(np.array(devices("h100:1x8x1")), ("data",))
    params = placed(leaves(100, 10), NamedSharding(mesh, PartitionSpec("data")))
    tx = rmsprop(0.1, momentum=0.9, state_dtype=state_dtype)
    state = state_of(tx, params)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    program = step.lower(params, state, params).compile()
    assert kernels(program) <= 25
    assert held(program) < 2**13


@pytest.mark.slow
@each_state
def test_a_thousand_leaves(state_dtype):
    tx = rmsprop(0.1, momentum=0.9, state_dtype=state_dtype)
    program = compiled(tx, leaves(1000, 20), home("h100:1x1x1"))
    assert kernels(program) <= 100
    assert held(program) < 2**16


@each_state
@pytest.mark.parametrize("device", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_a_tpu_runs_one_kernel_a_leaf(device, state_dtype):
    """And moves through HBM what a step has to, though it copies leaves to VMEM."""
    params = leaves(30, 10)
    for options in ({"momentum": 0.9}, {"bias_correction": True, "centered": True}):
        tx = rmsprop(schedule, state_dtype=state_dtype, **options)
        program = compiled(tx, params, home(device))
        assert kernels(program) <= 32
        assert held(program) == 0
        donated = bytes_of((params, jax.eval_shape(tx.init, params)))
        least = bytes_of(params) + 2 * donated
        assert least <= hbm_bytes(program) + 2**10 <= least + 2**12
