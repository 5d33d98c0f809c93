"""What XLA makes of an update: facts of the compiled program, which do not jitter."""

import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rmsprop_jax

# optax types states as any trees of arrays; here they are what they are.
rmsprop: Any = rmsprop_jax.rmsprop

SIZE = 1 << 14
README = (Path(__file__).parents[1] / "README.md").read_text()
FLAGS = ("centered", "nesterov", "maximize")
DECAYS = {
    "no decay": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}


def train_step(tx):
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled(tx, dtype=jnp.float32, size=SIZE):
    """One donated training step over one leaf."""
    p = jax.ShapeDtypeStruct((size,), dtype)
    state = jax.eval_shape(tx.init, p)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    return step.lower(p, state, p).compile()


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


def words(program):
    """float32 words moved per parameter; the count is below the rounding."""
    return round(program.cost_analysis()["bytes accessed"] / 4 / SIZE, 2)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_no_temporaries(dtype, momentum, decay):
    for bits in itertools.product([False, True], repeat=len(FLAGS)):
        flags: dict[str, bool] = dict(zip(FLAGS, bits, strict=True))
        if flags["nesterov"] and not momentum:
            continue
        flags["eps_in_sqrt"] = flags["maximize"] ^ flags["centered"]
        tx = rmsprop(0.1, momentum=momentum, **flags, **DECAYS[decay])
        assert temporaries(compiled(tx, jnp.dtype(dtype))) == 0, flags


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("centered", [False, True])
def test_no_temporaries_but_scalars_with_bias_correction(centered, decay):
    """α_t is computed once for all elements, into a few scalars."""
    tx = rmsprop(
        0.1, momentum=0.9, centered=centered, bias_correction=True, **DECAYS[decay]
    )
    sizes = {temporaries(compiled(tx, size=n)) for n in (SIZE, 2 * SIZE)}
    assert len(sizes) == 1
    assert sizes.pop() < 256


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_moves_no_more_than_optax(momentum, nesterov, centered):
    options = {"nesterov": nesterov, "centered": centered}
    theirs = optax.rmsprop(0.1, momentum=momentum or None, **options)
    options["momentum"] = momentum
    assert words(compiled(rmsprop(0.1, **options))) <= words(compiled(theirs))
    ours = compiled(rmsprop(0.1, weight_decay=0.1, **options))
    chain = compiled(optax.chain(optax.add_decayed_weights(0.1), theirs))
    if centered and momentum and not nesterov:
        # As many; but optax has a temporary, as everywhere with decay.
        assert words(ours) == words(chain)
    else:
        assert words(ours) < words(chain)
    assert temporaries(ours) == 0
    assert temporaries(chain) >= 4 * SIZE


ROWS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
}


@pytest.mark.parametrize("name", [*ROWS, *(f"{name}, coupled decay" for name in ROWS)])
def test_the_readmes_table_of_words(name):
    options = ROWS[name.removesuffix(", coupled decay")]
    theirs = optax.rmsprop(0.1, **options)
    decay = 0.0
    if name not in ROWS:
        decay = 0.1
        theirs = optax.chain(optax.add_decayed_weights(decay), theirs)

    def cell(tx):
        program = compiled(tx)
        return f"{words(program):.0f} ({temporaries(program) // (4 * SIZE)})"

    row = f"| {name} | {cell(rmsprop(0.1, weight_decay=decay, **options))} "
    assert f"{row}| {cell(theirs)} |" in README


def test_donation_aliases_parameters_and_every_moment():
    tx = rmsprop(0.1, momentum=0.9, centered=True, weight_decay=0.1)
    p = jnp.ones(SIZE)
    state = tx.init(p)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    before = {x.unsafe_buffer_pointer() for x in (p, state.nu, state.mu)}
    after_p, after = step(p, state, jnp.ones(SIZE))
    assert {x.unsafe_buffer_pointer() for x in (after_p, after.nu, after.mu)} == before
    assert all(x.is_deleted() for x in jax.tree.leaves((p, state)))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for(platform, dtype):
    tx = rmsprop(0.1, momentum=0.9, centered=True, weight_decay=0.1)
    p = jax.ShapeDtypeStruct((8,), jnp.dtype(dtype))
    state = jax.eval_shape(tx.init, p)
    step = jax.jit(train_step(tx))
    module = jax.export.export(step, platforms=[platform])(p, state, p).mlir_module()
    # Of each stored field on CPU, and of what all leaves read on GPU. On TPU a barrier
    # could only do harm.
    barriers = {"cpu": 3, "cuda": 1, "rocm": 1, "tpu": 0}
    found = re.findall("= stablehlo.optimization_barrier", module)
    assert len(found) == barriers[platform]
    together = jax.export.export(step, platforms=["cpu", "cuda", "rocm", "tpu"])
    assert together(p, state, p).platforms == ("cpu", "cuda", "rocm", "tpu")


COLLECTIVES = r"all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("decay", DECAYS)
def test_sharded_over_eight_devices_nothing_is_communicated(decay, axis_type):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    tx = rmsprop(
        0.1, momentum=0.9, centered=True, bias_correction=True, **DECAYS[decay]
    )
    p = jax.device_put(jnp.ones((16, 4)), sharding)
    state = tx.init(p)
    assert state.nu.sharding.is_equivalent_to(sharding, 2)
    program = jax.jit(train_step(tx)).lower(p, state, p).compile()
    assert not re.findall(COLLECTIVES, program.as_text() or "")
    _, after = program(p, state, p)
    for moment in (after.nu, after.mu, after.grad_mean):
        assert moment.sharding.is_equivalent_to(sharding, 2)
