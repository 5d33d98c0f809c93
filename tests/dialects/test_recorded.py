"""Every dialect against what the framework itself did, recorded by `recorded`."""

import pytest
from recorded import problem
from recorded.frameworks import FRAMEWORKS
from support import trajectories
from support.steps import compile_quickly

from rmsprop_jax import dialects, rmsprop
from rmsprop_jax._optimizer.transform import (
    get_config,
    make_transformation_of_config,
)

NAMES = [name for name, framework in FRAMEWORKS.items() if framework.recorded]


def recording(name):
    return trajectories.RECORDED / f"{name}.npz"


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_theirs(name):
    trajectories.check_same_rule(name, recording(name))


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_theirs_or_better(name):
    trajectories.check_same_numbers(name, recording(name))


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_theirs(name):
    trajectories.check_same_arguments(name, recording(name))


def test_float32_is_as_near_to_torchs_float64_as_torch():
    exact, them, us = (
        trajectories.theirs(recording("torch"), "float64"),
        trajectories.theirs(recording("torch"), "float32"),
        trajectories.ours("torch", "float32"),
    )

    def ratio(names):
        goal = [exact[name] for name in names]
        return trajectories.rms_distance(
            [us[name] for name in names], goal
        ) / trajectories.rms_distance([them[name] for name in names], goal)

    plain = [name for name in exact if not trajectories.is_centered(name)]
    assert ratio(plain) <= 1.1
    assert max(ratio([name]) for name in exact) <= 1.25
    # Centered, torch's own subtraction costs it most of its accuracy.
    assert ratio([name for name in exact if trajectories.is_centered(name)]) <= 0.5


def test_rmsprop_is_the_torch_dialect():
    for c in problem.configurations("torch"):
        ours, theirs = (
            get_config(make(0.5, **c.arguments))._replace(names={})
            for make in (rmsprop, dialects.torch)
        )
        assert ours == theirs


def telling_arguments(name):
    """A framework's call that is a plain rule with momentum and decay, if it can.

    And with a large ε: where the second moment begins at 1 a small one is not seen.
    """
    numbers = {"decay", "rho", "gamma", "alpha", "epsilon", "eps"}
    numbers |= {"momentum", "weight_decay"}
    plain = [
        c.arguments
        for c in problem.configurations(name)
        if not any(value for word, value in c.arguments.items() if word not in numbers)
    ]

    def telling(arguments):
        eps = arguments.get("eps", arguments.get("epsilon", 0.0))
        return sum(map(bool, arguments.values())), eps

    return max(plain, key=telling)


@pytest.mark.parametrize("name", NAMES)
def test_nearest_wrong_rule_is_told_apart(name):
    """The tolerances are worth something: whatever else a rule could be, they see."""
    arguments = telling_arguments(name)
    right = get_config(trajectories.call(name, arguments)(0.01, 0.01))
    flags = ["eps_in_sqrt"]
    flags += ["learning_rate_in_momentum"] * right.rule.has_momentum
    flags += ["decoupled_weight_decay"] * right.rule.has_weight_decay
    wrong = {"initial_scale": right._replace(initial_scale=1.0 - right.initial_scale)}
    for flag in flags:
        opposite = {flag: not getattr(right.rule, flag)}
        wrong[flag] = right._replace(rule=right.rule._replace(**opposite))

    def call(option):
        def make(learning_rate, _):
            numbers = wrong[option].hyperparams._replace(learning_rate=learning_rate)
            return make_transformation_of_config(
                wrong[option]._replace(hyperparams=numbers)
            )

        return make

    them = trajectories.theirs(recording(name), "float32")
    key = problem.Configuration(arguments, "scheduled").name
    calls = {option: call(option) for option in wrong}
    for option, run in trajectories.run(
        name, "float32", calls, jit=compile_quickly
    ).items():
        if option.endswith("scheduled"):
            far = trajectories.distance(run, them[key])
            print(f"{name}: another {option.split(',')[0]} is {far:.1e} away")
            assert far > 10 * trajectories.TOLERANCE["float32"]
