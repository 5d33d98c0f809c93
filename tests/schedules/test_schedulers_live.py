"""Every scheduler beside the real torch: in float64 to 1e-12, in float32 to 1e-6."""

import functools
import inspect
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import schedulers
from support.schedulers import (
    CASES,
    FUNCTIONS,
    WITH_OWN,
    evaluate,
    find_class,
    follow,
    make_optimizer,
    make_ours,
    make_theirs,
)

from rmsprop_jax import rmsprop, schedules
from rmsprop_jax.checkpoints import from_torch

pytestmark = pytest.mark.live
LIMITS = {"float64": 1e-12, "float32": 1e-6}


@pytest.fixture(scope="module")
def torch():
    """The real torch."""
    import torch
    import torch.optim.swa_utils

    return torch


@pytest.fixture(params=LIMITS)
def limit(request):
    """How far from torch we may be, of the largest value, in each precision."""
    if request.param == "float64":
        request.getfixturevalue("x64")
    return LIMITS[request.param]


def assert_follows(ours, theirs, limit):
    """Both schedules have torch's values at every step; momentum None never moves."""
    rates, momenta = theirs
    steps = len(rates) - 1
    found = evaluate(ours.learning_rate, steps)
    largest = np.abs(rates).max()
    np.testing.assert_allclose(found, rates, rtol=0, atol=limit * largest)
    if ours.momentum is None:
        assert (momenta == momenta[0]).all()
    else:
        found = evaluate(ours.momentum, steps)
        np.testing.assert_allclose(found, momenta, rtol=0, atol=limit * momenta.max())


def steps_of(name, arguments, scheduler):
    """1,000 steps, and past every boundary."""
    if name == "OneCycleLR":
        # At pct_start=1, torch divides by 0 at its last step.
        return scheduler.total_steps - (arguments.get("pct_start") == 1.0)
    cycle = sum(arguments.get(key) or 0 for key in ("T_max", "step_size_up"))
    return max(1000, 4 * cycle + 3, 9000 if name == "CyclicLR" and not cycle else 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    CASES,
    ids=[f"{name}-{n}" for n, (name, _) in enumerate(CASES)],
)
def test_every_scheduler_is_torchs(torch, limit, name, arguments):
    optimizer = make_optimizer(torch)
    theirs = make_theirs(torch, optimizer, name, arguments)
    rates, momenta = follow(optimizer, theirs, steps_of(name, arguments, theirs))
    ours = make_ours(name, arguments)
    assert_follows(ours, (rates[:, 0], momenta[:, 0]), limit)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_torchs(torch, name):
    """Their names, order and defaults, after the base learning rate."""
    theirs = [*inspect.signature(find_class(torch, name)).parameters.values()]
    theirs = [p for p in theirs if p.name not in ("optimizer", "last_epoch")]
    function = getattr(schedules, FUNCTIONS[name])
    ours = [*inspect.signature(function).parameters.values()]
    if name not in (*WITH_OWN, "SequentialLR", "ChainedScheduler"):
        assert ours.pop(0).name == "learning_rate"
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


def test_no_scheduler_of_torch_is_missing(torch):
    known = {*torch.optim.lr_scheduler.__all__} - {"LRScheduler"}
    assert {*FUNCTIONS} == known | {"SWALR"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted({name for name, _ in CASES} - {*WITH_OWN}))
def test_several_groups(torch, name):
    """torch's scheduler has the base learning rate of each."""
    arguments = next(of for case, of in CASES if case == name)
    rates = (0.1, 0.003, 2.0)
    optimizer = make_optimizer(torch, rates)
    theirs, _ = follow(optimizer, make_theirs(torch, optimizer, name, arguments), 100)
    for group, rate in enumerate(rates):
        ours = make_ours(name, arguments, rate)
        assert_follows(ours, (theirs[:, group], np.zeros(101)), 1e-12)


# --- Any arguments.

