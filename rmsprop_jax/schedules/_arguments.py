"""The arguments of schedules, validated; errors name them."""

from __future__ import annotations

import math

import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.options import validate_number
from rmsprop_jax._optimizer.rule import Number
from rmsprop_jax._optimizer.state import LARGEST_COUNT


def validate_learning_rate(name: str, value: ArrayLike) -> Number:
    """Return a finite Python float, not negative, or a real scalar array unread."""
    return validate_number(name, value)


def validate_real(
    name: str, value: object, smallest: float = 0.0, largest: float = math.inf
) -> float:
    """Return a finite Python float within bounds.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of the bounds.
    """
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(f"{name} must be a number, but it was {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # of an integer like 10**400
        number = math.inf
    if not (smallest <= number <= largest and math.isfinite(number)):
        must = f"a number from {smallest:g} to {largest:g}"
        if largest == math.inf:
            must = "a finite number" + ", not negative" * (smallest == 0)
            must += f", at least {smallest:g}" * (smallest > 0)
        raise ValueError(f"{name} must be {must}, but it was {value}.")
    return number


def validate_integer(name: str, value: object, smallest: int = 1) -> int:
    """Return a Python integer from the smallest to int32's largest.

    A float with an integer's value counts as one, because some of PyTorch's schedulers
    keep their lengths as floats.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not an integer, or out of the bounds.
    """
    number = validate_real(name, value, -math.inf)
    if number != int(number) or not smallest <= number <= LARGEST_COUNT:
        raise ValueError(
            f"{name} must be an integer from {smallest} to {LARGEST_COUNT}, but it was "
            f"{value}."
        )
    return int(number)


def validate_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of the choices.

    Raises:
        ValueError: If it is another value.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        joined = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} must be {joined}, but it was {value!r}.")
    return value
