"""Finite gradients make finite numbers, however large, small or wild they are."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.untyped import rmsprop

pytestmark = pytest.mark.numerics

LARGEST = float(jnp.finfo(jnp.float32).max)
MOMENTA: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
]
FLAGS = ("centered", "eps_in_sqrt", "bias_correction")
RULES = [
    dict(zip(FLAGS, flags, strict=True)) | momentum
    for flags in itertools.product([False, True], repeat=3)
    for momentum in MOMENTA
]
DECAYS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
]


def streams(steps, each):
    """Gradients of every pattern and every scale: [steps, streams]."""
    rng = np.random.default_rng(0)
    scales = np.append(np.geomspace(1e-38, LARGEST, each - 1), LARGEST)
    t = np.arange(steps)[:, None]
    noise = rng.normal(size=(7, steps, each))
    patterns = [
        np.ones((steps, each)),
        np.where(t % 2, -1.0, 1.0) * np.ones(each),  # flipping
        noise[2] * (rng.random((steps, each)) < 0.1),  # sparse
        1 + 1e-3 * noise[3],  # a large mean
        noise[4] * np.exp(-1.0 * t),  # dying
        np.where(t == rng.integers(0, steps, each), 1.0, 1e-20 * noise[5]),  # a spike
        noise[6],
    ]
    gs = np.concatenate([pattern * scales for pattern in patterns], axis=1)
    return np.clip(gs, -LARGEST, LARGEST).astype(np.float32)


def run(gs, rate: Any = 0.01, **options):
    """Of every step the update and the state, for parameters that begin at 0."""
    tx = rmsprop(rate, **options)

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        return (optax.apply_updates(p, updates), state), (updates, state)

    start = jnp.zeros_like(gs[0])
    return jax.lax.scan(step, (start, tx.init(start)), gs)[1]


@pytest.mark.slow
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_no_gradients_make_what_is_not_finite(rule, eps, state_dtype):
    """10⁷ steps of an element in all, under a rate that is 0 at every third."""
    options = RULES[rule] | DECAYS[rule % 3] | {"state_dtype": state_dtype, "eps": eps}
    alphas = np.array([0.0, 0.5, 0.99, 0.999], np.float32)

    def rate(count):
        return jnp.where(count % 3 == 2, 0.0, 0.01)

    def are_finite(alpha, gs):
        updates, state = run(gs, rate, alpha=alpha, **options)
        fields = [updates, *jax.tree.leaves((state.nu, state.mu, state.grad_mean))]
        fine = [jnp.isfinite(field) for field in fields]
        return jnp.all(jnp.stack([*fine, state.nu >= 0]), axis=(0, 1))

    gs = streams(steps=100, each=38)
    fine = jax.jit(jax.vmap(are_finite, (0, None)))(alphas, gs)
    assert np.all(fine), np.argwhere(~fine)[:10]


def test_what_is_too_large_for_a_square_moves_as_its_pattern_says():
    """In exact arithmetic the scale of the gradients does not matter without eps."""
    patterns = [[1] * 30, [1, -1] * 15, [0, 1, 1] * 10, [0, 0, 0, 1, 0, -1] * 5]
    gs = np.array(patterns, np.float32).T
    rules = [rule | {"maximize": bool(i % 2)} for i, rule in enumerate(RULES)]

    @jax.jit
    def all_of_them(gs):
        return [run(gs, eps=0.0, **rule)[0] for rule in rules]

    expected = all_of_them(gs)
    for scale in (2.0**63, 1e20, LARGEST):
        for large, small in zip(all_of_them(gs * scale), expected, strict=True):
            np.testing.assert_array_equal(large, small)


def test_a_spike_is_forgotten():
    """With ν infinite, as torch has it, the element would stand still for ever."""
    gs = np.ones((2000, 1), np.float32)
    gs[5] = LARGEST
    for centered in (False, True):
        updates, state = run(gs, centered=centered, alpha=0.9, eps=1e-3)
        assert np.all(np.isfinite(updates))
        np.testing.assert_allclose(state.nu[-1], 0.0 if centered else 1.0, atol=1e-5)


def test_the_decayed_gradient_may_overflow():
    g = jnp.full(1, LARGEST)
    for options in ({}, {"centered": True}, {"momentum": 0.9}):
        tx = rmsprop(0.01, weight_decay=1.0, **options)
        updates, state = tx.update(g, tx.init(g), g)
        assert np.all(np.isfinite(updates))
        assert np.all(np.isfinite(state.nu))


@pytest.mark.parametrize("centered", [False, True])
def test_decay_rates_out_of_range_are_clipped(centered):
    """A schedule that is above 1 by rounding would make the second moment negative."""
    gs = np.full((5, 3), [1.0, -2.0, 1e-3], np.float32)
    for alpha, within in [(1.5, 1.0), (np.nextafter(np.float32(1), 2), 1.0), (-0.5, 0)]:
        for value in (
            jnp.float32(alpha),
            lambda count, alpha=alpha: jnp.float32(alpha),
            lambda count, alpha=alpha: float(alpha),
        ):
            ours, expected = (
                run(gs, 0.1, alpha=x, centered=centered, momentum=0.5)[0]
                for x in (value, within)
            )
            assert np.all(np.isfinite(ours))
            np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_negative_eps_is_clipped():
    gs = np.full((3, 3), [1.0, -2.0, 0.0], np.float32)
    ours, expected = (run(gs, 0.1, eps=eps)[0] for eps in (jnp.float32(-0.1), 0.0))
    np.testing.assert_array_equal(ours, expected)


def test_what_is_not_finite_shows():
    g = jnp.array([1.0, np.inf, -np.inf, np.nan])
    for rule in RULES[::5]:
        tx = rmsprop(0.01, **rule)
        updates, _ = tx.update(g, tx.init(g))
        assert np.isnan(updates).tolist() == [False, True, True, True]


@pytest.mark.parametrize("rule", RULES[::5], ids=range(len(RULES[::5])))
def test_float64_has_its_own_range(x64, rule):
    # 2⁵¹⁰, for which 1e300 counts, is 3.4e153.
    gs = np.array([1e300, 1e300, -1e300, 1e150])[:, None] * [1, 1e-100]
    large, state = run(gs, eps=0.0, **rule)
    assert np.all(np.isfinite(large))
    assert np.all(np.isfinite(state.nu))
    np.testing.assert_allclose(large[:3, 0], large[:3, 1], rtol=1e-12)