counts = st.integers(1, 400)
gammas = st.floats(0.5, 1.01)
unit = st.floats(0.0, 1.0)
rates = st.floats(1e-6, 10.0)
ANY = {
    "StepLR": {"step_size": counts, "gamma": gammas},
    "MultiStepLR": {
        "milestones": st.lists(st.integers(0, 300), max_size=6),
        "gamma": gammas,
    },
    "ConstantLR": {"factor": st.floats(1e-3, 1.0), "total_iters": counts},
    "LinearLR": {
        "start_factor": st.floats(1e-3, 1.0),
        "end_factor": unit,
        "total_iters": counts,
    },
    "ExponentialLR": {"gamma": gammas},
    "PolynomialLR": {"total_iters": counts, "power": st.floats(0.0, 4.0)},
    "CosineAnnealingLR": {"T_max": counts, "eta_min": st.floats(0.0, 1.0)},
    "CosineAnnealingWarmRestarts": {
        "T_0": counts,
        "T_mult": st.integers(1, 4),
        "eta_min": st.floats(0.0, 1.0),
    },
    "CyclicLR": {
        "base_lr": rates,
        "max_lr": rates,
        "step_size_up": counts,
        "step_size_down": st.none() | counts,
        "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
        "gamma": gammas,
        "base_momentum": unit,
        "max_momentum": unit,
    },
    "OneCycleLR": {
        "max_lr": rates,
        "total_steps": st.integers(2, 400),
        "pct_start": st.floats(0.1, 0.9),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
        "base_momentum": unit,
        "max_momentum": unit,
        "div_factor": st.floats(1.0, 100.0),
        "final_div_factor": st.floats(1.0, 1e5),
        "three_phase": st.booleans(),
    },
    "SWALR": {
        "swa_lr": rates,
        "anneal_epochs": st.integers(0, 400),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
    },
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ANY)
def test_any_arguments(torch, name):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(arguments=st.fixed_dictionaries(ANY[name]), rate=rates)
    def check(arguments, rate):
        optimizer = make_optimizer(torch, (rate,))
        try:
            theirs = make_theirs(torch, optimizer, name, arguments)
        except ZeroDivisionError:
            with pytest.raises(ValueError, match="divides by 0"):
                make_ours(name, arguments, rate)
            return
        steps = theirs.total_steps if name == "OneCycleLR" else 700
        found, momenta = follow(optimizer, theirs, steps)
        ours = make_ours(name, arguments, rate)
        # Two millionths of a millionth: the drift of torch's own 700 multiplications.
        assert_follows(ours, (found[:, 0], momenta[:, 0]), 2e-12)

    check()


# --- Schedulers of schedulers.

# Each as torch's class and its arguments, where a list of pairs is nested.
SEQUENCES = {
    "warm-up, cosine": (
        [
            ("LinearLR", {"start_factor": 0.01, "total_iters": 20}),
            ("CosineAnnealingLR", {"T_max": 80, "eta_min": 0.001}),
        ],
        [20],
    ),
    "constant, exponential": (
        [("ConstantLR", {"factor": 0.1}), ("ExponentialLR", {"gamma": 0.9})],
        [20],
    ),
    "warm restarts": (
        [
            ("LinearLR", {}),
            ("CosineAnnealingWarmRestarts", {"T_0": 7, "T_mult": 2}),
            ("PolynomialLR", {"total_iters": 50}),
        ],
        [5, 100],
    ),
    "at once": ([("LinearLR", {}), ("StepLR", {"step_size": 30})], [0]),
    "one skipped": (
        [
            ("LinearLR", {}),
            ("ExponentialLR", {"gamma": 0.5}),
            ("StepLR", {"step_size": 9}),
        ],
        [5, 5],
    ),
    "every kind": (
        [
            ("StepLR", {"step_size": 4}),
            ("MultiStepLR", {"milestones": [0, 3]}),
            ("PolynomialLR", {"total_iters": 9}),
            ("LambdaLR", {"lr_lambda": schedulers.inverse}),
            ("CosineAnnealingLR", {"T_max": 1}),
            ("ConstantLR", {"total_iters": 3}),
        ],
        [11, 20, 35, 50, 60],
    ),
    "multiplied on": (
        [
            ("ExponentialLR", {"gamma": 0.9}),
            ("MultiplicativeLR", {"lr_lambda": schedulers.gentle}),
        ],
        [9],
    ),
    "annealed on": (
        [("ExponentialLR", {"gamma": 0.9}), ("SWALR", {"swa_lr": 0.2})],
        [9],
    ),
    "constant for nothing": (
        [("ExponentialLR", {"gamma": 0.9}), ("ConstantLR", {"total_iters": 0})],
        [9],
    ),
    "with cycles": (
        [
            ("LinearLR", {}),
            ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 10}),
            ("ExponentialLR", {"gamma": 0.9}),
        ],
        [5, 42],
    ),
    "two cycles": (
        [
            ("LinearLR", {}),
            ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 10}),
            ("PolynomialLR", {"total_iters": 30}),
            (
                "CyclicLR",
                {
                    "base_lr": 0.1,
                    "max_lr": 0.3,
                    "step_size_up": 7,
                    "base_momentum": 0.2,
                    "max_momentum": 0.7,
                },
            ),
        ],
        [5, 28, 50],
    ),
    "a cycle first": (
        [
            ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 10}),
            ("ExponentialLR", {"gamma": 0.9}),
        ],
        [42],
    ),
}


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_sequences_are_torchs(torch, limit, sequence):
    parts, milestones = SEQUENCES[sequence]
    optimizer = make_optimizer(torch)
    made = [make_theirs(torch, optimizer, *part) for part in parts]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, made, milestones)
    theirs, momenta = follow(optimizer, scheduler, 200)
    names = [name for name, _ in parts]
    pairs = [make_ours(*part) for part in parts]
    ours = schedules.sequential_lr(
        [
            pair if name in WITH_OWN else pair.learning_rate
            for name, pair in zip(names, pairs, strict=True)
        ],
        milestones,
    )
    if not isinstance(ours, schedules.LearningRateAndMomentum):
        ours = schedules.LearningRateAndMomentum(ours)
    assert_follows(ours, (theirs[:, 0], momenta[:, 0]), limit)


