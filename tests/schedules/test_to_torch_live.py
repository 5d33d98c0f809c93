"""The state_dict of a scheduler after more steps: the real torch's, and it goes on."""

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from support import schedulers
from support.schedulers import follow, make_optimizer, make_theirs

from rmsprop_jax import schedules

pytestmark = [
    pytest.mark.live,
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore:.*CyclicLR"),
]
RATES = (0.1, 0.02)
SINGLE = {
    "StepLR": {"step_size": 4, "gamma": 0.5},
    "MultiStepLR": {"milestones": [3, 9, 9], "gamma": 0.5},
    "ConstantLR": {"factor": 0.25, "total_iters": 9},
    "LinearLR": {"start_factor": 0.25, "total_iters": 9},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 30, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 7, "eta_min": 0.001},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2, "eta_min": 0.001},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 45},
    "SWALR": {"swa_lr": 0.05, "anneal_epochs": 12},
}


@pytest.fixture(scope="module")
def torch():
    """The real torch."""
    import torch
    import torch.optim.swa_utils

    return torch


def build_single(name, arguments):
    return lambda torch, optimizer: make_theirs(torch, optimizer, name, arguments)


def build_chain(*names):
    def build(torch, optimizer):
        made = [make_theirs(torch, optimizer, name, SINGLE[name]) for name in names]
        return torch.optim.lr_scheduler.ChainedScheduler(made, optimizer)

    return build


def build_sequence(milestones, *names):
    def build(torch, optimizer):
        made = [make_theirs(torch, optimizer, name, SINGLE[name]) for name in names]
        kind = torch.optim.lr_scheduler.SequentialLR
        return kind(optimizer, made, milestones)

    return build


def build_cosine_chain(torch, optimizer):
    """A cosine in the middle, which rises from 0."""
    parts = [
        make_theirs(torch, optimizer, "StepLR", SINGLE["StepLR"]),
        make_theirs(torch, optimizer, "CosineAnnealingLR", {"T_max": 7}),
        make_theirs(torch, optimizer, "ExponentialLR", {"gamma": 0.9}),
    ]
    return torch.optim.lr_scheduler.ChainedScheduler(parts)


def build_nested_chain(torch, optimizer):
    inner = build_chain("LinearLR", "CosineAnnealingLR")(torch, optimizer)
    parts = [inner, make_theirs(torch, optimizer, "StepLR", SINGLE["StepLR"])]
    return torch.optim.lr_scheduler.ChainedScheduler(parts, optimizer)


def build_leading_chain(torch, optimizer):
    """torch takes its first step twice."""
    chain = build_chain("LinearLR", "ExponentialLR", "CosineAnnealingLR")
    parts = [
        chain(torch, optimizer),
        make_theirs(torch, optimizer, "StepLR", SINGLE["StepLR"]),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that step, before the optimizer's
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [8])


BUILD = {name: build_single(name, of) for name, of in SINGLE.items()} | {
    "restarts of one length": build_single("CosineAnnealingWarmRestarts", {"T_0": 4}),
    "chain": build_chain("LinearLR", "ExponentialLR", "StepLR"),
    "chain with a cosine": build_cosine_chain,
    "chain with eta_min": build_chain("LinearLR", "CosineAnnealingLR", "StepLR"),
    "chain with cycles": build_chain("CosineAnnealingLR", "CyclicLR", "StepLR"),
    "chain with restarts": build_chain(
        "LinearLR", "CosineAnnealingWarmRestarts", "CosineAnnealingLR"
    ),
    "chain of a chain": build_nested_chain,
    "sequence": build_sequence([8], "LinearLR", "CosineAnnealingLR"),
    "sequence of three": build_sequence(
        [4, 20], "LinearLR", "CosineAnnealingWarmRestarts", "ExponentialLR"
    ),
    "sequence with a cycle": build_sequence([6], "ExponentialLR", "CyclicLR"),
    "sequence that a chain leads": build_leading_chain,
    "at once": build_sequence([0, 9], "LinearLR", "StepLR", "ExponentialLR"),
    "one skipped": build_sequence([5, 5], "LinearLR", "StepLR", "ExponentialLR"),
}


