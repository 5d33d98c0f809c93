"""What holds for any gradients: tried on many, drawn by hypothesis."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree
from support.untyped import rmsprop

STEPS, SIZE = 4, 5
settings.register_profile("here", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("here")

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)

# What is drawn is tried on all of these rules, one program, which is compiled once. A
# momentum or α that is known to be 0 makes another rule than one that is not.
RULES = [
    {"centered": centered, "eps_in_sqrt": inside, "bias_correction": corrected} | rest
    for centered, inside, corrected in itertools.product([False, True], repeat=3)
    for rest in (
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.0, "nesterov": True, "alpha": 0.0},
        {"momentum": 0.9, "alpha": 0.0},
    )
]
ALPHAS = np.array([0.5, 0.99], np.float32)


def draws(elements):
    return arrays(np.float32, (STEPS, SIZE), elements=elements)


@functools.cache
def program(*, maximize):
    def steps(alpha, eps, gs, start, rule):
        numbers = {"alpha": alpha, "eps": eps, "maximize": maximize}
        tx = rmsprop(0.1, **numbers | rule)

        def step(carry, g):
            p, state = carry
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), state), (updates, state)

        return jax.lax.scan(step, (start, tx.init(start)), gs)[1]

    @jax.jit
    def all_of_them(eps, gs, start):
        return [
            jax.vmap(lambda alpha, rule=rule: steps(alpha, eps, gs, start, rule))(
                ALPHAS
            )
            for rule in RULES
        ]

    return all_of_them


def run(gs, eps=1e-8, *, maximize=False):
    """Of each rule the updates and the states: [alpha, step, element]."""
    return program(maximize=maximize)(np.float32(eps), gs, np.ones(SIZE, np.float32))


def updates(gs, eps=1e-8, *, maximize=False, momentum=True):
    """[rule, alpha, step, element]."""
    results = run(gs, eps, maximize=maximize)
    return np.stack(
        [
            updates
            for (updates, _), rule in zip(results, RULES, strict=True)
            if momentum or not rule["momentum"]
        ]
    )


@given(draws(finite), st.sampled_from([0.0, 1e-8]))
def test_finite_in_finite_out(gs, eps):
    for (moved, state), rule in zip(run(gs, eps), RULES, strict=True):
        for x in jax.tree.leaves((moved, state)):
            assert np.all(np.isfinite(x)), rule
        assert np.all(np.asarray(state.nu) >= 0), rule


@given(draws(finite), st.sampled_from([0.0, 1e-8]))
def test_zero_gradients_give_zero_directions(gs, eps):
    assert np.all(updates(gs, eps, momentum=False)[..., gs == 0] == 0)


@given(draws(moderate), st.integers(-20, 20))
def test_the_scale_of_the_gradients_does_not_matter_without_eps(gs, exponent):
    scaled = updates(gs * np.float32(2.0**exponent), eps=0.0)
    np.testing.assert_array_equal(scaled, updates(gs, eps=0.0))


@given(draws(moderate))
def test_turning_the_gradients_turns_the_updates(gs):
    np.testing.assert_array_equal(updates(-gs), -updates(gs))


@given(draws(moderate))
def test_maximizing_is_minimizing_the_negative(gs):
    np.testing.assert_array_equal(updates(gs, maximize=True), updates(-gs))


@given(draws(moderate), st.permutations(range(SIZE)))
def test_elements_are_independent(gs, order):
    expected = updates(gs)
    np.testing.assert_array_equal(updates(gs[:, order]), expected[..., order])
    others = gs.copy()
    others[:, 1:] = 7.0
    np.testing.assert_array_equal(updates(others)[..., 0], expected[..., 0])


def test_a_tree_and_its_leaves_agree():
    rng = np.random.default_rng(0)
    flags = ("centered", "nesterov", "bias_correction")
    tree = {"w": rng.normal(size=(3, 4)), "deep": [(rng.normal(size=7),), None]}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    flat, unravel = ravel_pytree(tree)
    for bits in itertools.product([False, True], repeat=3):
        tx = rmsprop(
            0.1, momentum=0.9, weight_decay=0.1, **dict(zip(flags, bits, strict=True))
        )

        @jax.jit
        def two_steps(p, tx=tx):
            _, state = tx.update(p, tx.init(p), p)
            return tx.update(p, state, p)[0]

        jax.tree.map(
            np.testing.assert_array_equal, two_steps(tree), unravel(two_steps(flat))
        )
