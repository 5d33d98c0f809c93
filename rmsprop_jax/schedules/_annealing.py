"""The schedulers that compute the learning rate η from the step count.

With the base learning rate η₀ and the step count t:

    LambdaLR                      η₀·λ(t)
    CosineAnnealingLR             η_min + (η₀ − η_min)·(1 + cos(π·t/T_max))/2
    CosineAnnealingWarmRestarts   the same, from each restart on, with the length T_i
    SWALR                         from η₀ to swa_lr in anneal_epochs
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._arguments import (
    validate_choice,
    validate_integer,
    validate_learning_rate,
    validate_real,
)
from rmsprop_jax.schedules._counting import (
    divide,
    find_cycle,
    half_cosine,
    list_cycles,
    to_real,
)
from rmsprop_jax.schedules._factors import validate_function
from rmsprop_jax.schedules._schedule import (
    AbsoluteSchedule,
    CosineSchedule,
    Formula,
    Schedule,
    SWASchedule,
    blend,
    widen,
)

# How many rises of CosineAnnealingLR follow PyTorch's rounding, and in how many steps.
_ROUNDED_RISES = 64
_ROUNDED_STEPS = 64


def lambda_lr(
    learning_rate: ArrayLike, lr_lambda: Callable[[jax.Array], ArrayLike]
) -> Schedule:
    """Multiply the base learning rate by ``lr_lambda(count)``: ``LambdaLR``.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        lr_lambda: A function from the step count (an int32 scalar) to a factor, which
            JAX can trace: use ``jnp.where`` and ``jnp.minimum`` instead of ``if`` and
            ``min``.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If the learning rate is out of range.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedules.lambda_lr(0.5, lambda count: 1 / (1 + count))(3)
        Array(0.125, dtype=float32)
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    validate_function("lr_lambda", lr_lambda)

    def formula(count: jax.Array) -> jax.Array:
        return widen(base) * to_real(lr_lambda(count))

    call = f"lambda_lr({base}, {lr_lambda!r})"
    return AbsoluteSchedule(call, formula, learning_rate=base)


