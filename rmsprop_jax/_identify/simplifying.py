"""Simplify fits: drop whatever does not make them explain more."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from rmsprop_jax._identify.families import (
    NO_CLIP,
    NOTHING,
    has_clip,
    has_decaying_moment,
)
from rmsprop_jax._identify.fitting import Candidate, Problem
from rmsprop_jax._identify.learning_rates import count_changes, read_learning_rates
from rmsprop_jax._identify.model import Array, Theta
from rmsprop_jax._identify.recording import Recording
from rmsprop_jax._identify.thresholds import (
    ALIKE_PER_ELEMENT,
    COMMON_ALPHAS,
    GREEDY,
    LOGITS_OF_ALPHA,
    OVERWHELMING_EPS,
    SIGMAS,
    SYSTEMATIC,
)

# From a candidate to simpler ones; none if it is already as simple.
Change: TypeAlias = Callable[[Candidate], list[Candidate]]


class Ratios(NamedTuple):
    """The factors by which a cost may be larger by chance.

    Attributes:
        rule: For another rule, if the learning rates of all steps are free.
        number: For the same rule without one of its numbers.
    """

    rule: float
    number: float


def find_ratios(recording: Recording) -> Ratios:
    """Return the ratios for a recording.

    They depend on the effective number of elements and steps, which is small if a few
    of them have most of the rounding error.
    """
    square = np.square(recording.weight * recording.noise)
    elements = _count_effective(np.sum(square, axis=0))
    steps = _count_effective(np.sum(square, axis=1))
    by_number = SIGMAS**2 / (elements * steps)
    by_step = ALIKE_PER_ELEMENT / elements
    return Ratios(
        rule=1 + max(SYSTEMATIC, by_number + by_step),
        number=1 + max(SYSTEMATIC, by_number),
    )


def _count_effective(costs: np.ndarray) -> float:
    """Return how many equal costs would vary as much by chance as all of these."""
    return float(np.square(np.sum(costs)) / np.sum(np.square(costs)))


def is_below(problem: Problem, fit: Candidate, limit: float) -> bool:
    """Whether a fit has no larger cost, if necessary with better learning rates.

    `predict` takes the best learning rate of each step separately. If the momentum
    buffer includes the learning rate, its error persists in the next steps.
    """
    if not limit < fit.cost <= GREEDY * limit:
        return fit.cost <= limit
    v = fit.variant
    holds = v.learning_rate_in_momentum and np.any(fit.free.momentum)
    if not holds or v.learning_rate_by_leaf or v.momentum_varies:
        return False
    return problem.fit_learning_rates(fit) <= limit


def simplify(
    problem: Problem, fits: list[Candidate], ratios: Ratios
) -> list[Candidate]:
    """Return the fits without anything that does not help, and without duplicates."""
    fits, costs = list(fits), [fit.cost for fit in fits]
    changes = _count_changes(problem, fits)
    for change in _CHANGES:
        tried = [(i, new) for i, fit in enumerate(fits) for new in change(fit)]
        fitted = problem.fit([new for _, new in tried], 20, 1e-4)
        frees_steps = change in (_share_learning_rate, _fix_varying)
        ratio = ratios.rule if frees_steps else ratios.number
        alike = [
            (i, fit)
            for (i, _), fit in zip(tried, fitted, strict=True)
            if is_below(problem, fit, ratio * costs[i])
        ]
        alike.sort(key=lambda both: -both[1].cost)
        new_changes = _count_changes(problem, [fit for _, fit in alike])
        for (i, fit), number in zip(alike, new_changes, strict=True):
            # Without a clip, changing learning rates may have to compensate for it.
            if number > changes[i] and change is _drop_clip:
                continue
            # If the other fit was stuck, its numbers mean nothing.
            is_alike = fits[i].cost <= ratio * fit.cost
            fits[i] = _add_shift(fit, old=fits[i]) if is_alike else fit
            changes[i] = number
            if frees_steps:
                costs[i] = max(costs[i], fit.cost)
    best: dict[object, Candidate] = {}
    for fit in sorted(map(_drop_idle_flags, fits), key=lambda fit: fit.cost):
        best.setdefault(_describe(fit), fit)
    return list(best.values())


def _add_shift(fit: Candidate, old: Candidate) -> Candidate:
    """Return the fit with the shifts of those of its numbers that remain."""

    def add(before: Array | None, new: Array, old: Array, is_free: Array) -> Array:
        shift = np.where(is_free, np.abs(new - old), 0.0)
        return shift if before is None else shift + before

    # A usual α is not fitted, but replaces one that was.
    free = fit.free._replace(logit_one_minus_alpha=old.free.logit_one_minus_alpha)
    before = old.shift or [None] * len(fit.x)
    parts = zip(before, fit.x, old.x, free, strict=True)
    return fit._replace(shift=Theta(*(add(*part) for part in parts)))


def _count_changes(problem: Problem, fits: list[Candidate]) -> list[int]:
    """Return how often the learning rate of each fit changes, up to a few."""
    if not fits:
        return []
    both = [read_learning_rates(made) for made in problem.predict(fits)]
    return [min(4, count_changes(x[:, 0], stderr[:, 0])) for x, stderr in both]


def _drop_idle_flags(fit: Candidate) -> Candidate:
    """Return the fit without flags that change nothing."""
    v = fit.variant
    if not (np.any(fit.free.momentum) or v.momentum_varies or v.takes_sign):
        v = v._replace(
            nesterov=False, learning_rate_in_momentum=False, averages_gradient=False
        )
    if not np.any(fit.free.log_eps):
        v = v._replace(eps_in_sqrt=False, eps_is_floor=False)
    if not has_clip(fit):
        v = v._replace(clips_elements=False, clips_leaves=False)
    if not (has_clip(fit) and fit.x.weight_decay):
        v = v._replace(clips_after_decay=False)
    return fit._replace(variant=v)


def _describe(fit: Candidate) -> object:
    """Return a key that two fits share if they are the same rule."""
    has_start = bool(fit.x.log_initial_scale > NOTHING / 2)
    free = tuple(bool(np.any(flags)) for flags in fit.free)
    return fit.variant, has_start, has_clip(fit), free


def drop_imitations(fits: list[Candidate], problem: Problem) -> list[Candidate]:
    """Return the fits without those that imitate a simpler one among them.

    With an ε far larger than all gradients, an RMSProp is SGD, and without decay of the
    second moment it is SGD or Adagrad. A momentum or a decay that changes at each step,
    or learning rates of each leaf, may imitate another rule, which needs none of them.
    """
    plain = [
        fit
        for fit in fits
        if not (fit.variant.momentum_varies or fit.variant.decay_varies)
    ]
    fits = plain or fits
    variants = [fit.variant for fit in fits]
    has_sgd = any(not fit.variant.divides for fit in fits)
    has_adagrad = any(fit.variant.accumulates for fit in fits)
    g = problem.seen.steps.g
    largest = np.log(np.max(np.abs(g)))
    largest_sum = np.log(np.max(np.sum(np.square(g), axis=0))) / 2

    def imitates(fit: Candidate) -> bool:
        v = fit.variant
        shared = v._replace(learning_rate_by_leaf=False)
        if v.learning_rate_by_leaf and shared in variants:
            return True
        eps = fit.x.log_eps / (2 if v.eps_in_sqrt else 1)
        is_constant = np.any(fit.free.log_eps) and eps > largest + OVERWHELMING_EPS
        if v.accumulates:
            start = fit.x.log_initial_scale / 2
            is_constant |= start > largest_sum + OVERWHELMING_EPS
            return bool(has_sgd and is_constant)
        never_forgets = has_decaying_moment(v) and _has_odd_alpha(fit)
        return bool((has_sgd or has_adagrad) and (is_constant or never_forgets))

    return [fit for fit in fits if not imitates(fit)]


def fix_scale(recording: Recording, fit: Candidate) -> Candidate:
    """Return the fit with a fixed scale of the gradients, if nothing fixes it.

    If every step is clipped, each gradient has the norm of the clip. A clip that is k
    times as large makes the same updates if ε and the weight decay are k times as large
    too (k² times for an ε inside the root and for the initial scale). The scale is
    chosen so that ν is initialized to 1, or otherwise so that the clip is a power of
    ten.
    """
    x, free = fit.x, fit.free
    norms = recording.gradient_norms
    if fit.variant.clips_leaves:
        norms = np.sqrt(recording.sums.gg)
    least = np.log(np.min(norms[norms > 0]))
    # A fit may end exactly at the smallest norm.
    is_every_step = has_clip(fit) and x.log_clip_norm <= least + 1e-5
    starts_at_one = x.log_initial_scale == 0 and not np.any(free.log_initial_scale)
    if not is_every_step or fit.variant.clips_elements or starts_at_one:
        return fit
    log_factor = -x.log_initial_scale / 2
    fixed = "log_initial_scale"
    has_start = x.log_initial_scale > NOTHING / 2
    if not has_start or x.log_clip_norm + log_factor > least:
        log_clip = np.log(10) * min(0.0, np.floor(least / np.log(10)))
        log_factor = log_clip - x.log_clip_norm
        fixed = "log_clip_norm"
    x = x._replace(
        log_clip_norm=x.log_clip_norm + log_factor,
        log_initial_scale=x.log_initial_scale + (2 * log_factor if has_start else 0),
        log_eps=x.log_eps + log_factor * (2 if fit.variant.eps_in_sqrt else 1),
        weight_decay=x.weight_decay * np.exp(log_factor),
    )
    return fit._replace(x=x, free=free._replace(**{fixed: np.False_}))


def _fix_start(fit: Candidate) -> list[Candidate]:
    if not np.any(fit.free.log_initial_scale):
        return []
    free = fit.free._replace(log_initial_scale=np.False_)
    return [
        fit._replace(x=fit.x._replace(log_initial_scale=np.array(scale)), free=free)
        for scale in (NOTHING, 0.0)
    ]


def _drop_clip(fit: Candidate) -> list[Candidate]:
    if not has_clip(fit):
        return []
    x = fit.x._replace(log_clip_norm=np.array(NO_CLIP))
    free = fit.free._replace(log_clip_norm=np.False_)
    return [fit._replace(x=x, free=free)]


def _share_learning_rate(fit: Candidate) -> list[Candidate]:
    if not fit.variant.learning_rate_by_leaf:
        return []
    return [fit._replace(variant=fit.variant._replace(learning_rate_by_leaf=False))]


def _fix_varying(fit: Candidate) -> list[Candidate]:
    v = fit.variant
    if v.momentum_varies:
        return [
            Candidate(
                v._replace(momentum_varies=False),
                fit.x._replace(momentum=np.array(momentum)),
                fit.free._replace(momentum=np.True_),
            )
            for momentum in (0.1, 0.9)
        ]
    if v.decay_varies:
        is_shared = not np.any(fit.free.decay_factor)
        free = fit.free._replace(decoupled_weight_decay=np.bool_(is_shared))
        return [fit._replace(variant=v._replace(decay_varies=False), free=free)]
    return []


def _drop_caution(fit: Candidate) -> list[Candidate]:
    if not fit.variant.cautious:
        return []
    return [fit._replace(variant=fit.variant._replace(cautious=False))]


def _make_drop_decay(name: str) -> Change:
    def change(fit: Candidate) -> list[Candidate]:
        return [drop_decay(fit, name)] if getattr(fit.x, name) else []

    return change


def drop_decay(fit: Candidate, name: str) -> Candidate:
    """Return the fit without one of the two weight decays.

    If it had no other decay, its leaves no longer have decay factors.
    """
    x = fit.x._replace(**{name: np.zeros(())})
    free = fit.free._replace(**{name: np.False_})
    if not (x.weight_decay or x.decoupled_weight_decay):
        x = x._replace(decay_factor=np.ones_like(x.decay_factor))
        free = free._replace(decay_factor=np.zeros_like(free.decay_factor))
    return fit._replace(x=x, free=free)


def _drop_momentum(fit: Candidate) -> list[Candidate]:
    if not np.any(fit.free.momentum):
        return []
    return [
        fit._replace(
            x=fit.x._replace(momentum=np.zeros(()), mu=np.zeros_like(fit.x.mu)),
            free=fit.free._replace(
                momentum=np.False_, mu=np.zeros_like(fit.free.mu, bool)
            ),
        )
    ]


def _drop_eps(fit: Candidate) -> list[Candidate]:
    if not np.any(fit.free.log_eps):
        return []
    return [
        fit._replace(
            variant=fit.variant._replace(eps_is_floor=False),
            x=fit.x._replace(log_eps=np.array(NOTHING)),
            free=fit.free._replace(log_eps=np.False_),
        )
    ]


def _use_common_alpha(fit: Candidate) -> list[Candidate]:
    if not np.any(fit.free.logit_one_minus_alpha) or not _has_odd_alpha(fit):
        return []
    free = fit.free._replace(logit_one_minus_alpha=np.False_)
    return [
        fit._replace(
            x=fit.x._replace(logit_one_minus_alpha=np.log((1 - alpha) / alpha)),
            free=free,
        )
        for alpha in COMMON_ALPHAS
    ]


def _has_odd_alpha(fit: Candidate) -> bool:
    """Whether α is so close to 1 or 0 that nobody would choose it."""
    least, most = LOGITS_OF_ALPHA
    return not least < float(fit.x.logit_one_minus_alpha) < most


_CHANGES: tuple[Change, ...] = (
    _fix_start,
    _drop_clip,
    _share_learning_rate,
    _fix_varying,
    _drop_caution,
    _make_drop_decay("decoupled_weight_decay"),
    _make_drop_decay("weight_decay"),
    _drop_momentum,
    _drop_eps,
    _use_common_alpha,
)
