"""Derivatives through whole runs, with respect to every number and to the start."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support.steps import compile_quickly

import rmsprop_jax
from rmsprop_jax import dialects

rmsprop: Any = rmsprop_jax.rmsprop

STEPS, BATCH, SIZE = 50, 8, 4
DEFAULTS = {
    "learning_rate": 0.01,
    "alpha": 0.99,
    "eps": 1e-5,  # larger than the differences, because it is clipped at 0
    "weight_decay": 0.0,
    "momentum": 0.0,
    "initial_scale": 0.0,
}
NUMBERS = {
    "learning_rate": 0.02,
    "alpha": 0.9,
    "eps": 0.05,
    "weight_decay": 0.1,
    "momentum": 0.7,
}
BUT_MOMENTUM = {name: x for name, x in NUMBERS.items() if name != "momentum"}
KERAS = BUT_MOMENTUM | {"momentum": 0.7}
KERAS["rho"], KERAS["epsilon"] = KERAS.pop("alpha"), KERAS.pop("eps")


def with_schedule(learning_rate, **options):
    return rmsprop(lambda count: learning_rate * 0.98 ** count.astype(float), **options)


# What makes the optimizer, its flags, its numbers.
RULES: dict[str, tuple[Any, tuple[str, ...], dict]] = {
    "almost torch's defaults": (rmsprop, (), DEFAULTS),
    "nu from 1": (rmsprop, (), NUMBERS | {"initial_scale": 1.0}),
    "eps in the root": (rmsprop, ("eps_in_sqrt",), BUT_MOMENTUM),
    "bias correction": (rmsprop, ("bias_correction",), NUMBERS),
    "decoupled": (rmsprop, ("decoupled_weight_decay",), NUMBERS),
    "nesterov, schedule": (with_schedule, ("nesterov",), NUMBERS),
    "rate in the momentum": (dialects.keras, (), KERAS),
}
# Centering changes what is under the root, so it comes with what else is done there.
# The other options are outside of the root, and come with one of the two.
ALWAYS_BOTH = {"bias correction", "eps in the root"}
CASES = [(rule, bool(n % 2)) for n, rule in enumerate(RULES)]
CASES += [(rule, not centered) for rule, centered in CASES if rule in ALWAYS_BOTH]


def batches():
    """Of a noisy regression: inputs [51, 8, 4] and outputs [51, 8], in float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS + 1, BATCH, SIZE))
    return x, x @ [1.0, -2.0, 0.5, 1.5] + 0.5 * rng.normal(size=x.shape[:-1])


START = np.array([-0.5, 0.8, 1.2, 0.7])


def train(make, numbers, start, wrap=lambda step: step):
    """The loss on the last batch, after a step on each of the others."""
    x, y = (jnp.asarray(array, start.dtype) for array in batches())
    tx = make(**numbers)

    @wrap
    def step(carry, batch):
        params, state = carry
        x, y = batch
        # The gradient of the mean of log cosh, which is |error| where that is large.
        gradient = jnp.tanh(x @ params - y) @ x / BATCH
        updates, state = tx.update(gradient, state, params)
        return (params + updates, state), None

    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), (x[:-1], y[:-1]))
    return jnp.mean(jnp.log(jnp.cosh(x[-1] @ params - y[-1])))


STEP_SIZE = 2e-4
OFFSETS = STEP_SIZE * np.array([1.0, -1.0, 0.5, -0.5])


def central_differences(up, down, half_up, half_down):
    """Derivatives by values at the offsets; the error is of their fourth power."""
    return (8 * (half_up - half_down) - (up - down)) / (6 * STEP_SIZE)


@functools.cache
def value_and_derivative(make, flags, names, centered):
    """Of the loss by (numbers, start), compiled once for all points and their rules."""
    _, unravel = ravel_pytree((dict.fromkeys(names, jnp.float64(0)), START))

    def function(point):
        numbers, start = unravel(point)
        options = dict.fromkeys(flags, True)
        return train(
            lambda **n: make(**n, **options, centered=centered), numbers, start
        )

    return compile_quickly(jax.vmap(jax.value_and_grad(function)))


@pytest.mark.parametrize(("rule", "centered"), CASES)
def test_equal_central_differences(x64, rule, centered):
    """Along every number, every parameter, and a random direction of all of them."""
    make, flags, values = RULES[rule]
    names = sorted(values)
    evaluate = value_and_derivative(make, flags, tuple(names), centered)
    point = np.array([*(values[name] for name in names), *START])
    names += [f"start[{i}]" for i in range(SIZE)]
    # Where the numbers are small, a smaller step.
    scales = {"learning_rate": 0.01, "eps": 0.01}
    scales["initial_scale"] = values.get("initial_scale") or 1e-4
    axes = np.diag([scales.get(name, 1.0) for name in names])
    along_all = np.random.default_rng(1).normal(size=len(names)) @ axes
    directions = np.vstack([axes, along_all])

    around = point + np.multiply.outer(OFFSETS, directions).reshape(-1, point.size)
    found, gradients = evaluate(np.vstack([point, around]))
    ours = directions @ np.asarray(gradients[0])
    expected = central_differences(*np.asarray(found[1:]).reshape(len(OFFSETS), -1))
    for name, one, other in zip([*names, "all"], ours, expected, strict=True):
        assert abs(other) > 1e-6, f"{name} does not matter here"
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)


