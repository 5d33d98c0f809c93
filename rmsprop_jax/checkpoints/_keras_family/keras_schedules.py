"""Make Keras's learning-rate schedules from their configurations in files."""

from __future__ import annotations

import math
from collections.abc import Callable

from rmsprop_jax import schedules
from rmsprop_jax.checkpoints._convert.arrays import to_real_numbers
from rmsprop_jax.checkpoints._readers.keras_h5 import Config

_LISTS = ("boundaries", "values")
_FLAGS = ("staircase", "cycle")
# Keras 2 before 2.13 has no warmup.
_OPTIONAL = ("warmup_target", "warmup_steps")
_DECAY = ("initial_learning_rate", "decay_steps", "decay_rate")
# The function of each class, and the numbers that it needs.
_SCHEDULES: dict[str, tuple[Callable[..., schedules.Schedule], tuple[str, ...]]] = {
    "ExponentialDecay": (schedules.exponential_decay, _DECAY),
    "InverseTimeDecay": (schedules.inverse_time_decay, _DECAY),
    "PolynomialDecay": (
        schedules.polynomial_decay,
        ("initial_learning_rate", "decay_steps", "end_learning_rate", "power"),
    ),
    "CosineDecay": (
        schedules.cosine_decay,
        ("initial_learning_rate", "decay_steps", "alpha"),
    ),
    "CosineDecayRestarts": (
        schedules.cosine_decay_restarts,
        ("initial_learning_rate", "first_decay_steps", "t_mul", "m_mul", "alpha"),
    ),
    "PiecewiseConstantDecay": (schedules.piecewise_constant_decay, _LISTS),
}


def make_schedule(what: str, config: Config) -> schedules.Schedule | None:
    """Return the schedule of Keras's ``{"class_name": …, "config": …}``.

    Return None for a class that is not Keras's own.

    Raises:
        ValueError: If a number is missing or invalid. It names the key.
    """
    name, numbers = config.get("class_name"), config.get("config")
    if not isinstance(name, str) or not isinstance(numbers, dict):
        raise ValueError(
            f"{what} must have a number or a schedule as its learning rate, but it was "
            f"{config}."
        )
    if name not in _SCHEDULES:
        return None
    make, required = _SCHEDULES[name]
    arguments: Config = {
        key: bool(numbers[key]) for key in _FLAGS if numbers.get(key) is not None
    }
    optional = [key for key in _OPTIONAL if numbers.get(key) is not None]
    for key in (*required, *optional):
        value = numbers.get(key)
        each = value if isinstance(value, list) and key in _LISTS else [value]
        found = to_real_numbers(each)
        if any(map(math.isnan, found)):
            # Positive, because it divides.
            must = "positive" if key.endswith("decay_steps") else "real"
            raise ValueError(
                f"{key!r} of the {name} in {what} must be a {must} number, but it was "
                f"{value!r}."
            )
        arguments[key] = found if key in _LISTS else found[0]
    try:
        return make(**arguments)
    except ValueError as error:
        raise ValueError(f"The {name} in {what} is invalid: {error}") from error
