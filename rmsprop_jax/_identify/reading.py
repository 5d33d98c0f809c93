"""Convert a fit to the hyperparameters of `rmsprop`, and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rmsprop_jax._identify.families import NOTHING, has_clip, has_decaying_moment
from rmsprop_jax._identify.fitting import Candidate
from rmsprop_jax._identify.learning_rates import (
    Piece,
    compare_groups,
    find_pieces,
    find_unseen_groups,
    list_pieces,
    read_learning_rates,
)
from rmsprop_jax._identify.model import Array, Theta
from rmsprop_jax._identify.naming import shorten
from rmsprop_jax._identify.search import Found
from rmsprop_jax._identify.thresholds import (
    ROUNDINGS_OF_CANCELLATION,
    SHARE_OF_DECAY,
    SIGMAS,
)
from rmsprop_jax._optimizer.options import Config


class Number(NamedTuple):
    """A fitted number; its standard error is infinite if it is undetermined."""

    value: float
    stderr: float


class Reading(NamedTuple):
    """A fit in the names of `rmsprop`.

    Attributes:
        fit: The fit.
        numbers: Its numbers; "clip" is the largest norm of a gradient.
        covariance: The covariance of the numbers.
        sign: −1 if it maximizes.
        learning_rate_error: The relative standard error of a step's learning rate.
        group_decays: [groups], whether each decays.
        decays: [leaves], whether each decays.
        is_unseen: [leaves], whether its learning rate and decay are undetermined.
    """

    fit: Candidate
    numbers: dict[str, Number]
    covariance: np.ndarray
    sign: float
    learning_rate_error: float
    group_decays: np.ndarray
    decays: np.ndarray
    is_unseen: np.ndarray


class Rates(NamedTuple):
    """The learning rates of a fit, and what else varies.

    Attributes:
        values: [T of the user's recording], the learning rates of the first leaf for
            which they are determined; NaN where nothing moved.
        stderr: [T of the user's recording], their standard errors, in the same form.
        pieces: The fewest learning rates that explain as much, if these are few; then
            `values` consists of them.
        factors: [leaves], each leaf's learning rates over `values`; None if the
            quotient changes.
        varying: [T], the momentum or the decay of each step, if it varies.
    """

    values: np.ndarray
    stderr: np.ndarray
    pieces: list[Piece]
    factors: np.ndarray | None
    varying: np.ndarray


def read_fit(found: Found, fit: Candidate) -> Reading:
    """Return a fit in the names of `rmsprop`."""
    x, v = fit.x, fit.variant
    covariance = found.problem.covariance(fit, found.ratios.number)
    stderr = found.problem.stderr(fit, covariance)
    (made,) = found.problem.predict([fit])
    rates, errors = read_learning_rates(made)
    is_moving = rates != 0
    moving, error = rates[is_moving], errors[is_moving]
    learning_rate_error = float(np.median(error / np.abs(moving)))
    # Ascent is descent with a negative learning rate and a negative decay.
    sign = -1.0 if np.median(moving) < 0 else 1.0
    numbers: dict[str, Number] = {}
    if has_decaying_moment(v) or v.takes_sign:
        one_minus_alpha = float(1 / (1 + np.exp(-x.logit_one_minus_alpha)))
        slope = one_minus_alpha * (1 - one_minus_alpha)
        error = float(stderr.logit_one_minus_alpha) * slope
        numbers["alpha"] = Number(1 - one_minus_alpha, error)
    if np.any(fit.free.log_eps):
        numbers["eps"] = _exponentiate(x.log_eps, stderr.log_eps)
    elif has_decaying_moment(v) or v.accumulates:
        numbers["eps"] = Number(0.0, np.inf)
    numbers["momentum"] = Number(float(x.momentum), float(stderr.momentum))
    if v.momentum_varies:  # it is none of the numbers that were fitted
        numbers["momentum"] = Number(float(np.median(made.varying)), np.inf)
    is_unseen = find_unseen_groups(found.problem, fit)
    decays, decay = _read_decay(fit, stderr, is_unseen)
    if not decay.value and not v.takes_sign:
        decay = Number(0.0, _bound_decay(found, fit) / SIGMAS)
    numbers["weight_decay"] = Number(sign * decay.value, decay.stderr)
    numbers["initial_scale"] = Number(0.0, 0.0)
    if x.log_initial_scale > NOTHING / 2:
        scale = _exponentiate(x.log_initial_scale, stderr.log_initial_scale)
        numbers["initial_scale"] = scale
    if has_clip(fit):
        numbers["clip"] = _exponentiate(x.log_clip_norm, stderr.log_clip_norm)
    of_leaf = found.group_of
    return Reading(
        fit,
        numbers,
        _transform_covariance(found, fit, numbers, covariance),
        sign,
        learning_rate_error,
        decays,
        decays[of_leaf],
        is_unseen[of_leaf],
    )


def _transform_covariance(
    found: Found, fit: Candidate, numbers: dict[str, Number], covariance: np.ndarray
) -> np.ndarray:
    """Return the covariance of numbers in the names of `rmsprop`."""
    fields = {
        "alpha": "logit_one_minus_alpha",
        "eps": "log_eps",
        "momentum": "momentum",
        "weight_decay": _get_decay_name(fit),
        "initial_scale": "log_initial_scale",
        "clip": "log_clip_norm",
    }
    columns = [found.problem.find_column(fields[name]) for name in numbers]
    slopes = np.array(
        [_differentiate_number(name, number.value) for name, number in numbers.items()]
    )
    chosen = covariance[np.ix_(columns, columns)]
    chosen = np.where(np.isfinite(chosen), chosen, 0.0)
    return chosen * np.outer(slopes, slopes)


def _differentiate_number(name: str, value: float) -> float:
    """Return the derivative of a number by its coordinate in a fit."""
    if name == "alpha":
        return -value * (1 - value)
    return value if name in ("eps", "initial_scale", "clip") else 1.0


def _bound_decay(found: Found, fit: Candidate) -> float:
    """Return the largest decoupled weight decay that explains as much as none."""
    decays = np.geomspace(1e-5, 1.0, 26)
    tried = found.problem.evaluate(
        [fit._replace(x=fit.x._replace(decoupled_weight_decay=x)) for x in decays]
    )
    limit = found.ratios.number * fit.cost
    alike = [x for x, other in zip(decays, tried, strict=True) if other.cost <= limit]
    return float(max(alike, default=0.0))


def _exponentiate(logarithm: Array, stderr: Array) -> Number:
    value = float(np.exp(logarithm))
    return Number(value, value * float(stderr))


def _read_decay(
    fit: Candidate, stderr: Theta, is_unseen: np.ndarray
) -> tuple[np.ndarray, Number]:
    """Return which groups decay, and how much."""
    name = _get_decay_name(fit)
    value, error = float(getattr(fit.x, name)), float(getattr(stderr, name))
    factors = np.where(is_unseen, 0.0, fit.x.decay_factor)
    decays = ~is_unseen
    if not np.any(fit.free.decay_factor):
        return decays, Number(value, error)
    errors = np.maximum(stderr.decay_factor, 1e-9)
    least = SHARE_OF_DECAY * np.max(np.abs(factors))
    decays = np.abs(factors) > np.maximum(SIGMAS * errors, least)
    if not np.any(decays):
        decays = np.abs(factors) > least
    weights = decays / np.square(errors)
    mean = float(np.sum(weights * factors) / np.sum(weights))
    return decays, Number(value * mean, abs(value) / float(np.sqrt(np.sum(weights))))


def _get_decay_name(fit: Candidate) -> str:
    return "weight_decay" if fit.x.weight_decay else "decoupled_weight_decay"


def shorten_numbers(found: Found, reading: Reading) -> dict[str, float]:
    """Return the numbers in the fewest digits that explain as much together."""
    for reach in (1.0, 0.2, 0.04):
        brief = shorten_one_by_one(reading, reach)
        (tried,) = found.problem.fit_state([put_numbers(reading, brief)])
        if tried.cost <= found.ratios.number * reading.fit.cost:
            return brief
    return {name: number.value for name, number in reading.numbers.items()}


def shorten_one_by_one(reading: Reading, reach: float) -> dict[str, float]:
    """Return the numbers in few digits, each adjusted to the ones before it.

    If α and ε compensate for each other, an α in few digits determines ε.

    Args:
        reading: The numbers.
        reach: The share of their errors that shortening may use up.
    """
    covariance = reading.covariance.copy()
    values = np.array([number.value for number in reading.numbers.values()])
    left = reach**2  # of the square of the errors, in `SIGMAS` standard errors
    brief: dict[str, float] = {}
    for i, (name, number) in enumerate(reading.numbers.items()):
        variance = covariance[i, i]
        stderr = np.sqrt(left / 2 * variance) if variance else reach * number.stderr
        if name == "clip":
            # In a clipped step, an error of the clip is one of the learning rate.
            stderr = min(stderr, reading.learning_rate_error * number.value / SIGMAS)
        brief[name] = _shorten_number(name, float(values[i]), float(stderr))
        if variance:
            change = (brief[name] - values[i]) / variance
            left -= min(left, change**2 * variance / SIGMAS**2)
            row = covariance[i].copy()
            values = values + change * row
            covariance -= np.outer(row, row) / variance
            np.fill_diagonal(covariance, np.maximum(np.diagonal(covariance), 0.0))
    return brief


def _shorten_number(name: str, value: float, stderr: float) -> float:
    if name == "alpha":  # 0.999 has one digit, and 0.9990 two
        return float(f"{1 - shorten(1 - value, stderr):.12g}")
    return shorten(value, stderr)


def put_numbers(reading: Reading, numbers: dict[str, float]) -> Candidate:
    """Return the fit with other numbers, and one weight decay for all that decay."""
    fit, x = reading.fit, reading.fit.x
    if "alpha" in numbers:
        one_minus_alpha = np.clip(1 - numbers["alpha"], 1e-13, 0.999)
        logit = np.log(one_minus_alpha / (1 - one_minus_alpha))
        x = x._replace(logit_one_minus_alpha=logit)
    if "eps" in numbers:
        x = x._replace(log_eps=_take_log(numbers["eps"]))
    if "clip" in numbers:
        x = x._replace(log_clip_norm=_take_log(numbers["clip"]))
    decay = np.array(reading.sign * numbers["weight_decay"])
    x = x._replace(
        momentum=np.array(numbers["momentum"]),
        log_initial_scale=_take_log(numbers["initial_scale"]),
        **{_get_decay_name(fit): decay},
    )
    if np.any(fit.free.decay_factor):
        x = x._replace(decay_factor=reading.group_decays.astype(float))
    return fit._replace(x=x)


def _take_log(value: float) -> np.ndarray:
    return np.array(np.log(value) if value > 0 else NOTHING)


def put_config(reading: Reading, brief: dict[str, float], config: Config) -> Candidate:
    """Return the fit with the numbers of a dialect's call, and its place of ε."""
    numbers = dict(brief)
    for name in ("alpha", "eps", "momentum", "weight_decay"):
        value = getattr(config.hyperparams, name)
        # If the dialect has no weight decay, optax adds it before the rule.
        if isinstance(value, float) and (name != "weight_decay" or value):
            numbers[name] = value
    numbers["initial_scale"] = float(config.initial_scale)
    fit = put_numbers(reading, numbers)
    variant = fit.variant._replace(eps_in_sqrt=config.rule.eps_in_sqrt)
    return fit._replace(variant=variant)


def read_rates(found: Found, fit: Candidate, sign: float) -> Rates:
    """Return the learning rates of a fit at its numbers."""
    recording = found.recording
    (made,) = found.problem.predict([fit])
    rates, errors = read_learning_rates(made)
    rates = sign * rates
    is_known = not np.any(np.isnan(fit.x.learning_rate))  # the user gave them
    holds = fit.variant.learning_rate_in_momentum
    if holds:  # an error remains in the buffer for the next steps
        errors = errors / np.sqrt(1 - np.square(fit.x.momentum))
    if holds and fit.x.mu.size and not is_known:
        # The buffer from before the recording is fitted, and compensates for it.
        errors = np.concatenate([np.full_like(errors[:1], np.inf), errors[1:]])
        rates = np.concatenate([rates[1:2], rates[1:]])
    factors: np.ndarray | None = np.ones(rates.shape[1])
    if fit.variant.learning_rate_by_leaf:
        factors = compare_groups(rates, errors, find_unseen_groups(found.problem, fit))
    first = int(np.argmin(find_unseen_groups(found.problem, fit)))
    values, stderr = (np.full(recording.num_steps, np.nan) for _ in range(2))
    rates, stderr[recording.kept] = rates[:, first], errors[:, first]
    if fit.x.log_nu.size:  # the state before the recording may hold some of them
        covariance = found.problem.covariance(fit, found.ratios.number)
        variance = found.problem.learning_rate_variance(fit, covariance)[:, first]
        stderr[recording.kept] = np.hypot(errors[:, first], np.sqrt(variance))
    pieces: list[Piece] = []
    if is_known:
        pieces = list_pieces(rates)
    elif factors is not None:
        fit = fit._replace(x=fit.x._replace(learning_rate_factor=factors))
        limit = found.ratios.rule * fit.cost
        if fit.variant.bias_correction:
            # In float32 the bias correction 1 − α^t loses digits, and so do the
            # learning rates.
            off = SIGMAS * ROUNDINGS_OF_CANCELLATION * recording.precision
            limit = max(limit, off**2)
        found_pieces = find_pieces(
            found.problem, fit, sign * rates, errors[:, first], limit
        )
        pieces = [
            piece._replace(learning_rate=sign * piece.learning_rate)
            for piece in found_pieces
        ]
    if pieces:
        rates = np.repeat([x.learning_rate for x in pieces], [x.steps for x in pieces])
    values[recording.kept] = rates
    by_leaf = None if factors is None else factors[found.group_of]
    return Rates(values, stderr, pieces, by_leaf, sign * np.asarray(made.varying))
