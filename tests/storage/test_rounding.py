"""The laws of stochastic rounding, in every format that rounds."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.keeping import kept, kept_at_steps
from support.streams import gradients, run

import rmsprop_jax
from rmsprop_jax.precision import widened

# optax types states as any trees of arrays; here they are what they are.
rmsprop: Any = rmsprop_jax.rmsprop

FORMATS = ["bfloat16", "int8"]
each_format = pytest.mark.parametrize("dtype", FORMATS)
TINY = float(jnp.finfo(jnp.bfloat16).smallest_subnormal)
LARGEST = float(jnp.finfo(jnp.float32).max)
BAD = [np.inf, -np.inf, np.nan]


def block_of(value):
    """Enough of one value in blocks that reach from 1e-30 to 1."""
    x = np.full((2000, 128), value, np.float32)
    x[:, 0], x[:, 1] = 1e-30, 1.0
    return x


@pytest.mark.parametrize(
    ("dtype", "field", "value"),
    [
        *(("bfloat16", "nu", v) for v in (1.001, 3e-39, 1e-30, 1e30, 0.3 * TINY)),
        ("bfloat16", "mu", -1.007),
        *(("int8", "nu", v) for v in (0.003, 3.2e-5)),
        *(("int8", "mu", v) for v in (0.0037, -0.61)),
    ],
)
def test_is_unbiased(dtype, field, value):
    r = kept(block_of(value), dtype, field, step=7)[:, 2:]
    low, high = np.unique(r)
    value = float(np.float32(value))
    assert low < value < high
    q = (value - low) / (high - low)
    # Four standard errors, and half of the 2^-16 of a chance.
    spread = 4 * np.sqrt(q * (1 - q) / r.size) + 2**-17
    assert abs(np.mean(r == high) - q) < spread
    # The nearest wrong rule for codes of logarithms, a chance linear in these.
    if (dtype, field) == ("int8", "nu"):
        wrong = np.log(value / low) / np.log(high / low)
        assert abs(wrong - q) > 2 * spread


@each_format
def test_bits_are_independent(dtype):
    """Of the element, the step, the leaf, the moment, the seed."""
    steps = 20_000
    x = np.full((32, 128), 1.003, np.float32)
    x[:, 0], x[:, 1] = 0.5, 2.0  # the ends of a block are exact

    def up(field="nu", **place):
        r = kept_at_steps(x, np.s_[0, 2:5], dtype, field, steps, **place)
        return r > r.mean()

    first = up()
    share = first.mean(axis=0)
    np.testing.assert_allclose(share, share.mean(), atol=4 * 0.5 / np.sqrt(steps))
    others = [first[1:], first[:, 1:], up(leaf=1), up("mu"), up(seed=1)]
    ones = [first[:-1], first[:, :-1], *[first] * 3]
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(one.T, other.T, strict=True):
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(steps)


@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
def test_nu_follows_as_in_float32(alpha):
    """Rounded to nearest it never comes down."""
    gs = gradients(4000, 4096, drop=0.1)
    options = {"alpha": alpha, "momentum": 0.9, "centered": True}

    @jax.jit
    def all_of_them(gs):
        return [run(gs, **options, state_dtype=d) for d in ("float32", *FORMATS)]

    (_, wide), *narrow_ones = all_of_them(gs)
    for dtype, (state, narrow) in zip(FORMATS, narrow_ones, strict=True):
        kinds = {str(jax.tree.leaves(x)[0].dtype) for x in (state.nu, state.mu)}
        assert kinds == {dtype}
        assert state.grad_mean.dtype == jnp.float32
        np.testing.assert_allclose(narrow[-200:].mean(), wide[-200:].mean(), rtol=0.02)
        np.testing.assert_allclose(narrow[1000:], wide[1000:], rtol=0.05)


@each_format
def test_centered_nu_is_about_the_mean_that_is_kept(dtype):
    """Of a mean in bfloat16 it would also have the rounding's variance: 3.8 here."""
    rng = np.random.default_rng(0)
    gs = jnp.asarray(rng.normal(size=(2000, 4096)) + 1000, jnp.float32)
    _, means = jax.jit(lambda gs: run(gs, centered=True, state_dtype=dtype))(gs)
    assert abs(means[1800:].mean() - 1) < 0.02


