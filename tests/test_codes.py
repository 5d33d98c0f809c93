"""A moment in 8 bits: its codes, and the rule with them."""

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

import rmsprop_jax
from rmsprop_jax import _codes
from rmsprop_jax.checkpoints import to_torch
from rmsprop_jax.precision import random_bits, widened

# optax types states as any trees of arrays; here they are what they are.
rmsprop: Any = rmsprop_jax.rmsprop

KINDS = {"nu": True, "mu": False}
SIZE = 1 << 14
LARGEST = float(jnp.finfo(jnp.float32).max)


def kept(x, *place, has_low):
    """What is left of x once it was coded."""
    x = jnp.asarray(x, jnp.float32)
    scales = _codes.scales(x, has_low=has_low)
    codes = _codes.coded(x, *scales, random_bits(x.shape, *place))
    assert codes.codes.dtype == jnp.int8
    return np.asarray(_codes.decoded(codes), np.float64)


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((4096,), (0, 128)),
        ((4095,), None),
        ((64, 64), (1, 64)),
        ((784, 256), (1, 128)),
        ((784, 10), (0, 112)),
        ((3, 3, 64, 128), (3, 128)),
        ((50257, 768), (1, 128)),
        ((4099, 17), None),
        ((2, 31, 4099), None),
        ((4096, 31), (0, 128)),
        ((), None),
        ((0, 8192), None),
    ],
)
def test_blocks_are_of_one_length(shape, cut):
    assert _codes.block(shape) == cut


@pytest.mark.parametrize(
    ("kind", "value"), [("nu", 0.003), ("nu", 3.2e-5), ("mu", 0.0037), ("mu", -0.61)]
)
def test_rounding_is_unbiased(kind, value):
    x = np.full((4000, 128), value, np.float32)
    x[:, 0], x[:, 1] = 1e-30, 1.0
    r = kept(x, 7, has_low=KINDS[kind])[:, 2:]
    low, high = np.unique(r)
    assert low < value < high
    q = (value - low) / (high - low)
    # Four standard errors, and half of the 2^-16 of a chance.
    spread = 4 * np.sqrt(q * (1 - q) / r.size) + 2**-17
    assert abs(np.mean(r == high) - q) < spread
    # The nearest wrong rule, a chance linear in the logarithm, is as far as that.
    if kind == "nu":
        wrong = np.log(value / low) / np.log(high / low)
        assert abs(wrong - q) > 2 * spread


