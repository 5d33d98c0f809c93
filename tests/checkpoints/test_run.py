"""The part that all formats share, with the parameters of a made-up one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparisons import assert_same
from support.state_dicts import update

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._convert import run
from rmsprop_jax.checkpoints._convert.run import ErrorHints, Group

pytestmark = pytest.mark.numerics

# optax types states as any trees of arrays; here they are what they are.
make_run: Any = run.make_run
split_run: Any = run.split_run
ParamState: Any = run.ParamState

HINTS = ErrorHints(
    keys={"nu": "velocity", "mu": "momentum", "grad_mean": "average_gradient"},
    to_drop="delete their blocks.",
    to_join="Compile one optimizer.",
)


def array(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def group(momentum=0.0, *, centered=False):
    return Group(dialects.keras, 0.1, {"momentum": momentum, "centered": centered})


def test_one_group_goes_on_as_its_own_transformation():
    record = ParamState("w", 0, 5, array(2, 3) ** 2, array(2, 3))
    tx, state = make_run(
        "file",
        [record],
        [group(0.9)],
        lambda weights: {"kernel": weights["w"].T},
        HINTS,
    )
    assert state.count == 5
    params = {"kernel": jnp.ones((3, 2))}
    by_hand = dialects.keras(0.1, momentum=0.9)
    expected = by_hand.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    np.testing.assert_array_equal(state.nu["kernel"], record.nu.T)
    assert record.mu is not None
    np.testing.assert_array_equal(state.mu["kernel"], record.mu.T)
    assert_same(update(tx, params, state), update(by_hand, params, state))


@pytest.mark.parametrize("is_first", [True, False])
def test_several_groups_there_and_back(is_first):
    """Each keeps what its rule keeps; the count is the most."""
    groups = [group(), group(0.9, centered=True)]
    records = [
        ParamState("a", 0, 7, array(2, 3) + 20),
        ParamState("b", 1, 6, array(2, 3) + 20, array(2, 3), array(2, 3)),
    ]
    if not is_first:
        groups.reverse()
        records = [record._replace(group=1 - record.group) for record in records]
    tx, state = make_run("file", records, groups, None, HINTS)
    expected = tx.init({"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))})
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    a, b = split_run(state, None, {"a": 0, "b": 1})
    assert_same(a, records[0]._replace(step_count=7))
    # The variance is rounded to float32, and E[g²] again.
    np.testing.assert_allclose(b.nu, records[1].nu, rtol=2e-7)
    assert_same(b._replace(nu=records[1].nu), records[1]._replace(step_count=7))


def test_our_variance_is_theirs_less_the_mean_squared():
    record = ParamState("a", 0, 1, array(3) ** 2 + 4, None, array(3))
    _, state = make_run("file", [record], [group(centered=True)], None, HINTS)
    assert record.grad_mean is not None
    exact = record.nu.astype(float) - record.grad_mean.astype(float) ** 2
    np.testing.assert_allclose(state.nu["a"], exact, rtol=1e-7)


def test_moments_that_a_parameter_has_not_yet_are_zeros():
    records = [
        ParamState("a", 0, 1, array(3) ** 2),
        ParamState("b", 0, 1, array(3) ** 2, array(3)),
    ]
    _, state = make_run("file", records, [group(0.9)], None, HINTS)
    assert not state.mu["a"].any()
    assert state.mu["b"].all()


def test_moments_that_the_settings_do_not_use_are_dropped():
    """As Paddle and TensorFlow 1 keep all, whatever the settings."""
    record = ParamState("a", 0, 1, array(3) ** 2, array(3), array(3))
    _, state = make_run("file", [record], [group()], None, HINTS)
    np.testing.assert_array_equal(state.nu["a"], record.nu)
    assert state.mu is None
    assert state.grad_mean is None


@pytest.mark.parametrize("listed", [False, True])
def test_rates_and_momenta_in_place_of_the_groups(listed):
    """Numbers and schedules, under the name that the dialect has."""
    record = ParamState("a", 0, 3, array(3) ** 2, array(3))
    settings = {"momentum": 0.0}

    def rate(count):
        return 0.01 * count.astype(float)

    def momentum(count):
        return 0.1 * count.astype(float)

    rates, momenta = ([rate], [momentum]) if listed else (rate, momentum)
    tx, state = make_run(
        "file",
        [record],
        [Group(dialects.timm, 0.1, settings)],
        None,
        HINTS,
        rates,
        momenta,
    )
    gradients = {"a": jnp.ones(3)}
    by_hand = dialects.timm(rate, momentum=momentum)
    assert_same(update(tx, gradients, state), update(by_hand, gradients, state))
    assert np.asarray(state.mu["a"]).all()


@pytest.mark.parametrize("name", ["learning_rate", "momentum"])
def test_refuses_what_does_not_fit_the_groups(name):
    records = [ParamState("a", 0, 1, array(3)), ParamState("b", 1, 1, array(3))]
    groups = [group(), group(0.9)]
    groups[1] = dataclasses.replace(groups[1], learning_rate=1.0)

    def refused(match, given, error: type[Exception] = ValueError):
        with pytest.raises(error, match=f"^{name} must {match}"):
            make_run("file", records, groups, None, HINTS, **{name: given})

    refused(r"be a list of one .*own, \[0", 0.5)
    refused("have one .*each of the 2 groups, but it had 1", [0.5])
    refused("be a finite number, not negative, but it was -1", [0.5, -1])
    refused("be a number", [0.5, "x"], TypeError)


@pytest.mark.parametrize(
    ("to_params", "says"),
    [
        (
            lambda w: {"a": w["a"]},
            "out .some of. 'b', .* parameters, delete their blocks.$",
        ),
        (
            lambda w: {"ab": np.stack([w["a"], w["b"]])},
            "'a', 'b', whose groups differ in their settings. Compile one optimizer.$",
        ),
        (
            lambda w: {k: x if x.min() < 0 else x[:2] for k, x in w.items()},
            "leaf .'a'. the shape .* for 'velocity'",
        ),
    ],
)
def test_errors_speak_the_format_s_words(to_params, says):
    records = [ParamState(name, g, 1, array(3) ** 2) for g, name in enumerate("ab")]
    with pytest.raises(ValueError, match=says):
        make_run("file", records, [group(), group(0.9)], to_params, HINTS)