def one_cycle_of(base):
    return "OneCycleLR", {"max_lr": 25 * base, "total_steps": 300}


def assert_sequence_is_torchs(torch, limit, parts, milestones):
    optimizer = make_optimizer(torch)
    made = [make_theirs(torch, optimizer, *part) for part in parts]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, made, milestones)
    theirs, momenta = follow(optimizer, scheduler, 200)
    pairs = [make_ours(*part) for part in parts]
    ours = schedules.sequential_lr(
        [x if x.momentum else x.learning_rate for x in pairs], milestones
    )
    if not isinstance(ours, schedules.LearningRateAndMomentum):
        ours = schedules.LearningRateAndMomentum(ours)
    assert_follows(ours, (theirs[:, 0], momenta[:, 0]), limit)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["ExponentialLR", "LinearLR", "CosineAnnealingLR"])
def test_a_sequence_with_one_cycle_of_the_base_is_torchs(torch, limit, name, is_first):
    parts = [(name, MULTIPLY[name]), one_cycle_of(schedulers.LEARNING_RATE)]
    assert_sequence_is_torchs(torch, limit, parts[::-1] if is_first else parts, [40])


LAMBDA = ("LambdaLR", {"lr_lambda": schedulers.gentle})
RESTARTS = ("CosineAnnealingWarmRestarts", {"T_0": 30})
# A OneCycleLR would read the momenta of the CyclicLR: see SHARED.
LOW_CYCLE, CYCLE_OF_BASE = (
    (
        "CyclicLR",
        {"base_lr": low, "max_lr": 0.3, "step_size_up": 10, "cycle_momentum": False},
    )
    for low in (0.01, schedulers.LEARNING_RATE)
)
KEPT = [
    [LAMBDA, one_cycle_of(0.02)],
    [RESTARTS, one_cycle_of(0.02)],
    [LOW_CYCLE, one_cycle_of(0.02)],
    [one_cycle_of(0.02), LOW_CYCLE],
    [one_cycle_of(0.02), ("MultiplicativeLR", {"lr_lambda": schedulers.gentle})],
    [CYCLE_OF_BASE, ("ExponentialLR", {"gamma": 0.97}), one_cycle_of(0.02)],
]


@pytest.mark.parametrize("parts", KEPT, ids=lambda parts: "-".join(x for x, _ in parts))
def test_one_cycle_leaves_some_schedulers_alone(torch, limit, parts):
    """So they need not have its base learning rate."""
    assert_sequence_is_torchs(torch, limit, parts, [40, 80][: len(parts) - 1])


FINAL_RATE = ("SWALR", {"swa_lr": 0.05})
# torch's OneCycleLR and SWALR read their settings where later ones have written theirs.
SHARED = [
    [FINAL_RATE, ("SWALR", {"swa_lr": 0.05, "anneal_epochs": 4})],
    [
        LOW_CYCLE,
        one_cycle_of(schedulers.LEARNING_RATE),
        ("StepLR", {"step_size": 9}),
    ],
    [FINAL_RATE, one_cycle_of(schedulers.LEARNING_RATE)],
    [FINAL_RATE, CYCLE_OF_BASE, one_cycle_of(schedulers.LEARNING_RATE)],
    [one_cycle_of(0.02), FINAL_RATE],
    [
        (
            "OneCycleLR",
            {
                "max_lr": 0.4,
                "total_steps": 99,
                "base_momentum": 0.8,
                "max_momentum": 0.9,
            },
        ),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 10}),
    ],
    [
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 10}),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 300}),
    ],
    [
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 99}),
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 300, "pct_start": 0.1}),
    ],
]


@pytest.mark.parametrize("parts", SHARED, ids=lambda x: "-".join(name for name, _ in x))
def test_settings_that_agree_are_torchs(torch, limit, parts):
    assert_sequence_is_torchs(torch, limit, parts, [40, 80][: len(parts) - 1])


# Their first step twice is another learning rate.
DOUBLED = ["ExponentialLR", "PolynomialLR", "CosineAnnealingLR", "MultiplicativeLR"]


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch steps it twice
@pytest.mark.parametrize("name", ["StepLR", "LinearLR", *DOUBLED])
def test_a_sequence_that_begins_with_another_is_torchs_one_step_early(
    torch, limit, name
):
    """As the error says: the first one in a chain, and its milestones one smaller."""
    parts = [(x, MULTIPLY[x]) for x in (name, "ExponentialLR", "StepLR")]
    optimizer = make_optimizer(torch)
    made = [make_theirs(torch, optimizer, *part) for part in parts]
    sequential = torch.optim.lr_scheduler.SequentialLR
    inner = sequential(optimizer, made[:2], [7])
    theirs, momenta = follow(
        optimizer, sequential(optimizer, [inner, made[2]], [30]), 99
    )
    first, *others = (make_ours(*part).learning_rate for part in parts)
    ours = schedules.sequential_lr(
        [schedules.chained_scheduler([first]), *others], [6, 30]
    )
    pair = schedules.LearningRateAndMomentum(ours)
    assert_follows(pair, (theirs[:, 0], momenta[:, 0]), limit)


