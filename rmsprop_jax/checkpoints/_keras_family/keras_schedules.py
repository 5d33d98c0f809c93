"""Keras's learning-rate schedules, from their configurations in files.

With the step t, the decay steps T and the learning rates η₀ (initial) and η₁ (end):

    ExponentialDecay         η₀·r^(t/T)                       staircase: ⌊t/T⌋
    InverseTimeDecay         η₀/(1 + r·t/T)                   staircase: ⌊t/T⌋
    PolynomialDecay          (η₀ − η₁)·(1 − t/T)^power + η₁   cycle: T·⌈t/T⌉ for T
    CosineDecay              η₀·((1 − α)·(1 + cos(π·t/T))/2 + α), after a linear warmup
    CosineDecayRestarts      the same again and again, each T k times longer, m times
                             lower
    PiecewiseConstantDecay   the value of the first boundary that is not below t
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax.checkpoints._convert.arrays import to_real_numbers
from rmsprop_jax.checkpoints._readers.keras_h5 import Config

_Formula: TypeAlias = Callable[[Config, jax.Array], jax.Array]


def make_schedule(what: str, config: Config) -> optax.Schedule | None:
    """Return the schedule of Keras's ``{"class_name": …, "config": …}``.

    Return None for a class that is not Keras's own.

    Raises:
        ValueError: If a number is missing, or can't be. It names the key.
    """
    name, numbers = config.get("class_name"), config.get("config")
    if not isinstance(name, str) or not isinstance(numbers, dict):
        raise ValueError(f"{what} has a learning rate that is not one: {config}.")
    if name not in _FORMULAS:
        return None
    formula, required = _FORMULAS[name]
    for key in {*required, *(_OPTIONAL & set(numbers))}:
        value = numbers.get(key)
        each = value if isinstance(value, list) and key in _LISTS else [value]
        if key in _OPTIONAL and value is None:
            continue
        # Positive, because it divides.
        is_positive = key.endswith("decay_steps") or key == "t_mul"
        if any(
            math.isnan(x) or (is_positive and x <= 0) for x in to_real_numbers(each)
        ):
            must = "positive" if is_positive else "real"
            raise ValueError(
                f"{key!r} of the {name} in {what} must be a {must} number, but it was "
                f"{value!r}."
            )
    if name == "PiecewiseConstantDecay":
        sizes = [len(numbers[key]) for key in _LISTS]
        if sizes[1] != sizes[0] + 1:
            raise ValueError(
                f"'values' of the {name} in {what} must be one more than its "
                f"'boundaries', but there were {sizes[1]} and {sizes[0]}."
            )
    return _make_schedule(formula, numbers)


def decay_over_time(learning_rate: float, decay: float) -> optax.Schedule:
    """Return η/(1 + decay·t), the argument ``decay`` of legacy optimizers."""
    config = {"initial_learning_rate": learning_rate, "decay_rate": decay}
    return _make_schedule(_decay_inversely, {**config, "decay_steps": 1})


def _make_schedule(formula: _Formula, config: Config) -> optax.Schedule:
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return formula(config, jnp.asarray(count, jnp.result_type(float)))

    return schedule


def _decay_exponentially(config: Config, t: jax.Array) -> jax.Array:
    periods = _count_periods(config, t)
    return config["initial_learning_rate"] * config["decay_rate"] ** periods


def _decay_inversely(config: Config, t: jax.Array) -> jax.Array:
    periods = _count_periods(config, t)
    return config["initial_learning_rate"] / (1 + config["decay_rate"] * periods)


def _count_periods(config: Config, t: jax.Array) -> jax.Array:
    periods = t / config["decay_steps"]
    return jnp.floor(periods) if config.get("staircase") else periods


def _decay_polynomially(config: Config, t: jax.Array) -> jax.Array:
    start, end = config["initial_learning_rate"], config["end_learning_rate"]
    steps = config["decay_steps"]
    if config.get("cycle"):
        steps = steps * jnp.maximum(jnp.ceil(t / steps), 1)
    left = 1 - jnp.minimum(t / steps, 1)
    return (start - end) * left ** config["power"] + end


def _decay_by_cosine(config: Config, t: jax.Array) -> jax.Array:
    start, alpha = config["initial_learning_rate"], config["alpha"]
    # Keras 2 before 2.13 has no warmup.
    top, warmup = config.get("warmup_target"), config.get("warmup_steps") or 0
    if top is None:
        top, warmup = start, 0
    done = jnp.clip((t - warmup) / config["decay_steps"], 0, 1)
    decayed = top * ((1 - alpha) * (1 + jnp.cos(jnp.pi * done)) / 2 + alpha)
    rising = start + (top - start) * t / max(warmup, 1)
    return jnp.where(t < warmup, rising, decayed)


def _restart_cosine(config: Config, t: jax.Array) -> jax.Array:
    start, alpha, k = (config[x] for x in ("initial_learning_rate", "alpha", "t_mul"))
    done = t / config["first_decay_steps"]
    if k == 1:
        restarts = jnp.floor(done)
        done = done - restarts
    else:  # after n of them, 1 + k + … + kⁿ⁻¹ = (1 − kⁿ)/(1 − k) are done
        restarts = jnp.floor(jnp.log(1 - done * (1 - k)) / math.log(k))
        done = (done - (1 - k**restarts) / (1 - k)) / k**restarts
    height = (1 - alpha) * config["m_mul"] ** restarts
    return start * (height * (1 + jnp.cos(jnp.pi * done)) / 2 + alpha)


def _choose_piece(config: Config, t: jax.Array) -> jax.Array:
    boundaries = np.array(config["boundaries"], t.dtype)
    values = jnp.array(config["values"], t.dtype)
    return values[jnp.searchsorted(boundaries, t)]


_LISTS = ("boundaries", "values")
_OPTIONAL = {"warmup_target", "warmup_steps"}
_DECAY = ("initial_learning_rate", "decay_steps", "decay_rate")
# The formula of each class, and the numbers that it needs.
_FORMULAS: dict[str, tuple[_Formula, tuple[str, ...]]] = {
    "ExponentialDecay": (_decay_exponentially, _DECAY),
    "InverseTimeDecay": (_decay_inversely, _DECAY),
    "PolynomialDecay": (
        _decay_polynomially,
        ("initial_learning_rate", "decay_steps", "end_learning_rate", "power"),
    ),
    "CosineDecay": (
        _decay_by_cosine,
        ("initial_learning_rate", "decay_steps", "alpha"),
    ),
    "CosineDecayRestarts": (
        _restart_cosine,
        ("initial_learning_rate", "first_decay_steps", "t_mul", "m_mul", "alpha"),
    ),
    "PiecewiseConstantDecay": (_choose_piece, _LISTS),
}
