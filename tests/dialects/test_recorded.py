"""Every dialect against what the framework itself did, recorded by `recorded`."""

import pytest
from recorded import problem
from recorded.frameworks import FRAMEWORKS
from support import trajectories

from rmsprop_jax import dialects, rmsprop
from rmsprop_jax._optimizer.transform import get_config

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


@pytest.mark.parametrize("name", NAMES)
def test_nearest_wrong_rule_is_told_apart(name):
    """The tolerances are worth something: whatever else a rule could be, they see."""
    for option, far in trajectories.wrong_rules(name, recording(name)).items():
        assert far > 10 * trajectories.TOLERANCE["float32"], option