MULTIPLY = {
    "StepLR": {"step_size": 30, "gamma": 0.5},
    "MultiStepLR": {"milestones": [3, 90], "gamma": 0.5},
    "ConstantLR": {"factor": 0.25},
    "LinearLR": {"start_factor": 0.25, "total_iters": 9},
    "ExponentialLR": {"gamma": 0.97},
    "PolynomialLR": {"total_iters": 150, "power": 2.0},
    "MultiplicativeLR": {"lr_lambda": schedulers.gentle},
    "CosineAnnealingLR": {"T_max": 40},
}
CHAINS = [
    *itertools.permutations(MULTIPLY, 2),
    ("LinearLR",),
    ("ConstantLR", "LinearLR", "ExponentialLR", "CosineAnnealingLR", "StepLR"),
]


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_chains_are_torchs(torch, limit, chain):
    optimizer = make_optimizer(torch)
    made = [make_theirs(torch, optimizer, name, MULTIPLY[name]) for name in chain]
    scheduler = torch.optim.lr_scheduler.ChainedScheduler(made)
    theirs, momenta = follow(optimizer, scheduler, 250)
    ours = schedules.chained_scheduler(
        [make_ours(name, MULTIPLY[name]).learning_rate for name in chain]
    )
    pair = schedules.LearningRateAndMomentum(ours)
    assert_follows(pair, (theirs[:, 0], momenta[:, 0]), limit)


CYCLE = ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 10})
ONE_CYCLE = ("OneCycleLR", {"max_lr": 0.1, "total_steps": 1100})
GENTLE = ("MultiplicativeLR", {"lr_lambda": schedulers.gentle})


def cosine(T_max, eta_min=0.01):
    return ("CosineAnnealingLR", {"T_max": T_max, "eta_min": eta_min})


def linear(total_iters, end_factor=1.0):
    return ("LinearLR", {"total_iters": total_iters, "end_factor": end_factor})


# What a product of factors does not have.
MIXED = {
    "warm-up": [linear(9), cosine(40)],
    "warm-up after": [cosine(40), ("ConstantLR", {"total_iters": 9})],
    "a cosine alone": [cosine(7)],
    "a long one": [linear(5), cosine(300, 0.2)],
    "settles at the lowest point": [cosine(7), linear(7, 0.5)],
    "settles at a later one": [linear(21, 0.5), cosine(7)],
    "settles in a rise": [("ConstantLR", {"total_iters": 60}), cosine(40)],
    "settles in a later fall": [cosine(7), ("PolynomialLR", {"total_iters": 31})],
    "of one step": [cosine(1), linear(5)],
    "exponential": [cosine(40), ("ExponentialLR", {"gamma": 0.97})],
    "exponential and settles": [
        cosine(7),
        linear(7, 0.5),
        ("ExponentialLR", {"gamma": 0.97}),
    ],
    "steps": [
        ("StepLR", {"step_size": 30, "gamma": 0.9}),
        cosine(40),
        ("MultiStepLR", {"milestones": [0, 3, 50, 50], "gamma": 0.5}),
        ("ExponentialLR", {"gamma": 0.99}),
    ],
    "two cosines": [cosine(7), linear(5), cosine(10, 0.0)],
    "the same cosine": [cosine(7, 0.0), cosine(7, 0.0)],
    "a cycle": [linear(5), CYCLE, ("StepLR", {"step_size": 3, "gamma": 0.5})],
    "a cycle first": [CYCLE, linear(5)],
    "one cycle": [linear(5), ONE_CYCLE, GENTLE, ("ConstantLR", {})],
    "two cycles": [CYCLE, ONE_CYCLE],
    "a function": [
        ("LambdaLR", {"lr_lambda": schedulers.inverse}),
        ("StepLR", {"step_size": 1, "gamma": 0.5}),
        cosine(40),
    ],
    "warm restarts": [
        ("CosineAnnealingWarmRestarts", {"T_0": 7, "T_mult": 2}),
        cosine(1),
        ("PolynomialLR", {"total_iters": 100}),
    ],
    "replaced last": [
        GENTLE,
        cosine(7),
        cosine(9),
        ("CosineAnnealingWarmRestarts", {"T_0": 7, "eta_min": 0.001}),
    ],
}


def make_chain(torch, optimizer, parts):
    made = [make_theirs(torch, optimizer, *part) for part in parts]
    return torch.optim.lr_scheduler.ChainedScheduler(made)


def chain_ours(parts):
    """Our schedules of such a chain."""
    pairs = [make_ours(name, arguments) for name, arguments in parts]
    made = schedules.chained_scheduler(
        [pair if pair.momentum else pair.learning_rate for pair in pairs]
    )
    if isinstance(made, schedules.LearningRateAndMomentum):
        return made
    return schedules.LearningRateAndMomentum(made)


