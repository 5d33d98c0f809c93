"""Every number may be a schedule: the rule is that of each step's own numbers."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.twin import trajectory
from support.untyped import rmsprop

from rmsprop_jax import dialects

pytestmark = pytest.mark.numerics

STEPS, SIZE = 40, 5


def schedule(function):
    """A function of the step as a float, which strict promotion asks for."""
    return lambda count: function(jnp.asarray(count).astype(float))


# Each goes up and down, at a pace of its own.
SCHEDULES = {
    "learning_rate": schedule(lambda t: 0.01 * (1.2 + jnp.sin(1.0 * t))),
    "alpha": schedule(lambda t: 0.9 + 0.09 * jnp.cos(0.7 * t)),
    "eps": schedule(lambda t: 1e-3 * (1.5 + jnp.sin(0.5 * t))),
    "weight_decay": schedule(lambda t: 0.1 * (1.1 + jnp.cos(0.3 * t))),
    "momentum": schedule(lambda t: 0.5 + 0.4 * jnp.sin(0.9 * t)),
}
CONSTANT = {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.8}


def gradients():
    return np.random.default_rng(0).normal(size=(STEPS, SIZE)) + 0.3


def run(tx, gs, start):
    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), (p, state)

    return jax.lax.scan(step, (start, tx.init(start)), gs)[1]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_scheduled_numbers_are_those_of_each_step(x64, centered, decoupled):
    gs, start = gradients(), np.linspace(-1.0, 1.0, SIZE)
    flags = {"centered": centered, "decoupled_weight_decay": decoupled}
    each = [{name: schedule} for name, schedule in SCHEDULES.items()]

    @jax.jit
    def all_of_them(gs, start):
        return [
            run(rmsprop(0.01, **flags | CONSTANT | s), gs, start)
            if "learning_rate" not in s
            else run(rmsprop(**flags | CONSTANT | s), gs, start)
            for s in [*each, SCHEDULES]
        ]

    for scheduled, (p, state) in zip(
        [*each, SCHEDULES], all_of_them(gs, start), strict=True
    ):
        numbers: Any = CONSTANT | {
            name: lambda t, s=s: float(s(t)) for name, s in scheduled.items()
        }
        twin = trajectory(gs, start, **flags | numbers)
        p_, nu_, mu_, mean_ = map(np.array, zip(*twin, strict=True))
        np.testing.assert_allclose(p, p_, rtol=0, atol=1e-12, err_msg=str(scheduled))
        np.testing.assert_allclose(state.nu, nu_, rtol=1e-12)
        np.testing.assert_allclose(state.mu, mu_, rtol=0, atol=1e-11)
        if centered:
            np.testing.assert_allclose(state.grad_mean, mean_, rtol=0, atol=1e-12)


def test_a_scheduled_momentum_keeps_its_buffer():
    tx = rmsprop(momentum=lambda count: 0.0)
    assert tx.init(jnp.ones(2)).mu is not None
    updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    plain, _ = rmsprop().update(jnp.ones(2), rmsprop().init(jnp.ones(2)))
    chex.assert_trees_all_close(updates, plain, rtol=1e-6)
    np.testing.assert_allclose(state.mu, -updates / 0.01, rtol=1e-6)


def test_a_schedule_may_return_a_python_number():
    g = jnp.ones(3)
    for name in SCHEDULES:
        constant, scheduled = rmsprop(**{name: 0.5}), rmsprop(**{name: lambda _: 0.5})
        expected, _ = constant.update(g, constant.init(g), g)
        updates, _ = scheduled.update(g, scheduled.init(g), g)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_a_schedule_is_asked_once_a_step_for_all_leaves():
    asked = []
    g = {"a": jnp.ones(2), "b": jnp.ones((3, 3))}
    tx = rmsprop(alpha=lambda count: asked.append(int(count)) or 0.9)
    state = tx.init(g)
    for _ in range(3):
        _, state = tx.update(g, state)
    assert asked == [0, 1, 2]


def test_dialects_take_schedules_too():
    """Keras's own names; the decay is decoupled, and falls with the rate."""
    p, g = jnp.ones(3), jnp.zeros(3)
    tx: Any = dialects.keras(
        schedule(lambda t: 0.5 / (1 + t)), weight_decay=schedule(lambda t: 0.1 + 0 * t)
    )
    state = tx.init(p)
    for t in range(3):
        updates, state = tx.update(g, state, p)
        np.testing.assert_allclose(updates, -0.05 / (1 + t), rtol=1e-6)


def test_no_digit_of_a_python_number_is_lost(x64):
    """Not even where another number is a schedule or float32."""
    g = jnp.asarray([1.0, 3.0])
    for rate in (0.1, lambda count: 0.1, lambda count: jnp.float32(0.125)):
        tx = rmsprop(rate, alpha=0.999)
        _, state = tx.update(g, tx.init(g))
        np.testing.assert_allclose(state.nu, (1 - 0.999) * g * g, rtol=1e-15)


def test_one_cycle_moves_rate_and_momentum():
    """As torch's OneCycleLR does: the momentum falls while the rate rises."""
    onecycle: Any = optax.linear_onecycle_schedule(40, 0.1)

    def rate(count):
        with jax.numpy_dtype_promotion("standard"):  # optax's own needs it
            return onecycle(count)

    tx = rmsprop(rate, momentum=lambda count: 0.95 - rate(count))
    g = jnp.ones(3)
    state = tx.init(g)
    step = jax.jit(tx.update)
    b = 0.0
    for t in range(40):
        updates, state = step(g, state)
        x = 1 / (np.sqrt(state.nu[0]) + 1e-8)
        b = (0.95 - float(rate(t))) * b + x
        np.testing.assert_allclose(updates[0], -float(rate(t)) * b, rtol=1e-5)
