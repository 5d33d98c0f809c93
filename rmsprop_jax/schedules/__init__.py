"""Schedulers of PyTorch, Keras and timm as optax schedules, by their names.

A schedule is a function from the step count to the learning rate. Pass it in place of
the number:

    # optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1, momentum=0.9)
    # scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    schedule = schedules.step_lr(0.1, step_size=30, gamma=0.1)
    tx = rmsprop(schedule, momentum=0.9)

The schedules named after PyTorch's schedulers take PyTorch's arguments, in PyTorch's
order and with its defaults; most take the base learning rate in place of the optimizer.
The schedules of ``keras.optimizers.schedules``, such as `cosine_decay`, take Keras's
arguments;
`cosine_lr_scheduler` and `step_lr_scheduler` take timm's. Each value is computed from
the step count alone, for every int32 count, also under ``jit``, ``vmap`` and ``scan``.
It is float64 if x64 is enabled; otherwise it is accurate to a millionth of the largest
learning rate, except in `multiplicative_lr`.

A scheduler that steps once per epoch is a schedule of the epoch:

    tx = rmsprop(lambda count: schedule(count // steps_per_epoch), momentum=0.9)
"""

from rmsprop_jax.schedules._annealing import (
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    lambda_lr,
    swa_lr,
)
from rmsprop_jax.schedules._chains import chained_scheduler
from rmsprop_jax.schedules._combinations import sequential_lr
from rmsprop_jax.schedules._cycles import cyclic_lr, one_cycle_lr
from rmsprop_jax.schedules._factors import (
    constant_lr,
    exponential_lr,
    linear_lr,
    multi_step_lr,
    multiplicative_lr,
    polynomial_lr,
    step_lr,
)
from rmsprop_jax.schedules._keras import (
    cosine_decay,
    cosine_decay_restarts,
    exponential_decay,
    inverse_time_decay,
    piecewise_constant_decay,
    polynomial_decay,
)
from rmsprop_jax.schedules._plateau import plateau_from_torch, reduce_lr_on_plateau
from rmsprop_jax.schedules._schedule import LearningRateAndMomentum, Schedule
from rmsprop_jax.schedules._state_dict import ResumedSchedules, from_torch
from rmsprop_jax.schedules._timm import cosine_lr_scheduler, step_lr_scheduler
from rmsprop_jax.schedules._to_torch import to_torch

__all__ = [
    "LearningRateAndMomentum",
    "ResumedSchedules",
    "Schedule",
    "chained_scheduler",
    "constant_lr",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cosine_decay",
    "cosine_decay_restarts",
    "cosine_lr_scheduler",
    "cyclic_lr",
    "exponential_decay",
    "exponential_lr",
    "from_torch",
    "inverse_time_decay",
    "lambda_lr",
    "linear_lr",
    "multi_step_lr",
    "multiplicative_lr",
    "one_cycle_lr",
    "piecewise_constant_decay",
    "plateau_from_torch",
    "polynomial_decay",
    "polynomial_lr",
    "reduce_lr_on_plateau",
    "sequential_lr",
    "step_lr",
    "step_lr_scheduler",
    "swa_lr",
    "to_torch",
]