@pytest.mark.parametrize("chain", MIXED)
def test_mixed_chains_are_torchs(torch, limit, chain):
    optimizer = make_optimizer(torch)
    scheduler = make_chain(torch, optimizer, MIXED[chain])
    rates, momenta = follow(optimizer, scheduler, 1000)
    theirs = rates[:, 0], momenta[:, 0]
    assert_follows(chain_ours(MIXED[chain]), theirs, limit)


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:.*CyclicLR")
@pytest.mark.parametrize("chain", MIXED)
def test_a_mixed_chain_in_the_middle(torch, chain):
    """Two groups, and with each the learning rate that a scheduler in it left."""
    lambdas = [
        (lambda base, n=name, of=arguments: make_ours(n, of, base).learning_rate)
        for name, arguments in MIXED[chain]
        if "lr_lambda" in arguments
    ]
    for done in (0, 1, 70):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        scheduler = make_chain(torch, optimizer, MIXED[chain])
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, 60, 1e-12, lambdas=lambdas, done=done)


@pytest.mark.usefixtures("x64")
def test_any_warm_up_of_a_cosine(torch):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        half=st.integers(1, 60),
        eta_min=st.floats(0.0, 1.0),
        steps=st.integers(1, 130),
        factor=st.floats(0.1, 1.0),
        name=st.sampled_from(["ConstantLR", "LinearLR"]),
        is_first=st.booleans(),
    )
    def check(half, eta_min, steps, factor, name, is_first):
        key = "factor" if name == "ConstantLR" else "start_factor"
        warm_up = (name, {key: factor, "total_iters": steps})
        parts = [warm_up, cosine(half, eta_min)]
        parts = parts if is_first else parts[::-1]
        optimizer = make_optimizer(torch)
        scheduler = make_chain(torch, optimizer, parts)
        rates, _ = follow(optimizer, scheduler, 400)
        found = evaluate(chain_ours(parts).learning_rate, 400)
        largest = np.abs(rates).max()
        np.testing.assert_allclose(found, rates[:, 0], rtol=0, atol=2e-12 * largest)

    check()


def test_chains_of_chains(torch, limit):
    optimizer = make_optimizer(torch)
    parts = [linear(9), cosine(20), ("ExponentialLR", {"gamma": 0.97})]
    made = [make_theirs(torch, optimizer, *part) for part in parts]
    chain = torch.optim.lr_scheduler.ChainedScheduler
    scheduler = chain([chain(made[:2]), made[2]], optimizer)
    theirs, momenta = follow(optimizer, scheduler, 100)
    ours = [make_ours(*part).learning_rate for part in parts]
    chained = schedules.chained_scheduler(
        [schedules.chained_scheduler(ours[:2]), ours[2]]
    )
    pair = schedules.LearningRateAndMomentum(chained)
    assert_follows(pair, (theirs[:, 0], momenta[:, 0]), limit)


# --- On a plateau.


def pad(losses):
    """300 losses, of which the last is repeated."""
    return losses + losses[-1:] * (300 - len(losses))


LOSSES = [
    pad([1 / n for n in range(1, 40)] + [0.03]),
    pad([0.1 * n for n in range(100)]),
    pad([-1 / (1 + n % 13) for n in range(150)]),
    list(np.random.default_rng(0).normal(size=300)),
    pad([1.0, float("nan"), 0.5] + [float("nan")] * 60),
    pad([(1 - 2e-4) ** n for n in range(60)] + [0.99 - 1e-6 * n for n in range(60)]),
]


@pytest.fixture
def as_users_have_it():
    """optax's plateau multiplies integers by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("x64", "as_users_have_it")
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("patience", [0, 3])
def test_plateaus_are_torchs(torch, mode, threshold_mode, patience):
    crossed = schedulers.crossed(
        threshold=[1e-4, 0.0, 0.5],
        cooldown=[0, 4],
        bounds=[(0.0, 1e-8), (0.01, 1e-8), (0.0, 0.004)],
    )
    for arguments in crossed:
        min_lr, eps = arguments.pop("bounds")
        given = {
            **arguments,
            "patience": patience,
            "mode": mode,
            "threshold_mode": threshold_mode,
            "factor": 0.5,
            "min_lr": min_lr,
            "eps": eps,
        }
        tx = schedules.reduce_lr_on_plateau(0.1, **given)
        found = jax.jit(jax.vmap(lambda of, tx=tx: scales(tx, of)))(jnp.array(LOSSES))
        for losses, ours in zip(LOSSES, found, strict=True):
            optimizer = make_optimizer(torch)
            theirs = find_class(torch, "ReduceLROnPlateau")(optimizer, **given)
            expected = []
            for loss in losses:
                theirs.step(loss)
                expected.append(optimizer.param_groups[0]["lr"])
            np.testing.assert_allclose(0.1 * ours, expected, rtol=1e-12)


def scales(tx, losses):
    """The factor of a plateau after each loss."""

    def update(state: Any, loss):
        new: Any = tx.update(jnp.ones(()), state, value=loss)[1]
        return new, new.scale

    return jax.lax.scan(update, tx.init(jnp.ones(())), losses)[1]


@pytest.mark.usefixtures("as_users_have_it")
def test_an_optimizer_with_it(torch):
    """The scale reaches the updates, momentum and all."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -4.0]))
    optimizer = torch.optim.RMSprop([weight], lr=0.1, momentum=0.9)
    given = {"factor": 0.5, "patience": 1, "mode": "max"}
    scheduler = find_class(torch, "ReduceLROnPlateau")(optimizer, **given)
    tx = optax.chain(
        rmsprop(0.1, momentum=0.9), schedules.reduce_lr_on_plateau(0.1, **given)
    )
    params: Any = jnp.array([1.0, -4.0])
    state = tx.init(params)
    for step in range(12):
        # torch's scheduler steps after the update, and ours scales the same one.
        scheduler.step(0.5)
        weight.grad = weight.detach() * (step + 1)
        optimizer.step()
        updates, state = tx.update(params * (step + 1), state, params, value=0.5)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, weight.detach(), rtol=1e-5)
    assert optimizer.param_groups[0]["lr"] < 0.1


