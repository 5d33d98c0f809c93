"""8-bit codes: what they hold, and how near they keep it."""

import functools
import importlib
import os
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.keeping import kept
from support.streams import gradients, run

import rmsprop_jax
from rmsprop_jax.precision import widened

# optax types states as any trees of arrays; here they are what they are.
rmsprop: Any = rmsprop_jax.rmsprop

LARGEST = float(jnp.finfo(jnp.float32).max)


def test_what_codes_hold_stays():
    rng = np.random.default_rng(0)
    nu = np.exp(3 * rng.normal(size=(64, 128)))
    nu[:, ::5] = 0
    nu[3], nu[4] = 0, 2.5
    r = kept(nu, "int8", "nu", step=1)
    np.testing.assert_array_equal(r == 0, nu == 0)
    np.testing.assert_allclose(r[4], 2.5, rtol=3e-7)
    np.testing.assert_allclose(r.max(1), nu.max(1), rtol=3e-6)
    least = np.where(nu > 0, nu, np.inf).min(1)[nu.max(1) > 0]
    found = np.where(r > 0, r, np.inf).min(1)[nu.max(1) > 0]
    np.testing.assert_allclose(found, least, rtol=3e-6)
    mu = rng.integers(-127, 128, (64, 128)) * 0.25
    mu[:, 0], mu[5] = 127 * 0.25, 0
    np.testing.assert_allclose(kept(mu, "int8", "mu", step=1), mu, rtol=3e-7)
    # What was decoded is coded again as it was, up to the rounding of the scales.
    np.testing.assert_allclose(kept(r, "int8", "nu", step=2), r, rtol=1e-4, atol=0)


def test_extremes():
    x = np.full((32, 128), LARGEST, np.float32)
    x[:, ::2] = 1e-45  # no code of its own
    x[:, ::4] = 2.0**-120
    r = kept(x, "int8", "nu", step=1)
    assert np.all(np.isfinite(r))
    assert np.all(r[:, 2::4] == 0)
    np.testing.assert_allclose(r[:, ::4], LARGEST * np.exp(-28.0), rtol=2e-5)
    np.testing.assert_allclose(r[:, 1::2], LARGEST, rtol=2e-5)
    x[:, 1::2] = 1e-30
    np.testing.assert_allclose(
        kept(x, "int8", "nu", step=1)[:, ::4], 2.0**-120, rtol=2e-5
    )
    assert np.all(np.isfinite(kept(x, "int8", "mu", step=1)))


def test_a_square_that_overflows_stays_alone():
    p = jnp.ones((32, 128))
    tx = rmsprop(0.1, state_dtype="int8")
    _, state = tx.update(p.at[2, 3].set(1e20), tx.init(p))
    updates, state = tx.update(p, state)
    assert updates[2, 3] == 0
    others = np.delete(np.asarray(updates).ravel(), 2 * 128 + 3)
    np.testing.assert_allclose(others, -0.1 / np.sqrt(0.0199), rtol=1e-5)


def test_an_element_that_dies_does_not_spoil_its_block():
    """Of what falls for ever its block would become as wide: here 21 %, and more."""
    gs = gradients(5000, 4096)
    gs = gs.at[200:, ::64].set(0.0)
    exact, narrow = run(gs)[0].nu, widened(run(gs, state_dtype="int8")[0].nu)
    error = np.abs(np.asarray(narrow / exact) - 1)
    assert np.median(np.delete(error, np.s_[::64])) < 0.16


def test_what_is_far_below_its_block_is_held():
    x = np.full((32, 128), 1.0, np.float32)
    x[:, 0] = 1e-30
    np.testing.assert_allclose(
        kept(x, "int8", "nu", step=1)[:, 0], np.exp(-28), rtol=1e-3
    )
    np.testing.assert_allclose(kept(x, "int8", "nu", step=1)[:, 1:], 1, rtol=1e-3)


TX = rmsprop(0.1, momentum=0.9, state_dtype="int8")


def two_steps(p, state):
    _, state = TX.update(p, state)
    return TX.update(p, state)[0]


@functools.cache
def parts_alone():
    parts = np.random.default_rng(0).normal(size=(8, 64, 128)).astype(np.float32)
    alone = jax.jit(lambda p: two_steps(p, TX.init(p)))
    return parts, np.stack([alone(part) for part in parts])