@each_format
def test_what_is_not_finite_stays_alone(dtype):
    for field, value in [("nu", np.inf), ("nu", np.nan), *[("mu", v) for v in BAD]]:
        x = np.ones((32, 128), np.float32)
        x[:, :2] = 0.5, 0.0
        x[3, 7] = value
        x[4] = value
        r = kept(x, dtype, field)
        bad = ~np.isfinite(x)
        assert not np.any(np.isfinite(r[bad]))
        np.testing.assert_allclose(r[~bad], x[~bad], rtol=0.02)


@each_format
def test_what_is_finite_stays_finite(dtype):
    x = np.full((32, 128), LARGEST, np.float32)
    for field, values in (("nu", x), ("mu", x), ("mu", -x)):
        values = values.copy()
        values[:, 0] = 1.0
        r = kept(values, dtype, field)
        assert np.all(np.isfinite(r))
        np.testing.assert_allclose(r[:, 1:], values[:, 1:], rtol=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@each_format
def test_a_zero_gradient_moves_nothing(dtype, momentum):
    p = jnp.ones((32, 128))
    tx = rmsprop(0.1, eps=0.0, momentum=momentum, state_dtype=dtype)
    g = jnp.asarray(np.random.default_rng(0).normal(size=p.shape), p.dtype)
    g = g.at[:, ::3].set(0.0)
    state = tx.init(p)
    for _ in range(5):
        updates, state = tx.update(g, state)
        assert np.all(updates[:, ::3] == 0)
        assert np.all(widened(state.nu)[:, ::3] == 0)
        assert np.all(updates[:, 1::3] != 0)


@each_format
def test_of_one_seed_the_same_run_of_another_another(dtype):
    gs = gradients(3, 4096)

    def end(seed):
        return run(gs, seed=seed, state_dtype=dtype)[0].nu

    by_array = jax.jit(end)
    a, b = by_array(jnp.uint32(5)), jax.jit(lambda: end(5))()
    # Members of a population have bits of their own.
    members = jax.jit(jax.vmap(end))(jnp.array([6, 5]))
    other, same = (jax.tree.map(lambda x, i=i: x[i], members) for i in (0, 1))
    first, *rest = (jax.tree.leaves(x)[0] for x in (a, b, same, other))
    # Of codes a last bit of a logarithm may differ from program to program.
    differ = [np.mean(np.asarray(first != x)) for x in rest]
    assert differ[0] < 1e-3
    assert differ[1] < 1e-3
    assert differ[2] > 0.05


def three_steps(p, dtype):
    tx = rmsprop(0.1, momentum=0.9, centered=True, state_dtype=dtype)
    return jax.lax.fori_loop(0, 3, lambda _, state: tx.update(p, state)[1], tx.init(p))


SPECS = {
    "columns": PartitionSpec(None, ("x", "y")),
    "both": PartitionSpec("x", "y"),
}


@functools.cache
def three_steps_on_one_device(dtype):
    rng = np.random.default_rng(0)
    # The blocks of (64, 1024) fit the shards, and those of (64, 64) go across.
    p = {
        (n, split): rng.normal(size=(64, n)).astype(np.float32)
        for n in (64, 1024)
        for split in SPECS
    }
    return p, jax.device_get(jax.jit(lambda p: three_steps(p, dtype))(p))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@each_format
def test_the_bits_are_the_same_however_the_leaf_is_sharded(dtype, axis_type):
    p, one = three_steps_on_one_device(dtype)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    sharded = {
        (n, split): jax.device_put(x, NamedSharding(mesh, SPECS[split]))
        for (n, split), x in p.items()
    }
    many = jax.device_get(jax.jit(lambda p: three_steps(p, dtype))(sharded))
    if dtype == "bfloat16":
        chex.assert_trees_all_equal(one, many)
        return
    for x, y in zip(*map(jax.tree.leaves, (one, many)), strict=True):
        if x.dtype == np.int8:
            # The bits are the same; the last one of a logarithm may not be. Then a code
            # is another, and what follows from it.
            assert np.mean(x != y) < 1e-3
        else:
            np.testing.assert_allclose(x, y, rtol=5e-3)
