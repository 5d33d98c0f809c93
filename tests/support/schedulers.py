"""The schedulers of the real torch, and what they make of a learning rate."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax import schedules

LEARNING_RATE = 0.1
# What torch's classes are called here.
FUNCTIONS = {
    "LambdaLR": "lambda_lr",
    "MultiplicativeLR": "multiplicative_lr",
    "StepLR": "step_lr",
    "MultiStepLR": "multi_step_lr",
    "ConstantLR": "constant_lr",
    "LinearLR": "linear_lr",
    "ExponentialLR": "exponential_lr",
    "SequentialLR": "sequential_lr",
    "PolynomialLR": "polynomial_lr",
    "CosineAnnealingLR": "cosine_annealing_lr",
    "ChainedScheduler": "chained_scheduler",
    "ReduceLROnPlateau": "reduce_lr_on_plateau",
    "CyclicLR": "cyclic_lr",
    "CosineAnnealingWarmRestarts": "cosine_annealing_warm_restarts",
    "OneCycleLR": "one_cycle_lr",
    "SWALR": "swa_lr",
}
# These have their own learning rates instead of the optimizer's.
WITH_OWN = ("CyclicLR", "OneCycleLR")


def crossed(**arguments):
    """All combinations of the values of the arguments."""
    combinations = itertools.product(*arguments.values())
    return [dict(zip(arguments, values, strict=True)) for values in combinations]


def real(number):
    """A Python number, or an array, as floating-point: promotion is strict."""
    return float(number) if isinstance(number, int) else number.astype(float)


def inverse(count):
    """A function for LambdaLR, of a Python number and of an array alike."""
    return 1 / (1 + 0.5 * real(count))


def gentle(count):
    """A function for MultiplicativeLR."""
    return 1 - 1 / (2 + real(count))


def square_wave(number):
    """A function for CyclicLR."""
    return 0.5 + 0.25 * real(number % 3)


# The arguments after the base learning rate, as torch and we both take them.
ARGUMENTS = {
    "LambdaLR": crossed(lr_lambda=[inverse, lambda count: 0.95 ** real(count)]),
    "MultiplicativeLR": crossed(
        lr_lambda=[gentle, lambda count: 0.95 + 0 * real(count)]
    ),
    "StepLR": crossed(step_size=[1, 2, 30, 333], gamma=[0.1, 0.9, 1.0, 1.01, 0.0]),
    "MultiStepLR": crossed(
        milestones=[[30, 80], [80, 30], [5, 5, 6], [0, 7], [999], [], [1]],
        gamma=[0.1, 0.5, 1.5],
    ),
    "ConstantLR": crossed(factor=[1 / 3, 0.25, 1.0, 1e-3], total_iters=[0, 1, 5, 400]),
    "LinearLR": crossed(
        start_factor=[1 / 3, 1.0, 1e-6],
        end_factor=[1.0, 0.25, 0.0],
        total_iters=[0, 1, 5, 700],
    ),
    "ExponentialLR": crossed(gamma=[0.9, 0.999, 1.0, 1.001, 0.0]),
    "PolynomialLR": crossed(
        total_iters=[0, 1, 5, 50, 900], power=[0.0, 0.25, 0.5, 1.0, 2.0, 3.7]
    ),
    "CosineAnnealingLR": crossed(
        T_max=[1, 2, 3, 50, 333, 371, 602], eta_min=[0.0, 0.001, 0.2]
    ),
    "CosineAnnealingWarmRestarts": crossed(
        T_0=[1, 2, 10, 300], T_mult=[1, 2, 3], eta_min=[0.0, 0.001, 0.2]
    ),
    "CyclicLR": [
        {"base_lr": 0.01, "max_lr": 0.1, **more}
        for more in (
            *crossed(
                step_size_up=[1, 20],
                step_size_down=[None, 1, 33],
                mode=["triangular", "triangular2", "exp_range"],
                gamma=[0.99],
            ),
            *crossed(
                step_size_up=[20],
                step_size_down=[7],
                scale_fn=[square_wave],
                scale_mode=["cycle", "iterations"],
                base_momentum=[0.5],
                max_momentum=[0.95],
            ),
            {},
            {"cycle_momentum": False, "step_size_up": 20},
        )
    ],
    "OneCycleLR": [
        {"max_lr": 0.1, **more}
        for more in (
            *crossed(
                total_steps=[2, 3, 101, 1000],
                pct_start=[0.0, 0.3, 0.45],
                anneal_strategy=["cos", "linear"],
                three_phase=[False, True],
            ),
            {"total_steps": 100, "pct_start": 1.0},
            {"epochs": 10, "steps_per_epoch": 25},
            {"total_steps": 60, "cycle_momentum": False},
            {
                "total_steps": 60,
                "base_momentum": 0.5,
                "max_momentum": 0.75,
                "div_factor": 10.0,
                "final_div_factor": 100.0,
            },
        )
    ],
    "SWALR": crossed(
        swa_lr=[0.05, 0.2],
        anneal_epochs=[0, 1, 10, 800],
        anneal_strategy=["cos", "linear"],
    ),
}
CASES = [(name, arguments) for name, of in ARGUMENTS.items() for arguments in of]


def find_class(torch, name):
    """torch's class."""
    if name == "SWALR":
        return torch.optim.swa_utils.SWALR
    return getattr(torch.optim.lr_scheduler, name)


def make_optimizer(torch, rates=(LEARNING_RATE,)):
    """An optimizer with a group for each learning rate."""
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(()))], "lr": rate} for rate in rates
    ]
    return torch.optim.RMSprop(groups, momentum=0.9)


def make_theirs(torch, optimizer, name, arguments):
    """torch's scheduler."""
    return find_class(torch, name)(optimizer, **arguments)


def make_ours(name, arguments, rate=LEARNING_RATE):
    """Our schedules of the learning rate and the momentum."""
    function = getattr(schedules, FUNCTIONS[name])
    made = function(**arguments) if name in WITH_OWN else function(rate, **arguments)
    if isinstance(made, schedules.LearningRateAndMomentum):
        return made
    return schedules.LearningRateAndMomentum(made)


def follow(optimizer, scheduler, steps):
    """What torch's scheduler makes of the groups: (learning rate, momentum) each.

    The arrays are (steps + 1, groups). torch's OneCycleLR ends before.
    """
    seen = []
    with warnings.catch_warnings():
        # The optimizer need not step, and some schedulers call others wrongly.
        warnings.simplefilter("ignore")
        for step in range(steps + 1):
            groups = optimizer.param_groups
            seen.append([(group["lr"], group["momentum"]) for group in groups])
            if step < steps:
                scheduler.step()
    return np.moveaxis(np.array(seen), -1, 0)


def evaluate(schedule, steps):
    """The values of a schedule at the step counts from 0 to steps, compiled."""
    return np.asarray(jax.jit(schedule)(jnp.arange(steps + 1, dtype=jnp.int32)))
