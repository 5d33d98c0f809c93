"""The schedulers that move the momentum as well, against the learning rate.

CyclicLR     up to max_lr, down to base_lr, again and again
OneCycleLR   up to max_lr, down to nearly 0, once
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.options import validate_flag
from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._arguments import (
    validate_choice,
    validate_integer,
    validate_learning_rate,
    validate_real,
)
from rmsprop_jax.schedules._counting import power, progress, to_real
from rmsprop_jax.schedules._factors import validate_function
from rmsprop_jax.schedules._schedule import (
    AbsoluteSchedule,
    LearningRateAndMomentum,
    Schedule,
    blend,
)


def cyclic_lr(
    base_lr: ArrayLike,
    max_lr: ArrayLike,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[jax.Array], ArrayLike] | None = None,
    scale_mode: Literal["cycle", "iterations"] = "cycle",
    cycle_momentum: bool = True,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
) -> LearningRateAndMomentum:
    """Go up to ``max_lr`` and down to ``base_lr`` again and again: ``CyclicLR``.

    Args:
        base_lr: The smallest learning rate: a number, or a scalar array.
        max_lr: The largest learning rate.
        step_size_up: The number of steps up in a cycle.
        step_size_down: The number of steps down, by default the same.
        mode: ``"triangular"``, ``"triangular2"``, which halves the height in every
            cycle, or ``"exp_range"``, which multiplies it by ``gamma`` in every step.
        gamma: For ``"exp_range"``.
        scale_fn: A function to use in place of the mode, from the number of the cycle
            (starting at 1) or the step count to a factor of the height. JAX must be
            able to trace it.
        scale_mode: Which of the two ``scale_fn`` takes: ``"cycle"`` or
            ``"iterations"``.
        cycle_momentum: Whether the momentum moves as well, from ``max_momentum`` to
            ``base_momentum`` and back.
        base_momentum: The smallest momentum.
        max_momentum: The largest momentum.

    Returns:
        ``(learning_rate, momentum)``. Both are schedules. The momentum is None without
        ``cycle_momentum``.

    Raises:
        ValueError: If a number is out of range, or a mode is unknown.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import rmsprop, schedules
        >>> cycle = schedules.cyclic_lr(0.25, 0.5, step_size_up=20)
        >>> cycle.learning_rate(10), cycle.momentum(20)
        (Array(0.375, dtype=float32), Array(0.8, dtype=float32))
        >>> tx = rmsprop(cycle.learning_rate, momentum=cycle.momentum)
    """
    smallest = validate_learning_rate("base_lr", base_lr)
    largest = validate_learning_rate("max_lr", max_lr)
    up = validate_integer("step_size_up", step_size_up)
    down = up
    if step_size_down is not None:
        down = validate_integer("step_size_down", step_size_down)
    gamma = validate_real("gamma", gamma)
    by_cycle = validate_choice("scale_mode", scale_mode, ("cycle", "iterations"))
    if scale_fn is not None:
        validate_function("scale_fn", scale_fn)
    else:
        modes = ("triangular", "triangular2", "exp_range")
        validate_choice("mode", mode, modes)
    period = up + down

    def compute_scale(count: jax.Array) -> jax.Array:
        cycle = count // period if period <= LARGEST_COUNT else jnp.zeros_like(count)
        if scale_fn is not None:
            return to_real(scale_fn(cycle + 1 if by_cycle == "cycle" else count))
        if mode == "triangular2":
            return power(0.5, cycle)
        return power(gamma, count) if mode == "exp_range" else to_real(1.0)

    def compute_height(count: jax.Array) -> jax.Array:
        phase = count % period if period <= LARGEST_COUNT else count
        rising = to_real(phase) / float(up)
        falling = to_real(down - (phase - up)) / float(down)
        return jnp.where(phase <= up, rising, falling) * compute_scale(count)

    def compute_learning_rate(count: jax.Array) -> jax.Array:
        return blend(smallest, largest, compute_height(count))

    call = (
        f"cyclic_lr({smallest}, {largest}, step_size_up={up}, step_size_down={down}, "
        f"mode={mode!r}, gamma={gamma}, scale_fn={scale_fn!r}, "
        f"scale_mode={scale_mode!r}, cycle_momentum={cycle_momentum}, "
        f"base_momentum={base_momentum}, max_momentum={max_momentum})"
    )
    learning_rate = AbsoluteSchedule(
        f"{call}.learning_rate",
        compute_learning_rate,
        learning_rate=smallest,
        starts_at_base=True,
    )
    if not validate_flag("cycle_momentum", cycle_momentum):
        return LearningRateAndMomentum(learning_rate)
    low = validate_real("base_momentum", base_momentum)
    high = validate_real("max_momentum", max_momentum)

    def compute_momentum(count: jax.Array) -> jax.Array:
        return blend(high, low, compute_height(count))

    momentum = Schedule(
        f"{call}.momentum",
        compute_momentum,
        group_settings={"base_momentum": low, "max_momentum": high},
    )
    return LearningRateAndMomentum(learning_rate, momentum)


class _Phase(NamedTuple):
    """A part of `one_cycle_lr`: from one learning rate and momentum to others."""

    end_step: float
    learning_rates: tuple[Number, Number]
    momenta: tuple[Number, Number]


def one_cycle_lr(
    max_lr: ArrayLike,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> LearningRateAndMomentum:
    """Go up to ``max_lr`` and down to nearly 0: ``OneCycleLR``.

    The learning rate is ``max_lr / div_factor`` at first, ``max_lr`` after
    ``pct_start * total_steps - 1`` steps, and ``max_lr / div_factor /
    final_div_factor`` after ``total_steps - 1`` steps, which is the last update. At
    ``total_steps`` PyTorch's formula extrapolates, and so does this schedule. After
    that PyTorch raises an error, whereas this schedule keeps its last value.

    Args:
        max_lr: The largest learning rate: a number, or a scalar array.
        total_steps: The number of steps in the cycle. If it is None, give the next two.
        epochs: The number of epochs in the cycle.
        steps_per_epoch: The number of steps in an epoch.
        pct_start: The fraction of the steps in which the learning rate rises.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: Whether the momentum moves as well, from ``max_momentum`` to
            ``base_momentum`` and back.
        base_momentum: The smallest momentum.
        max_momentum: The largest momentum.
        div_factor: ``max_lr`` divided by the first learning rate.
        final_div_factor: The first learning rate divided by the last.
        three_phase: Whether it goes down to the first learning rate as it went up, and
            only then to the last.

    Returns:
        ``(learning_rate, momentum)``. Both are schedules. The momentum is None without
        ``cycle_momentum``.

    Raises:
        ValueError: If a number is out of range, or neither ``total_steps`` nor
            ``epochs`` and ``steps_per_epoch`` are given.
        TypeError: If an argument is of the wrong type.

    Examples:
        >>> from rmsprop_jax import rmsprop, schedules
        >>> cycle = schedules.one_cycle_lr(max_lr=0.5, total_steps=100)
        >>> cycle.learning_rate(0), cycle.learning_rate(29), cycle.momentum(29)
        (Array(0.02, dtype=float32), Array(0.5, dtype=float32),
         Array(0.85, dtype=float32))
        >>> tx = rmsprop(cycle.learning_rate, momentum=cycle.momentum)
    """
    largest = validate_learning_rate("max_lr", max_lr)
    if total_steps is not None:
        steps = validate_integer("total_steps", total_steps)
    elif epochs is not None and steps_per_epoch is not None:
        steps = validate_integer("epochs", epochs)
        steps *= validate_integer("steps_per_epoch", steps_per_epoch)
        validate_integer("epochs * steps_per_epoch", steps)
    else:
        raise ValueError(
            "total_steps must be given, or both epochs and steps_per_epoch, but they "
            f"were {total_steps}, {epochs} and {steps_per_epoch}."
        )
    part = validate_real("pct_start", pct_start, 0.0, 1.0)
    strategy = validate_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    has_phases = validate_flag("three_phase", three_phase)
    first = largest / _validate_divisor("div_factor", div_factor)
    last = first / _validate_divisor("final_div_factor", final_div_factor)
    low = validate_real("base_momentum", base_momentum)
    high = validate_real("max_momentum", max_momentum)
    phases = [_Phase(part * steps - 1, (first, largest), (high, low))]
    if has_phases:
        phases += [
            _Phase(2 * part * steps - 2, (largest, first), (low, high)),
            _Phase(steps - 1.0, (first, last), (high, high)),
        ]
    else:
        phases += [_Phase(steps - 1.0, (largest, last), (low, high))]
    if phases[0].end_step == 0:
        raise ValueError(
            "pct_start * total_steps must not be 1, at which PyTorch divides by 0, but "
            f"they were {pct_start} and {steps}."
        )

    def anneal(
        count: jax.Array, choose: Callable[[_Phase], tuple[Number, Number]]
    ) -> jax.Array:
        # The last step is steps - 1; PyTorch's formula also has a value at steps.
        count = jnp.where(count > steps, steps - 1, count)
        return _anneal(count, phases, choose, strategy)

    def compute_learning_rate(count: jax.Array) -> jax.Array:
        return anneal(count, lambda phase: phase.learning_rates)

    def compute_momentum(count: jax.Array) -> jax.Array:
        return anneal(count, lambda phase: phase.momenta)

    call = (
        f"one_cycle_lr({largest}, total_steps={steps}, pct_start={part}, "
        f"anneal_strategy={strategy!r}, cycle_momentum={cycle_momentum}, "
        f"base_momentum={low}, max_momentum={high}, div_factor={div_factor}, "
        f"final_div_factor={final_div_factor}, three_phase={three_phase})"
    )
    learning_rate = AbsoluteSchedule(
        f"{call}.learning_rate",
        compute_learning_rate,
        group_settings={
            "max_lr": largest,
            "div_factor": float(div_factor),
            "final_div_factor": float(final_div_factor),
        },
        reads_group_settings=True,
        learning_rate=first,
        sets_base=True,
    )
    if not validate_flag("cycle_momentum", cycle_momentum):
        return LearningRateAndMomentum(learning_rate)
    momentum = Schedule(
        f"{call}.momentum",
        compute_momentum,
        group_settings={"base_momentum": low, "max_momentum": high},
        reads_group_settings=True,
    )
    return LearningRateAndMomentum(learning_rate, momentum)


def _anneal(
    count: jax.Array,
    phases: Sequence[_Phase],
    choose: Callable[[_Phase], tuple[Number, Number]],
    strategy: str,
) -> jax.Array:
    """Return the value of the first phase that has not ended, or of the last one."""
    value, start_step = to_real(0.0), 0.0
    earlier = jnp.zeros(count.shape, bool)
    for phase in phases:
        start, end = choose(phase)
        length = phase.end_step - start_step
        # A phase of length 0 is chosen at its end only.
        done = progress(count, start_step, phase.end_step if length else start_step + 1)
        if strategy == "cos":
            done = (1 - jnp.cos(jnp.pi * done)) / 2
        value = jnp.where(earlier, value, blend(start, end, done))
        # Counts are integers, so a count is past an end if it is past its integer part.
        earlier = earlier | (count <= math.floor(phase.end_step))
        start_step = phase.end_step
    return value


def _validate_divisor(name: str, value: object) -> float:
    number = validate_real(name, value)
    if number == 0:
        raise ValueError(f"{name} must be more than 0, but it was {value}.")
    return number