def assert_same(found, expected):
    """Equal but for the rounding of learning rates; a Counter is as it was."""
    if isinstance(expected, dict):
        assert [*found] == [*expected]
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-14)
    else:
        assert found == expected


def groups_of(optimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize("name", BUILD)
def test_the_state_dict_is_torchs(torch, name):
    """From before the first step, and past every milestone, in one go or in several."""
    optimizer = make_optimizer(torch, RATES)
    scheduler = BUILD[name](torch, optimizer)
    saved = {}
    for count in range(41):
        saved[count] = copy.deepcopy(scheduler.state_dict()), groups_of(optimizer)
        follow(optimizer, scheduler, 1)
    places = (0, 1, 4, 7, 8, 9, 20, 21, 40)
    for before, after in itertools.combinations_with_replacement(places, 2):
        state_dict, groups = saved[before]
        kept = copy.deepcopy(state_dict)
        made = schedules.to_torch(state_dict, after, param_groups=groups)
        assert_same(made, saved[after][0])
        assert_same(state_dict, kept)


@pytest.mark.parametrize("name", BUILD)
def test_torch_goes_on_with_it(torch, name):
    """Loaded into new ones, with the learning rate in each group."""
    optimizer = make_optimizer(torch, RATES)
    scheduler = BUILD[name](torch, optimizer)
    follow(optimizer, scheduler, 3)
    state_dict, groups = copy.deepcopy(scheduler.state_dict()), groups_of(optimizer)
    made = schedules.to_torch(state_dict, 23, param_groups=groups)
    follow(optimizer, scheduler, 20)
    expected, _ = follow(optimizer, scheduler, 15)

    optimizer = make_optimizer(torch, RATES)
    scheduler = BUILD[name](torch, optimizer)
    before = optimizer.state_dict()
    optimizer.load_state_dict({**before, "param_groups": groups})
    scheduler.load_state_dict(made)
    for group, rate in zip(optimizer.param_groups, made["_last_lr"], strict=True):
        group["lr"] = rate
    found, _ = follow(optimizer, scheduler, 15)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_functions_are_asked_for(torch):
    optimizer = make_optimizer(torch)
    given = {"lr_lambda": schedulers.inverse}
    scheduler = make_theirs(torch, optimizer, "LambdaLR", given)
    before = copy.deepcopy(scheduler.state_dict())
    follow(optimizer, scheduler, 5)
    with pytest.raises(ValueError, match="lambdas must be given, because"):
        schedules.to_torch(before, 5)
    made = schedules.to_torch(
        before, 5, lambdas=[lambda base: schedules.lambda_lr(base, schedulers.inverse)]
    )
    assert_same(made, scheduler.state_dict())


def test_once_per_epoch_and_with_skipped_steps(torch):
    optimizer = make_optimizer(torch)
    scheduler = make_theirs(torch, optimizer, "StepLR", SINGLE["StepLR"])
    before = copy.deepcopy(scheduler.state_dict())
    follow(optimizer, scheduler, 9)
    for count in (90, 99):
        made = schedules.to_torch(before, count, updates_per_step=10)
        assert_same(made, scheduler.state_dict())
    made = schedules.to_torch(before, 80, updates_per_step=10, offset=10)
    assert_same(made, scheduler.state_dict())


def test_torch_refuses_more_steps_too(torch):
    optimizer = make_optimizer(torch)
    scheduler = make_theirs(torch, optimizer, "OneCycleLR", SINGLE["OneCycleLR"])
    before, groups = copy.deepcopy(scheduler.state_dict()), groups_of(optimizer)
    with pytest.raises(ValueError, match="'total_steps', 45, after which torch raises"):
        schedules.to_torch(before, 46, param_groups=groups)
    with pytest.raises(ValueError, match="Tried to step 46 times"):
        follow(optimizer, scheduler, 46)
