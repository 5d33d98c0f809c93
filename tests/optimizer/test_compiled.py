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
from support.steps import DECAYS, RULES, train_step
from support.untyped import rmsprop

from rmsprop_jax._optimizer import transform

SIZE = 1 << 14
PAGE = (Path(__file__).parents[2] / "docs/performance.md").read_text()


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
    for centered, nesterov in itertools.product([False, True], repeat=2):
        if nesterov and not momentum:
            continue
        # These two change one operation on an element each, so they come in pairs.
        flags = {"maximize": centered ^ nesterov, "eps_in_sqrt": not centered}
        flags |= {"centered": centered, "nesterov": nesterov}
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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_decay_that_is_independent_of_the_learning_rate_is_free(momentum):
    tx = rmsprop(0.1, momentum=momentum)
    decay = optax.add_decayed_weights(lambda t: -0.1 / (2 + jnp.asarray(t, float)))
    plain, decayed = compiled(tx), compiled(optax.chain(tx, decay))
    assert temporaries(decayed) <= 256  # the schedule
    assert words(decayed) == words(plain)


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
    assert words(ours) <= words(chain)
    assert temporaries(ours) == 0


@pytest.mark.parametrize("name", [*RULES, *(f"{r}, coupled decay" for r in RULES)])
def test_our_columns_of_the_table_of_words(name):
    options = RULES[name.removesuffix(", coupled decay")]
    decay = 0.0 if name in RULES else 0.1
    program = compiled(rmsprop(0.1, weight_decay=decay, **options))
    cells = f"{words(program):.0f} | {temporaries(program) // (4 * SIZE)}"
    assert f"| {name} | {cells} |" in PAGE


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


NARROW = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]
NARROW += [{"momentum": 0.9, "centered": True}]
NARROW += [{"centered": True, "weight_decay": 0.1}]


@pytest.mark.parametrize("options", NARROW)
def test_narrow_state_moves_fewer_bytes_and_makes_no_temporary(options):
    if jax.__version_info__ < (0, 10):
        pytest.skip("the compiler of jax 0.7 keeps what is rounded a second time")
    narrow, wide = (
        compiled(rmsprop(0.1, state_dtype=dtype, **options))
        for dtype in ("bfloat16", "float32")
    )
    # A narrow word is read twice and written once; the count is copied.
    assert 4 * SIZE * (words(wide) - words(narrow)) > 5.9 * SIZE
    assert temporaries(narrow) <= 8


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_outside_of_jit_only_the_update_and_the_state_are_written(decay, monkeypatch):
    """A gradient that came back from the leaf's own program would be a copy."""
    written = []
    inner = transform.update_leaf

    def spy(*args):
        program: Any = inner.lower(*args).compile()
        written.append(program.memory_analysis().output_size_in_bytes)
        return inner(*args)

    monkeypatch.setattr(transform, "update_leaf", spy)
    tx = rmsprop(0.1, momentum=0.9, weight_decay=decay)
    p = jnp.ones(SIZE)
    tx.update(p, tx.init(p), p)
    assert len(written) == 1
    assert written[0] < 12.1 * SIZE