@pytest.mark.parametrize("way", ["shard_map", "shard_map, init outside", "pmap"])
def test_every_part_of_a_mapped_leaf_is_as_if_alone(way):
    p, expected = parts_alone()
    if way == "pmap":
        after = jax.pmap(lambda p: two_steps(p, TX.init(p)))(p)
    else:
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        rows = PartitionSpec("x")
        p = jax.device_put(p.reshape(512, 128), NamedSharding(mesh, rows))
        if way == "shard_map":
            mapped = jax.shard_map(
                lambda p: two_steps(p, TX.init(p)),
                mesh=mesh,
                in_specs=rows,
                out_specs=rows,
            )
            after = jax.jit(mapped)(p)
        else:
            state = TX.init(p)
            specs = jax.tree.map(lambda x: rows if x.ndim else PartitionSpec(), state)
            mapped = jax.shard_map(
                two_steps, mesh=mesh, in_specs=(rows, specs), out_specs=rows
            )
            after = jax.jit(mapped)(p, state)
    chex.assert_trees_all_close(after.reshape(expected.shape), expected, rtol=1e-2)


def test_gradients_of_another_dtype(x64):
    p = jnp.ones((64, 64), jnp.float32)
    tx = rmsprop(0.1, momentum=0.9, centered=True, state_dtype="int8")
    for dtype in (jnp.float64, jnp.bfloat16, jnp.float16):
        state = tx.init(p)
        updates, after = jax.eval_shape(tx.update, p.astype(dtype), state)
        assert updates.dtype == dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_passes_no_derivatives():
    p = jnp.linspace(1.0, 2.0, 4096)
    tx = rmsprop(0.1, momentum=0.9, state_dtype="int8")

    def moments(g):
        _, state = tx.update(g, tx.init(p))
        return widened(state.nu).sum() + widened(state.mu).sum()

    np.testing.assert_array_equal(jax.grad(moments)(p), 0.0)


def test_small_and_wide_leaves_are_kept_as_they_are():
    p = {
        "large": jnp.ones((64, 64)),
        "bfloat16": jnp.ones(4096, jnp.bfloat16),
        "small": jnp.ones(64),
        "complex": jnp.ones(4096, jnp.complex64),
        "count": jnp.arange(5000),
        "none": None,
    }
    state = rmsprop(momentum=0.9, state_dtype="int8").init(p)
    assert {
        name: jax.tree.leaves(leaf)[0].dtype
        for name, leaf in state.nu.items()
        if leaf is not None
    } == {
        "large": "int8",
        "bfloat16": "int8",
        "small": "float32",
        "complex": "complex64",
    }
    assert state.nu["count"] is state.nu["none"] is None
    assert state.nu["large"].step.shape == state.nu["large"].low.shape == (64, 1)
    assert state.mu["large"].low is None
    # Where no leaf is coded the state is what it is in float32.
    small = {"small": jnp.ones(64)}
    chex.assert_trees_all_equal(
        rmsprop(state_dtype="int8").init(small), rmsprop().init(small)
    )


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True}])
def test_the_state_keeps_its_form(options):
    p = {"w": jnp.ones((64, 64), jnp.bfloat16), "b": jnp.ones(3), "none": None}
    tx = rmsprop(**options, initial_scale=1.0, state_dtype="int8")
    state = tx.init(p)
    np.testing.assert_array_equal(widened(state.nu)["w"], 1.0)
    step = jax.jit(lambda state, g: tx.update(g, state, p)[::-1])
    after, updates = jax.lax.scan(lambda s, _: step(s, p), state, length=3)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert updates["w"].dtype == jnp.bfloat16
    eager, _ = tx.update(p, state)
    compiled, _ = jax.jit(tx.update)(p, state)
    chex.assert_trees_all_close(eager, compiled, rtol=1e-2)


@pytest.mark.live
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_nu_is_nearer_than_that_of_bitsandbytes(sigma):
    """Homogeneous gradients and lognormal ones, 200 steps, on the CPU."""
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
        import torch
    except ImportError:
        required = os.environ.get("RMSPROP_JAX_PEERS") == "required"
        (pytest.fail if required else pytest.skip)("bitsandbytes is not installed")
    gs = gradients(200, 1 << 13, sigma)
    p = torch.nn.Parameter(torch.zeros(1 << 13))
    optimizer = bitsandbytes.optim.RMSprop8bit([p], alpha=0.99)
    exact = np.zeros(1 << 13)
    for g in np.array(gs):
        p.grad = torch.tensor(g)
        optimizer.step()
        exact = 0.99 * exact + 0.01 * np.square(g, dtype=np.float64)
    theirs = bitsandbytes.functional.dequantize_blockwise(
        optimizer.state[p]["state1"],
        absmax=optimizer.state[p]["absmax1"],
        code=optimizer.state[p]["qmap1"],
        blocksize=256,
    )
    ours = widened(run(gs, state_dtype="int8")[0].nu)

    def errors(nu):
        return np.quantile(np.abs(np.asarray(nu, np.float64) / exact - 1), [0.5, 0.99])

    assert np.all(errors(ours) < errors(theirs) / 3)
    assert np.all(errors(ours) < ([0.006, 0.022] if sigma == 0 else [0.14, 0.6]))