# Ten steps' gradients of four elements. Centered, constant ones lose their variance,
# and with bias correction a first one has none.
SHAPE = (10, 4)
NOISE = np.random.default_rng(2).normal(size=SHAPE)
STEP = np.arange(SHAPE[0])[:, None]
GRADIENTS = {
    "zero": np.zeros(SHAPE),
    "some zero": np.where((STEP + np.arange(4)) % 3 == 0, 0.0, NOISE),
    "at first zero": np.where(STEP < 3, 0.0, NOISE),
    "then zero": np.where(STEP < 3, NOISE, 0.0),
    "one element zero": NOISE * [0.0, 1.0, 1.0, 1.0],
    "constant": np.ones(SHAPE) * [1e-3, -1.0, 30.0, 0.0],
    "squares below the least float32": NOISE * 1e-30,
}


# Each two of the three in every pairing.
@pytest.mark.parametrize(
    ("centered", "inside", "corrected"),
    [
        (False, False, False),
        (False, True, True),
        (True, False, True),
        (True, True, False),
    ],
)
def test_finite_where_gradients_and_moments_are_zero(centered, inside, corrected):
    """The root's own derivative is infinite there, and times 0 would be NaN.

    That is what optax and torch's `differentiable` give.
    """

    def total(numbers, gradients, start):
        rate, alpha, eps, momentum, decay = numbers
        tx = rmsprop(
            rate,
            alpha,
            eps,
            decay,
            momentum,
            centered=centered,
            eps_in_sqrt=inside,
            bias_correction=corrected,
        )

        def step(carry, g):
            p, state = carry
            updates, state = tx.update(g, state, p)
            return (p + updates, state), updates

        return jnp.sum(jax.lax.scan(step, (start, tx.init(start)), gradients)[1])

    rates, alphas, epss = jnp.meshgrid(
        jnp.array([0.1]), jnp.array([0.0, 0.5, 0.99]), jnp.array([0.0, 1e-8])
    )
    rest = jnp.full(rates.size, 0.9), jnp.zeros(rates.size)
    numbers = (rates.ravel(), alphas.ravel(), epss.ravel(), *rest)
    derivative = jax.grad(total, argnums=(0, 1, 2))
    several = compile_quickly(jax.vmap(derivative, in_axes=(0, None, None)))
    start = jnp.array([1.0, -1.0, 1.0, 0.0])
    for name, gradients in GRADIENTS.items():
        by_each = several(numbers, jnp.asarray(gradients, jnp.float32), start)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(by_each)), name
        if name == "zero":
            *by_numbers, _ = by_each[0]  # the decay makes a gradient of its own
            np.testing.assert_array_equal(by_numbers, 0)


def test_derivative_at_zero_is_that_of_the_line_through_it():
    """x = g/(√ν + ε) goes as g/ε near 0, and is odd: a kink of √ν does not count."""
    tx = rmsprop(0.1, eps=0.5)
    zero = jnp.zeros(())
    state = tx.init(zero)
    slope = jax.grad(lambda g: tx.update(g, state)[0])(zero)
    np.testing.assert_allclose(slope, -0.1 / 0.5, rtol=1e-6)


def test_recomputing_and_forward_mode_agree(x64):
    """So a long run may be differentiated in little memory, or along few numbers."""
    numbers = {name: jnp.asarray(value) for name, value in NUMBERS.items()}

    def make(**numbers):
        return rmsprop(**numbers, centered=True)

    def kept(numbers):
        return train(make, numbers, jnp.asarray(START))

    def recomputed(numbers):
        return train(make, numbers, jnp.asarray(START), jax.checkpoint)

    expected = compile_quickly(jax.grad(kept))(numbers)
    for other in (jax.grad(recomputed), jax.jacfwd(kept)):
        chex.assert_trees_all_close(
            compile_quickly(other)(numbers), expected, rtol=1e-9
        )


def test_bfloat16_state_passes_derivatives_as_if_not_rounded():
    """Each moment is rounded by itself, so the rule with most of them is enough."""

    def gradient(state_dtype):
        def make(**numbers):
            return rmsprop(**numbers, centered=True, state_dtype=state_dtype)

        def function(point):
            return train(make, *unravel(point))

        return np.asarray(compile_quickly(jax.grad(function))(point))

    numbers = {name: jnp.float32(value) for name, value in NUMBERS.items()}
    point, unravel = ravel_pytree((numbers, jnp.asarray(START, jnp.float32)))
    wide, narrow = gradient("float32"), gradient("bfloat16")
    # 0.002; the run itself is another one, by as much.
    assert np.linalg.norm(narrow - wide) <= 0.02 * np.linalg.norm(wide)
    assert np.any(narrow != wide)


@pytest.mark.parametrize("centered", [False, True])
def test_second_derivatives_are_finite_at_zero(centered):
    """Through a scan, where JAX differentiates what it has differentiated."""

    def end(numbers):
        rate, alpha, eps = numbers
        tx = rmsprop(rate, alpha, eps, momentum=0.5, centered=centered)

        def step(state, g):
            updates, state = tx.update(g, state)
            return state, updates

        gs = jnp.array([[0.0, 1.0], [0.0, -2.0], [0.0, 0.5]])
        return jnp.sum(jax.lax.scan(step, tx.init(gs[0]), gs)[1])

    numbers = jnp.array([0.1, 0.9, 0.01])
    found = compile_quickly(jax.hessian(end))(numbers)
    assert np.all(np.isfinite(found))
    forward = compile_quickly(jax.jacfwd(jax.jacfwd(end)))(numbers)
    np.testing.assert_allclose(found, forward, rtol=1e-3, atol=1e-3)