def cosine_annealing_lr(
    learning_rate: ArrayLike, T_max: int, eta_min: float = 0.0
) -> Schedule:
    """Fall to ``eta_min`` at ``T_max`` by a cosine, and rise: ``CosineAnnealingLR``.

    After ``T_max`` it rises again, to the base learning rate at ``2 * T_max``, and so
    on. PyTorch computes each value from the one before. The rounding error is largest
    where a rise begins, and all values until the next rise have the same relative
    error: up to 1e-11 with a ``T_max`` of 1,000, and 2e-5 with 1,000,000. This schedule
    has PyTorch's error too, in the first 64 rises.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        T_max: The number of steps in which it falls.
        eta_min: The smallest learning rate.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.cosine_annealing_lr(0.5, T_max=50, eta_min=0.25)
        >>> schedule(0), schedule(50), schedule(100)
        (Array(0.5, dtype=float32), Array(0.25, dtype=float32),
         Array(0.5, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    half = validate_integer("T_max", T_max)
    smallest = validate_real("eta_min", eta_min)
    # Before the first rise, and after the last of these, the factor is 1.
    known = (base, smallest) if isinstance(base, float) else (1.0, 0.0)
    rounded = [_simulate_rise(*known, half, n) for n in range(_ROUNDED_RISES)]
    factors = np.array([1.0, *rounded, 1.0])

    def formula(count: jax.Array) -> jax.Array:
        rise = jnp.minimum((count // half + 1) // 2, _ROUNDED_RISES + 1)
        factor = jnp.asarray(factors, jnp.result_type(float))[rise]
        height = factor * half_cosine(fold(count, half), half)
        return blend(smallest, base, height)

    call = f"cosine_annealing_lr({base}, T_max={half}, eta_min={smallest})"
    return CosineSchedule(
        call, formula, learning_rate=base, T_max=half, eta_min=smallest
    )


def _simulate_rise(base: float, smallest: float, half: int, n: int) -> float:
    """Return the factor by which PyTorch's rounding changes a rise and its fall.

    It is the value after the first steps of the rise, divided by the value without
    rounding. Later steps round a larger height, so they lose less.
    """
    height = base - smallest
    bottom = (2 * n + 1) * half
    steps = min(half, _ROUNDED_STEPS)
    learning_rate = smallest + height * (1 - math.cos(math.pi / half)) / 2
    for count in range(bottom + 2, bottom + steps + 1):
        before = 1 + math.cos(math.pi * (count - 1) / half)
        if before == 0:  # PyTorch divides by it, and fails
            return 1.0
        ratio = (1 + math.cos(math.pi * count / half)) / before
        learning_rate = ratio * (learning_rate - smallest) + smallest
    exact = height * math.sin(math.pi * steps / half / 2) ** 2
    return (learning_rate - smallest) / exact if exact else 1.0


def fold(count: jax.Array, half: int) -> jax.Array:
    """Return how far the count is from the last even multiple of a half, or the next.

    It goes from 0 to the half, back to 0, and so on.
    """
    # The period itself may be more than int32 has; the count is less then.
    phase = count % (2 * half) if 2 * half <= LARGEST_COUNT else count
    return half - jnp.abs(phase - half)


def cosine_annealing_warm_restarts(
    learning_rate: ArrayLike, T_0: int, T_mult: int = 1, eta_min: float = 0.0
) -> Schedule:
    """Fall by a cosine, and start again: ``CosineAnnealingWarmRestarts``.

    Args:
        learning_rate: The base learning rate: a number, or a scalar array.
        T_0: The number of steps until the first restart.
        T_mult: How many times longer each cycle is than the one before.
        eta_min: The smallest learning rate.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.cosine_annealing_warm_restarts(0.5, T_0=10, T_mult=2)
        >>> schedule(0), schedule(10), schedule(30)
        (Array(0.5, dtype=float32), Array(0.5, dtype=float32),
         Array(0.5, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    first = validate_integer("T_0", T_0)
    multiplier = validate_integer("T_mult", T_mult)
    smallest = validate_real("eta_min", eta_min)
    cycles = list_cycles("T_mult", first, multiplier) if multiplier > 1 else None

    def formula(count: jax.Array) -> jax.Array:
        done = (
            divide(count, first)[1] if cycles is None else find_cycle(count, cycles)[1]
        )
        return blend(smallest, base, half_cosine(done, 1))

    call = (
        f"cosine_annealing_warm_restarts({base}, T_0={first}, T_mult={multiplier}, "
        f"eta_min={smallest})"
    )
    return AbsoluteSchedule(call, formula, learning_rate=base)


def swa_lr(
    learning_rate: ArrayLike,
    swa_lr: ArrayLike,
    anneal_epochs: int = 10,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> Schedule:
    """Go to ``swa_lr`` and stay there: ``torch.optim.swa_utils.SWALR``.

    PyTorch's SWALR starts from the optimizer's learning rate at its first step. This
    schedule does the same after a milestone of `sequential_lr`. With
    ``anneal_epochs=0`` it is ``swa_lr`` at once.

    Args:
        learning_rate: The learning rate that it starts from: a number, or a scalar
            array.
        swa_lr: The final learning rate.
        anneal_epochs: The number of steps until ``swa_lr`` is reached.
        anneal_strategy: ``"cos"`` or ``"linear"``.

    Returns:
        A schedule: a function from the step count to the learning rate.

    Raises:
        ValueError: If a number is out of range, or the strategy is unknown.
        TypeError: If an argument is not a number.

    Examples:
        >>> from rmsprop_jax import schedules
        >>> schedule = schedules.swa_lr(0.5, swa_lr=0.25, anneal_epochs=10)
        >>> schedule(5), schedule(10)
        (Array(0.375, dtype=float32), Array(0.25, dtype=float32))
    """
    base = validate_learning_rate("learning_rate", learning_rate)
    last = validate_learning_rate("swa_lr", swa_lr)
    steps = validate_integer("anneal_epochs", anneal_epochs, 0)
    strategy = validate_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))

    def start_from(start: Number) -> Formula:
        def formula(count: jax.Array) -> jax.Array:
            done = jnp.minimum(count, steps) if steps else jnp.ones_like(count)
            length = max(steps, 1)
            if strategy == "cos":
                left = half_cosine(done, length)
            else:
                left = to_real(length - done) / float(length)
            return blend(last, start, left)

        return formula

    call = (
        f"swa_lr({base}, swa_lr={last}, anneal_epochs={steps}, "
        f"anneal_strategy={strategy!r})"
    )
    group_settings = {"swa_lr": last}
    if steps == 0:  # Its values do not depend on the learning rate that it starts from.
        return Schedule(
            call,
            start_from(base),
            group_settings=group_settings,
            reads_group_settings=True,
        )
    return SWASchedule(
        call,
        start_from(base),
        start_from,
        group_settings=group_settings,
        reads_group_settings=True,
        learning_rate=base,
    )