def test_what_codes_hold_stays():
    rng = np.random.default_rng(0)
    nu = np.exp(3 * rng.normal(size=(64, 128)))
    nu[:, ::5] = 0
    nu[3], nu[4] = 0, 2.5
    r = kept(nu, 1, has_low=True)
    np.testing.assert_array_equal(r == 0, nu == 0)
    np.testing.assert_allclose(r[4], 2.5, rtol=3e-7)
    np.testing.assert_allclose(r.max(1), nu.max(1), rtol=3e-6)
    least = np.where(nu > 0, nu, np.inf).min(1)[nu.max(1) > 0]
    found = np.where(r > 0, r, np.inf).min(1)[nu.max(1) > 0]
    np.testing.assert_allclose(found, least, rtol=3e-6)
    mu = rng.integers(-127, 128, (64, 128)) * 0.25
    mu[:, 0], mu[5] = 127 * 0.25, 0
    np.testing.assert_allclose(kept(mu, 1, has_low=False), mu, rtol=3e-7)
    # What was decoded is coded again as it was, up to the rounding of the scales.
    np.testing.assert_allclose(kept(r, 2, has_low=True), r, rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_alone(kind, value):
    x = np.ones((32, 128), np.float32)
    x[:, :2] = 0.5, 0.0
    x[3, 7] = value
    x[4] = value
    r = kept(x, 1, has_low=KINDS[kind])
    bad = ~np.isfinite(x)
    assert not np.any(np.isfinite(r[bad]))
    np.testing.assert_allclose(r[~bad], x[~bad], rtol=0.02)


def test_extremes():
    x = np.full((32, 128), LARGEST, np.float32)
    x[:, ::2] = 1e-45  # no code of its own
    x[:, ::4] = 2.0**-120
    r = kept(x, 1, has_low=True)
    assert np.all(np.isfinite(r))
    assert np.all(r[:, 2::4] == 0)
    np.testing.assert_allclose(r[:, ::4], LARGEST * np.exp(-28.0), rtol=2e-5)
    np.testing.assert_allclose(r[:, 1::2], LARGEST, rtol=2e-5)
    x[:, 1::2] = 1e-30
    np.testing.assert_allclose(kept(x, 1, has_low=True)[:, ::4], 2.0**-120, rtol=2e-5)
    assert np.all(np.isfinite(kept(x, 1, has_low=False)))


def gradients(steps, n, sigma=0.0, drop=1.0, seed=0):
    """Noise of lognormal scales; in the second half of another size."""
    rng = np.random.default_rng(seed)
    scale = np.exp(sigma * rng.normal(size=n))
    half = np.where(np.arange(steps) < steps // 2, 1.0, drop)[:, None]
    return jnp.asarray(rng.normal(size=(steps, n)) * scale * half, jnp.float32)


def run(gs, **options):
    """The moments after all gradients, and the mean of nu after each."""
    tx = rmsprop(**options)

    def step(state, g):
        _, state = tx.update(g, state)
        return state, jnp.mean(widened(state.nu))

    return jax.jit(lambda gs: jax.lax.scan(step, tx.init(gs[0]), gs))(gs)


@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
def test_nu_follows_as_in_float32(alpha):
    """Rounded to nearest it never comes down."""
    gs = gradients(4000, 4096, drop=0.1)
    options = {"alpha": alpha, "momentum": 0.9, "centered": True}
    _, wide = run(gs, **options)
    state, narrow = run(gs, **options, state_dtype="int8")
    assert state.nu.codes.dtype == state.mu.codes.dtype == jnp.int8
    assert state.grad_mean.dtype == jnp.float32
    np.testing.assert_allclose(narrow[-200:].mean(), wide[-200:].mean(), rtol=0.02)
    np.testing.assert_allclose(narrow[1000:], wide[1000:], rtol=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_zero_gradient_moves_nothing(momentum):
    p = jnp.ones((32, 128))
    tx = rmsprop(0.1, eps=0.0, momentum=momentum, state_dtype="int8")
    g = jnp.asarray(np.random.default_rng(0).normal(size=p.shape), p.dtype)
    g = g.at[:, ::3].set(0.0)
    state = tx.init(p)
    for _ in range(5):
        updates, state = tx.update(g, state)
        assert np.all(updates[:, ::3] == 0)
        assert np.all(widened(state.nu)[:, ::3] == 0)
        assert np.all(updates[:, 1::3] != 0)


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
    np.testing.assert_allclose(kept(x, 1, has_low=True)[:, 0], np.exp(-28), rtol=1e-3)
    np.testing.assert_allclose(kept(x, 1, has_low=True)[:, 1:], 1, rtol=1e-3)


@pytest.mark.parametrize("way", ["shard_map", "shard_map, init outside", "pmap"])
def test_every_part_of_a_mapped_leaf_is_as_if_alone(way):
    p = jax.random.normal(jax.random.key(0), (8, 64, 128))
    tx = rmsprop(0.1, momentum=0.9, state_dtype="int8")

    def two_steps(p, state):
        _, state = tx.update(p, state)
        return tx.update(p, state)[0]

    alone = jax.jit(lambda p: two_steps(p, tx.init(p)))
    expected = jnp.stack([alone(part) for part in p])
    if way == "pmap":
        after = jax.pmap(lambda p: two_steps(p, tx.init(p)))(p)
    else:
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        rows = PartitionSpec("x")
        p = jax.device_put(p.reshape(512, 128), NamedSharding(mesh, rows))
        if way == "shard_map":
            mapped = jax.shard_map(
                lambda p: two_steps(p, tx.init(p)),
                mesh=mesh,
                in_specs=rows,
                out_specs=rows,
            )
            after = jax.jit(mapped)(p)
        else:
            state = tx.init(p)
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
        updates, state = tx.update(p.astype(dtype), tx.init(p))
        assert updates.dtype == dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(p))


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
    dtypes = jax.tree.map(lambda x: str(x.dtype), state.nu.codes)
    assert dtypes == {
        "large": "int8",
        "bfloat16": "int8",
        "small": "float32",
        "complex": "complex64",
        "count": None,
        "none": None,
    }
    assert jax.tree.structure(state.nu.step) == jax.tree.structure(state.nu.low)
    assert state.nu.step["large"].shape == (64, 1)
    assert state.mu.low is None
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


def test_of_one_seed_the_same_run_of_another_another():
    gs = gradients(3, 4096)
    for dtype in ("int8", "bfloat16"):
        a, b, c = (run(gs, seed=s, state_dtype=dtype)[0] for s in (5, jnp.int32(5), 6))
        chex.assert_trees_all_equal(a, b)
        leaves = zip(jax.tree.leaves(a.nu), jax.tree.leaves(c.nu), strict=True)
        assert any(np.any(x != y) for x, y in leaves)
    # Members of a population have bits of their own.
    tx = jax.vmap(lambda seed: run(gs, seed=seed, state_dtype="int8")[0].nu.codes)
    members = tx(jnp.arange(2))
    assert np.any(members[0] != members[1])


def three_steps(p):
    tx = rmsprop(0.1, momentum=0.9, centered=True, state_dtype="int8")
    return jax.lax.fori_loop(0, 3, lambda _, state: tx.update(p, state)[1], tx.init(p))


@functools.cache
def three_steps_on_one_device():
    rng = np.random.default_rng(0)
    # The blocks of (64, 1024) fit the shards, and those of (64, 64) go across.
    p = {n: jnp.asarray(rng.normal(size=(64, n)), jnp.float32) for n in (64, 1024)}
    return p, jax.device_get(jax.jit(three_steps)(p))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x")])
@pytest.mark.parametrize("devices", [2, 8])
def test_the_codes_are_the_same_however_the_leaf_is_sharded(devices, spec, axis_type):
    p, one = three_steps_on_one_device()
    mesh = jax.make_mesh(
        (devices,),
        ("x",),
        axis_types=(axis_type,),
        devices=jax.devices()[:devices],
    )
    sharded = jax.device_put(p, NamedSharding(mesh, spec))
    many = jax.device_get(jax.jit(three_steps)(sharded))
    chex.assert_trees_all_close(one.nu.low, many.nu.low, rtol=1e-6)
    for a, b in ((one.nu, many.nu), (one.mu, many.mu)):
        for x, y in zip(*map(jax.tree.leaves, (a.codes, b.codes)), strict=True):
            # The bits are the same; the last one of a logarithm may not be.
            assert np.mean(x != y) < 1e-3


def test_makes_no_temporary_but_scales_and_moves_fewer_bytes():
    if jax.__version_info__ < (0, 10):
        pytest.skip("the compiler of jax 0.7 keeps what is rounded a second time")

    def program(dtype, **options) -> Any:
        tx = rmsprop(0.1, state_dtype=dtype, **options)

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return params + updates, state

        p = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
        state = jax.eval_shape(tx.init, p)
        return jax.jit(step, donate_argnums=(0, 1)).lower(p, state, p).compile()

    for options in (
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "centered": True},
    ):
        narrow, wide = program("int8", **options), program("float32", **options)
        moved = (x.cost_analysis()["bytes accessed"] for x in (narrow, wide))
        assert next(moved) < next(moved), options
        # Some numbers for each of the blocks.
        held = narrow.memory_analysis().temp_size_in_bytes
        assert held < 0.2 * SIZE, options


def test_torch_gets_numbers():
    p = {"weight": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)) + 3)}
    tx = rmsprop(momentum=0.9, state_dtype="int8")
    _, state = tx.update(p, tx.init(p))
    group = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0.9}
    zeros = {k: np.zeros((64, 64)) for k in ("square_avg", "momentum_buffer")}
    like = {
        "state": {0: {"step": 0, **zeros}},
        "param_groups": [{**group, "params": [0]}],
    }
    buffers = to_torch(state, like=like, names=["weight"])["state"][0]
    np.testing.assert_allclose(
        buffers["square_avg"], 0.01 * np.square(p["weight"]), rtol=0.05
    )


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