# --- From a state_dict.


def resume(optimizer, scheduler, **arguments) -> Any:
    groups = optimizer.state_dict()["param_groups"]
    return schedules.from_torch(
        scheduler.state_dict(), param_groups=groups, **arguments
    )


def assert_resumes(optimizer, scheduler, steps, limit, **arguments):
    """From the middle on, the schedules of each group have torch's values."""
    done = scheduler.state_dict().get("last_epoch", arguments.pop("done", None))
    resumed = resume(optimizer, scheduler, **arguments)
    rates, momenta = follow(optimizer, scheduler, steps)
    assert len(resumed.learning_rate) == rates.shape[1]
    largest = max(np.abs(rates).max(), 1e-3)
    for g, schedule in enumerate(resumed.learning_rate):
        found = evaluate(schedule, done + steps)[done:]
        np.testing.assert_allclose(found, rates[:, g], rtol=0, atol=limit * largest)
        if resumed.momentum is None:
            assert (momenta[:, g] == momenta[0, g]).all()
        else:
            found = evaluate(resumed.momentum[g], done + steps)[done:]
            np.testing.assert_allclose(found, momenta[:, g], rtol=0, atol=limit)


RESUMED = [
    (name, arguments)
    for name, of in schedulers.ARGUMENTS.items()
    # Every third combination: all of them are compared from the start above.
    for arguments in of[::3]
    if not {"lr_lambda", "scale_fn"} & {*arguments}
]


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:.*CyclicLR")
@pytest.mark.parametrize(
    ("name", "arguments"), RESUMED, ids=[f"{x[0]}-{n}" for n, x in enumerate(RESUMED)]
)
def test_a_state_dict_in_the_middle(torch, name, arguments):
    """Two groups, before the first step, after one and after many."""
    for done in (0, 1, 37):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        scheduler = make_theirs(torch, optimizer, name, arguments)
        steps = 60
        if name == "OneCycleLR":
            steps = steps_of(name, arguments, scheduler) - done
            if steps < 0:
                continue
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, steps, 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:.*CyclicLR")
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_sequence_in_the_middle(torch, sequence):
    parts, milestones = SEQUENCES[sequence]
    lambdas = [
        (lambda base, n=name, of=arguments: make_ours(n, of, base).learning_rate)
        for name, arguments in parts
        if "lr_lambda" in arguments
    ]
    for done in (0, 1, 10, 70):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        made = [make_theirs(torch, optimizer, *part) for part in parts]
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, made, milestones)
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, 100, 1e-12, lambdas=lambdas)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chain", CHAINS[::3], ids="-".join)
def test_a_chain_in_the_middle(torch, chain):
    lambdas = [
        (lambda base: schedules.multiplicative_lr(base, schedulers.gentle))
        for name in chain
        if name == "MultiplicativeLR"
    ]
    for done in (0, 1, 70):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        made = [make_theirs(torch, optimizer, name, MULTIPLY[name]) for name in chain]
        scheduler = torch.optim.lr_scheduler.ChainedScheduler(made)
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, 60, 1e-12, lambdas=lambdas, done=done)


