"""What holds for any gradients: tried on many, drawn by hypothesis."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree

import rmsprop_jax

# optax types states as any trees of arrays; here they are what they are.
rmsprop: Any = rmsprop_jax.rmsprop

STEPS, SIZE = 4, 5
settings.register_profile("here", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("here")

# From the least subnormal to where squares overflow.
finite = st.floats(-(2.0**62), 2.0**62, width=32)
moderate = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
options = st.fixed_dictionaries(
    {
        name: st.booleans()
        for name in ("centered", "nesterov", "eps_in_sqrt", "bias_correction")
    }
    | {"alpha": st.sampled_from([0.0, 0.5, 0.99])}
    | {"momentum": st.sampled_from([0.0, 0.9])}
)


def draws(elements):
    return arrays(np.float32, (STEPS, SIZE), elements=elements)


@functools.cache
def program(**rule):
    @jax.jit
    def steps(gs, start):
        tx = rmsprop(0.1, **rule)

        def step(carry, g):
            p, state = carry
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), state), (updates, state)

        return jax.lax.scan(step, (start, tx.init(start)), gs)[1]

    return steps


def updates(gs, rule, **more):
    return np.asarray(program(**rule, **more)(gs, np.ones(SIZE, np.float32))[0])


@given(draws(finite), options, st.sampled_from([0.0, 1e-8]))
def test_finite_in_finite_out(gs, rule, eps):
    result = program(**rule, eps=eps)(gs, np.ones(SIZE, "f"))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result))
    assert np.all(result[1].nu >= 0)


@given(draws(finite), options, st.sampled_from([0.0, 1e-8]))
def test_zero_gradients_give_zero_directions(gs, rule, eps):
    rule = rule | {"momentum": 0.0}
    assert np.all(updates(gs, rule, eps=eps)[gs == 0] == 0)


@given(draws(moderate), options, st.integers(-20, 20))
def test_the_scale_of_the_gradients_does_not_matter_without_eps(gs, rule, exponent):
    scaled = updates(gs * np.float32(2.0**exponent), rule, eps=0.0)
    np.testing.assert_array_equal(scaled, updates(gs, rule, eps=0.0))


@given(draws(moderate), options)
def test_turning_the_gradients_turns_the_updates(gs, rule):
    np.testing.assert_array_equal(updates(-gs, rule), -updates(gs, rule))


@given(draws(moderate), options)
def test_maximizing_is_minimizing_the_negative(gs, rule):
    np.testing.assert_array_equal(updates(gs, rule, maximize=True), updates(-gs, rule))


@given(draws(moderate), options, st.permutations(range(SIZE)))
def test_elements_are_independent(gs, rule, order):
    np.testing.assert_array_equal(
        updates(gs[:, order], rule), updates(gs, rule)[:, order]
    )
    others = gs.copy()
    others[:, 1:] = 7.0
    np.testing.assert_array_equal(updates(others, rule)[:, 0], updates(gs, rule)[:, 0])


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
