"""bfloat16: the laws of stochastic rounding, what it holds exactly, derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.encoding import decoded, decoded_at_steps
from support.streams import gradients, run
from support.untyped import rmsprop

from rmsprop_jax._optimizer.bfloat16_rounding import round_to_bfloat16

TINY = float(jnp.finfo(jnp.bfloat16).smallest_subnormal)
LARGEST = float(jnp.finfo(jnp.bfloat16).max)


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("field", "value"),
    [*(("nu", v) for v in (1.001, 3e-39, 1e-30, 1e30, 0.3 * TINY)), ("mu", -1.007)],
)
def test_is_unbiased(field, value):
    r = decoded(np.full((2000, 128), value), "bfloat16", field, step=7)
    low, high = np.unique(r)
    value = float(np.float32(value))
    assert low < value < high
    q = (value - low) / (high - low)
    # Four standard errors, and half of the 2^-16 of a chance.
    spread = 4 * np.sqrt(q * (1 - q) / r.size) + 2**-17
    assert abs(np.mean(r == high) - q) < spread


@pytest.mark.numerics
def test_bits_are_independent():
    """Of the element, the step, the leaf, the moment, the seed."""
    steps = 20_000
    x = np.full((32, 128), 1.003, np.float32)

    def up(field="nu", **place):
        r = decoded_at_steps(x, np.s_[0, 2:5], "bfloat16", field, steps, **place)
        return r > r.mean()

    first = up()
    share = first.mean(axis=0)
    np.testing.assert_allclose(share, share.mean(), atol=4 * 0.5 / np.sqrt(steps))
    others = [first[1:], first[:, 1:], up(leaf=1), up("mu"), up(seed=1)]
    ones = [first[:-1], first[:, :-1], *[first] * 3]
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(one.T, other.T, strict=True):
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(steps)


@pytest.mark.numerics
@pytest.mark.parametrize("alpha", [0.9, 0.99, 0.999])
def test_nu_follows_as_in_float32(alpha):
    """Rounded to nearest it never comes down."""
    gs = gradients(4000, 4096, drop=0.1)
    options = {"alpha": alpha, "momentum": 0.9, "centered": True}

    @jax.jit
    def both(gs):
        return [run(gs, **options, state_dtype=d) for d in ("float32", "bfloat16")]

    (_, wide), (state, narrow) = both(gs)
    assert state.nu.dtype == state.mu.dtype == jnp.bfloat16
    assert state.grad_mean.dtype == jnp.float32
    np.testing.assert_allclose(narrow[-200:].mean(), wide[-200:].mean(), rtol=0.02)
    np.testing.assert_allclose(narrow[1000:], wide[1000:], rtol=0.05)


@pytest.mark.numerics
def test_centered_nu_is_about_the_mean_that_is_kept():
    """Of a mean in bfloat16 it would also have the rounding's variance: 3.8 here."""
    rng = np.random.default_rng(0)
    gs = jnp.asarray(rng.normal(size=(2000, 4096)) + 1000, jnp.float32)
    _, means = jax.jit(lambda gs: run(gs, centered=True, state_dtype="bfloat16"))(gs)
    assert abs(means[1800:].mean() - 1) < 0.02


@pytest.mark.numerics
def test_what_bfloat16_holds_stays():
    exact = [0.0, -0.0, 1.0, -1.0078125, TINY, -TINY, 5 * TINY, LARGEST, -LARGEST]
    x = np.repeat(np.array([*exact, np.inf, -np.inf, np.nan], np.float32), 100)
    # As a GPU makes it; the largest carry would make 0 of it.
    x[-50:] = np.array([0x7FFFFFFF, 0xFFFFFFFF] * 25, np.uint32).view(np.float32)
    for field in ("nu", "mu"):
        r = decoded(x, "bfloat16", field, step=3).astype(np.float32)
        same = r.view(np.uint32)[:-100] == x.view(np.uint32)[:-100]
        assert np.all(same)
        assert np.all(np.isnan(r[-100:]))


@pytest.mark.numerics
def test_beyond_the_largest_it_is_the_largest_or_infinite():
    """As when it is rounded to the nearest."""
    beyond = np.array([3.4e38, -3.4e38], np.float32)
    r = decoded(np.repeat(beyond, 1000), "bfloat16", "mu", step=1)
    assert set(r) == {LARGEST, -LARGEST, np.inf, -np.inf}


@pytest.mark.numerics
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_zero_gradient_moves_nothing(momentum):
    p = jnp.ones((32, 128))
    tx = rmsprop(0.1, eps=0.0, momentum=momentum, state_dtype="bfloat16")
    g = jnp.asarray(np.random.default_rng(0).normal(size=p.shape), p.dtype)
    g = g.at[:, ::3].set(0.0)
    state = tx.init(p)
    for _ in range(5):
        updates, state = tx.update(g, state)
        assert np.all(updates[:, ::3] == 0)
        assert np.all(state.nu[:, ::3] == 0)
        assert np.all(updates[:, 1::3] != 0)


@pytest.mark.numerics
def test_of_one_seed_the_same_run_of_another_another():
    gs = gradients(3, 4096)

    def end(seed):
        return run(gs, seed=seed, state_dtype="bfloat16")[0].nu

    by_array = jax.jit(end)
    a, b = by_array(jnp.uint32(5)), jax.jit(lambda: end(5))()
    # Members of a population have bits of their own.
    members = jax.jit(jax.vmap(end))(jnp.array([6, 5]))
    other, same = members
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, same)
    assert np.mean(np.asarray(a != other)) > 0.05


def three_steps(p):
    tx = rmsprop(0.1, momentum=0.9, centered=True, state_dtype="bfloat16")
    return jax.lax.fori_loop(0, 3, lambda _, state: tx.update(p, state)[1], tx.init(p))


SPECS = {
    "columns": PartitionSpec(None, ("x", "y")),
    "both": PartitionSpec("x", "y"),
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_the_bits_are_the_same_however_the_leaf_is_sharded(axis_type):
    p = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    p = dict.fromkeys(SPECS, p)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    sharded = {
        split: jax.device_put(x, NamedSharding(mesh, SPECS[split]))
        for split, x in p.items()
    }
    one, many = (jax.device_get(jax.jit(three_steps)(x)) for x in (p, sharded))
    chex.assert_trees_all_equal(one, many)


@pytest.mark.numerics
def test_derivatives_pass_as_if_not_rounded():
    def value(x):
        return round_to_bfloat16(x, jnp.uint32(77)).astype(jnp.float32)

    assert jax.grad(value)(1.001) == 1.0