def test_learning_rates_in_tensors(torch):
    """With capturable=True the device keeps them."""
    optimizer = make_optimizer(torch, (torch.tensor(0.5), torch.tensor(0.25)))
    scheduler = make_theirs(torch, optimizer, "ExponentialLR", {"gamma": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.step()
    first, second = resume(optimizer, scheduler).learning_rate
    assert (first(2), second(2)) == (0.125, 0.0625)


BEFORE_ONE_CYCLE = {
    **{
        name: [(name, MULTIPLY[name])]
        for name in MULTIPLY
        if name != "MultiplicativeLR"
    },
    "SWALR": [FINAL_RATE],
    "CosineAnnealingWarmRestarts": [RESTARTS],
    "CyclicLR": [LOW_CYCLE],
    "SWALR-ExponentialLR": [FINAL_RATE, ("ExponentialLR", {"gamma": 0.9})],
    "ExponentialLR-CyclicLR": [("ExponentialLR", {"gamma": 0.9}), LOW_CYCLE],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:.*CyclicLR", "ignore:Detected call of")
@pytest.mark.parametrize(
    ("begins", "is_chain"),
    [(x, False) for x in BEFORE_ONE_CYCLE]
    + [(x, True) for x in MULTIPLY if x != "MultiplicativeLR"],
)
def test_a_sequence_that_ends_in_one_cycle(torch, begins, is_chain):
    """It begins with the learning rate that the OneCycleLR set, not its base_lrs."""
    parts = BEFORE_ONE_CYCLE[begins]
    for done in (0, 3, 60):
        optimizer = make_optimizer(torch, (0.1, 0.3))
        classes = torch.optim.lr_scheduler
        made = [make_theirs(torch, optimizer, *part) for part in parts]
        if is_chain:
            made[0] = classes.ChainedScheduler([made[0]])
        cycle = classes.OneCycleLR(optimizer, [0.2, 0.4], total_steps=300)
        milestones = [5, 9][: len(made)]
        scheduler = classes.SequentialLR(optimizer, [*made, cycle], milestones)
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, 100, 1e-12)


@pytest.mark.parametrize("is_chain", [False, True])
def test_a_cosine_that_turns_before_one_cycle_is_refused(torch, is_chain):
    """torch then uses both learning rates, of which a schedule has one."""
    optimizer = make_optimizer(torch)
    classes = torch.optim.lr_scheduler
    first = make_theirs(torch, optimizer, *cosine(3))
    if is_chain:
        first = classes.ChainedScheduler([first])
    cycle = classes.OneCycleLR(optimizer, 0.2, total_steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch steps the chain twice
        scheduler = classes.SequentialLR(optimizer, [first, cycle], [12])
    with pytest.raises(ValueError, match="after T_max steps PyTorch uses both"):
        resume(optimizer, scheduler)


def test_swa_after_another_scheduler(torch):
    """It starts from the learning rate that it finds, which only its last one shows."""
    optimizer = make_optimizer(torch)
    first = make_theirs(torch, optimizer, "ExponentialLR", {"gamma": 0.9})
    scheduler = make_theirs(torch, optimizer, "SWALR", {"swa_lr": 0.05})
    follow(optimizer, first, 20)
    follow(optimizer, scheduler, 4)
    resumed = resume(optimizer, scheduler, offset=-20)
    rates, _ = follow(optimizer, scheduler, 10)
    found = evaluate(resumed.learning_rate, 34)[24:]
    np.testing.assert_allclose(found, rates[:, 0], rtol=1e-5)


def test_a_class_is_not_guessed(torch):
    """If the keys are the same, the last learning rate tells, or the user."""

    class Halved(torch.optim.lr_scheduler.StepLR):
        def get_lr(self):
            return [rate / 2 for rate in self.base_lrs]

    optimizer = make_optimizer(torch)
    with pytest.raises(ValueError, match="Something else set the learning rate too"):
        resume(optimizer, Halved(optimizer, 30))
    for name in ("LambdaLR", "MultiplicativeLR"):
        optimizer = make_optimizer(torch)
        arguments = {"lr_lambda": schedulers.inverse}
        with pytest.raises(ValueError, match="LambdaLR or a MultiplicativeLR, which"):
            resume(optimizer, make_theirs(torch, optimizer, name, arguments))
    optimizer = make_optimizer(torch)
    scheduler = make_theirs(torch, optimizer, "CyclicLR", {"base_lr": 0.1, "max_lr": 1})
    with pytest.warns(UserWarning, match="or with a scale_fn, which torch does not"):
        resume(optimizer, scheduler)


LEADING = {
    **{"-".join(c): [(name, MULTIPLY[name]) for name in c] for c in CHAINS[::2]},
    **MIXED,
    "a milestone at 0": [("MultiStepLR", {"milestones": [0, 4], "gamma": 0.5}), GENTLE],
}


@pytest.mark.usefixtures("x64")
@pytest.mark.filterwarnings("ignore:.*CyclicLR")
@pytest.mark.parametrize("chain", LEADING)
def test_a_chain_that_leads_a_sequence(torch, chain):
    """torch takes its first step twice, also where a milestone at 0 lets it lead."""
    parts = LEADING[chain]
    after = ("StepLR", {"step_size": 9, "gamma": 0.5})
    lambdas = [
        (lambda base, n=name, of=arguments: make_ours(n, of, base).learning_rate)
        for name, arguments in parts
        if "lr_lambda" in arguments
    ]
    for done, is_second in ((0, False), (1, True), (70, False)):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        # torch's schedulers keep what those before them did to the optimizer.
        before = [make_theirs(torch, optimizer, *after)] if is_second else []
        made = [
            *before,
            make_chain(torch, optimizer, parts),
            make_theirs(torch, optimizer, *after),
        ]
        milestones = [0, 60] if is_second else [60]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = torch.optim.lr_scheduler.SequentialLR(
                optimizer, made, milestones
            )
        follow(optimizer, scheduler, done)
        assert_resumes(optimizer, scheduler, 80, 1e-12, lambdas=lambdas)


def test_restarts_by_parts_of_an_epoch(torch):
    optimizer = make_optimizer(torch)
    scheduler = make_theirs(torch, optimizer, "CosineAnnealingWarmRestarts", {"T_0": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.step(2.5)
    with pytest.raises(ValueError, match="stepped by fractions of an epoch"):
        resume(optimizer, scheduler)


def test_on_a_plateau(torch):
    optimizer = make_optimizer(torch)
    scheduler = find_class(torch, "ReduceLROnPlateau")(optimizer, patience=3)
    with pytest.raises(ValueError, match=r"schedules.plateau_from_torch"):
        resume(optimizer, scheduler)


@pytest.mark.usefixtures("x64", "as_users_have_it")
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_in_the_middle(torch, mode):
    """Within bad values, within the cooldown and after a better one; two groups."""
    given = {"mode": mode, "factor": 0.5, "patience": 2, "cooldown": 3}
    given["min_lr"] = [0.0, 0.004]
    losses = LOSSES[2][:60]
    for done in (0, 1, 4, 16, 17, 20, 33):
        optimizer = make_optimizer(torch, (0.1, 0.02))
        scheduler = find_class(torch, "ReduceLROnPlateau")(optimizer, **given)
        for loss in losses[:done]:
            scheduler.step(loss)
        state_dict = scheduler.state_dict()
        expected = []
        for loss in losses[done:]:
            scheduler.step(loss)
            expected.append([group["lr"] for group in optimizer.param_groups])
        for g in range(2):
            tx = schedules.plateau_from_torch(state_dict, group=g)
            ours = scales(tx, jnp.array(losses[done:]))
            found = state_dict["_last_lr"][g] * ours
            np.testing.assert_allclose(found, np.array(expected)[:, g], rtol=1e-12)


# --- With the optimizer, from a file alone.


class Run:
    """A network of two parameters in two groups, and what trains it."""

    def __init__(self, torch, make, seed=0):
        generator = torch.Generator().manual_seed(seed)
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        self.named = [
            (name, torch.nn.Parameter(draw(3))) for name in ("first", "second")
        ]
        self.optimizer = torch.optim.RMSprop(
            [
                {"params": [self.named[0]], "lr": 0.01},
                {"params": [self.named[1]], "lr": 0.02, "weight_decay": 0.1},
            ],
            momentum=0.9,
        )
        self.scheduler = make(self.optimizer)

    def train(self, updates, per_step=1, skipped=()):
        """Update; the scheduler counts the updates that are skipped, too."""
        for update in range(updates):
            if update not in skipped:
                for n, (_, p) in enumerate(self.named):
                    p.grad = p.detach() * (n + 1) + 0.1
                self.optimizer.step()
            if (update + 1) % per_step == 0:
                self.scheduler.step()

    def weights(self):
        return {name: p.detach().numpy().copy() for name, p in self.named}

    def save(self, torch, path, key="lr_schedulers"):
        state_dict = self.scheduler.state_dict()
        content = {
            "optimizer_states": [self.optimizer.state_dict()],
            "state_dict": {name: p.detach() for name, p in self.named},
            key: [state_dict] if key == "lr_schedulers" else state_dict,
        }
        torch.save(content, path)


def continue_in_jax(tx, state, params, updates):
    @jax.jit
    def update(params, state):
        gradients = {
            name: p * (n + 1) + 0.1 for n, (name, p) in enumerate(params.items())
        }
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(updates):
        params, state = update(params, state)
    return params


def make_warm_up(torch, optimizer):
    lr_scheduler = torch.optim.lr_scheduler
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8),
        lr_scheduler.CosineAnnealingLR(optimizer, 30),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [8])


def make_one_cycle(torch, optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.02], 100)


def make_milestones(torch, optimizer):
    """torch keeps them as a Counter."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [7, 3, 7, 30], 0.5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [make_warm_up, make_one_cycle, make_milestones])
@pytest.mark.parametrize("key", ["lr_schedulers", "scheduler", "lr_scheduler"])
@pytest.mark.parametrize(
    ("per_step", "skipped"), [(1, ()), (4, ()), (1, (2, 3, 5))], ids=str
)
def test_a_run_resumes_from_its_file(torch, tmp_path, make, key, per_step, skipped):
    """Updates there, the checkpoint, updates here: the weights are torch's."""
    run = Run(torch, functools.partial(make, torch))
    run.train(24, per_step, skipped)
    run.save(torch, tmp_path / "run.pt", key)
    given: Any = {"learning_rate": "checkpoint"}
    if per_step > 1:
        with pytest.raises(ValueError, match="give updates_per_step=4"):
            from_torch(tmp_path / "run.pt", **given)
        given["updates_per_step"] = 4
    if skipped:
        with pytest.raises(ValueError, match="give offset=3"):
            from_torch(tmp_path / "run.pt", **given)
        given["offset"] = 3
    with pytest.warns(UserWarning, match="give learning_rate='checkpoint'"):
        from_torch(tmp_path / "run.pt", momentum=0.9)
    tx, state = from_torch(tmp_path / "run.pt", **given)
    params = jax.tree.map(jnp.array, run.weights())
    params = continue_in_jax(tx, state, params, 40)
    run.train(40, per_step)
    for name, weight in run.weights().items():
        np.testing.assert_allclose(params[name], weight, rtol=0, atol=1e-12)
