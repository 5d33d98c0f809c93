"""The rules that are searched for, and the numbers that their fits start from."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from rmsprop_jax._identify.fitting import Candidate
from rmsprop_jax._identify.model import Theta, Variant
from rmsprop_jax._identify.recording import Recording

Start: TypeAlias = Literal["zero", "one", "free"]

# The logarithm that stands for 0, as an ε or an initial scale.
NOTHING = -690.0
# The logarithm of a clip that no gradient reaches.
NO_CLIP = 230.0


class Family(NamedTuple):
    """Rules with the same equations.

    Attributes:
        variant: The equations.
        start: The initial value of the second moment.
    """

    variant: Variant
    start: Start


def list_families() -> list[Family]:
    """Return the rules of all dialects, and the optimizers that look like them."""
    buffers = [{"learning_rate_in_momentum": holds} for holds in (False, True)]
    places = [{"eps_in_sqrt": is_inside} for is_inside in (False, True)]
    starts: list[tuple[Start, bool]] = [
        ("zero", False),
        ("zero", True),
        ("one", False),
        ("free", False),
    ]
    rmsprop = [
        Family(
            Variant(centered=centered, bias_correction=correction, **place, **buffer),
            start,
        )
        for centered, (start, correction), place, buffer in itertools.product(
            (False, True), starts, places, buffers
        )
    ]
    adam = [
        Family(
            Variant(averages_gradient=True, bias_correction=correction, **place), "zero"
        )
        for correction, place in itertools.product((True, False), places)
    ]
    adagrad = [
        Family(Variant(accumulates=True, **place), start)
        for place, start in itertools.product(places, ("zero", "free"))
    ]
    sgd = [Family(Variant(divides=False, **buffer), "zero") for buffer in buffers]
    adafactor = [
        Family(
            Variant(
                is_factored=True, is_factored_always=always, learning_rate_by_leaf=True
            ),
            "zero",
        )
        for always in (False, True)
    ]
    lion = Family(Variant(takes_sign=True), "zero")
    return [*rmsprop, *adam, *adagrad, *sgd, *adafactor, lion]


def has_decaying_moment(v: Variant) -> bool:
    """Whether the second moment decays, as in RMSProp, Adam and fastai."""
    return not (v.accumulates or v.is_factored or v.takes_sign or not v.divides)


def has_clip(candidate: Candidate) -> bool:
    """Whether gradients are clipped."""
    return bool(candidate.x.log_clip_norm < NO_CLIP)


def list_starts(
    family: Family,
    recording: Recording,
    groups: int,
    learning_rate: np.ndarray,
    count: int,
) -> list[list[Candidate]]:
    """Return a family with numbers to start from.

    The starts in a list differ in what a fit finds anyway, above all in α.

    Args:
        family: The family.
        recording: The recording, which shows the scale of the numbers.
        groups: The number of groups of leaves in the problem.
        learning_rate: [T], NaN where it is unknown.
        count: The number of steps before the first.
    """
    v = family.variant
    square = np.mean(np.square(recording.g), axis=0)
    low, middle, high = np.quantile(np.sqrt(square[square > 0]), (0.1, 0.5, 0.9))
    alphas: tuple[float, ...] = (0.5,)
    log_epsilons: tuple[float, ...] = (NOTHING,)
    momentums: tuple[float, ...] = (0.0,) if v.is_factored else (0.1, 0.9)
    scales = {
        "zero": (NOTHING,),
        "one": (0.0,),
        "free": (0.0, 2 * np.log(middle)),
    }[family.start]
    if has_decaying_moment(v):
        alphas = (0.6, 0.9, 0.99, 0.999)
    if has_decaying_moment(v) or v.accumulates:
        power = 2 if v.eps_in_sqrt else 1
        log_epsilons = tuple(power * np.log((1e-3 * low, middle, 10 * high)))
    if v.takes_sign:  # the sign has no derivative that a fit could follow
        alphas = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
        momentums = (0.8, 0.85, 0.9, 0.92, 0.95, 0.98, 0.99)
    plain = _make_plain_numbers(family, recording, groups, learning_rate, count)
    free = _list_free_numbers(family, plain)
    return [
        [
            Candidate(
                v,
                plain._replace(
                    logit_one_minus_alpha=np.log((1 - alpha) / alpha),
                    log_eps=np.array(log_eps),
                    momentum=np.array(momentum),
                    log_initial_scale=np.array(scale),
                ),
                free,
            )
            for alpha, scale in itertools.product(alphas, scales)
        ]
        for log_eps, momentum in itertools.product(log_epsilons, momentums)
    ]


def _make_plain_numbers(
    family: Family,
    recording: Recording,
    groups: int,
    learning_rate: np.ndarray,
    count: int,
) -> Theta:
    """Return numbers without a decay or a clip, and a state from before, if any."""
    log_nu, mean = guess_state(recording.g, centered=bool(family.variant.centered))
    n = len(mean) if count else 0
    nothing = np.zeros(())
    return Theta(
        logit_one_minus_alpha=nothing,
        log_eps=nothing,
        momentum=nothing,
        log_initial_scale=nothing,
        log_clip_norm=np.array(NO_CLIP),
        weight_decay=nothing,
        decoupled_weight_decay=nothing,
        decay_factor=np.ones(groups),
        learning_rate=learning_rate,
        learning_rate_factor=np.ones(groups),
        log_nu=log_nu[:n],
        mu=np.zeros(n),
        grad_mean=mean[:n],
    )


def guess_state(g: np.ndarray, *, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return log ν and the mean of gradients [T, n], as if they had always been so."""
    mean, square = np.mean(g, axis=0), np.mean(np.square(g), axis=0)
    variance = square - np.square(mean) if centered else square
    return np.log(variance + 1e-12 * np.mean(square)), mean


def _list_free_numbers(family: Family, x: Theta) -> Theta:
    """Return which of the numbers of a family are fitted."""
    v = family.variant
    has_moment = has_decaying_moment(v) or v.accumulates
    has_momentum = has_moment or not v.divides
    return Theta(
        logit_one_minus_alpha=np.array(has_decaying_moment(v)),
        log_eps=np.array(has_moment),
        momentum=np.array(has_momentum),
        log_initial_scale=np.array(family.start == "free"),
        log_clip_norm=np.zeros((), bool),
        weight_decay=np.array(has_momentum),
        decoupled_weight_decay=np.ones((), bool),
        decay_factor=np.zeros_like(x.decay_factor, bool),
        learning_rate=np.zeros_like(x.learning_rate, bool),
        learning_rate_factor=np.zeros_like(x.learning_rate_factor, bool),
        log_nu=np.full_like(x.log_nu, has_moment, bool),
        mu=np.full_like(x.mu, not v.is_factored, bool),
        grad_mean=np.full_like(x.grad_mean, v.centered, bool),
    )
