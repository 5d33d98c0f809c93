"""Extend rules by what few runs have: clips, settings by leaf, caution, schedules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from rmsprop_jax._identify.families import Family, has_clip
from rmsprop_jax._identify.fitting import Candidate
from rmsprop_jax._identify.model import Variant
from rmsprop_jax._identify.recording import Recording
from rmsprop_jax._identify.thresholds import MAX_ROUNDING_OF_CAUTION


def raise_eps(candidate: Candidate, recording: Recording) -> Candidate:
    """Return the candidate with an ε that matters, if its own does not.

    While the rule lacks something else, an ε of 0 may explain most. No fit returns from
    there, because the updates do not depend on an ε that is practically 0.
    """
    if not np.any(candidate.free.log_eps):
        return candidate
    sizes = np.sqrt(np.mean(np.square(recording.g), axis=0))
    least = np.log(1e-3 * np.quantile(sizes[sizes > 0], 0.1))
    least = least * (2 if candidate.variant.eps_in_sqrt else 1)
    if candidate.x.log_eps >= least:
        return candidate
    return candidate._replace(x=candidate.x._replace(log_eps=least))


def list_typical_eps(candidate: Candidate, recording: Recording) -> list[Candidate]:
    """Return the candidate with an ε of a typical gradient's size, in both places."""
    v, log_eps = candidate.variant, _measure_typical_gradient(recording)
    inside = v._replace(eps_in_sqrt=True, eps_is_floor=False)
    return [
        candidate._replace(variant=variant, x=candidate.x._replace(log_eps=place))
        for variant, place in (
            (v._replace(eps_in_sqrt=False), log_eps),
            (inside, 2 * log_eps),
        )
    ]


def _measure_typical_gradient(recording: Recording) -> np.ndarray:
    """Return the logarithm of an element's typical size."""
    return np.log(np.median(np.abs(recording.g[recording.g != 0])))


def raise_moments(candidate: Candidate, recording: Recording) -> Candidate:
    """Return the candidate with second moments from before the run that matter.

    As with ε, no fit returns from a second moment that is practically 0.
    """
    count = candidate.x.log_nu.size
    if not count or not np.any(candidate.free.log_nu):
        return candidate
    square = np.mean(np.square(recording.g), axis=0)[:count]
    usual = np.log(np.maximum(square, 1e-300))
    is_lost = candidate.x.log_nu < usual + np.log(1e-6)
    if not np.any(is_lost):
        return candidate
    log_nu = np.where(is_lost, usual, candidate.x.log_nu)
    return candidate._replace(x=candidate.x._replace(log_nu=log_nu))


def list_extensions(
    candidate: Candidate, recording: Recording
) -> Iterator[list[Candidate]]:
    """Yield, for each extension that few runs have, the candidate with it.

    Each extension is tried with several numbers to start from.
    """
    candidate = raise_eps(candidate, recording)
    v, x, free = candidate.variant, candidate.x, candidate.free
    varies = v.momentum_varies or v.decay_varies
    has_buffer = bool(np.any(free.momentum)) and not v.averages_gradient
    if np.any(free.log_eps) and not v.eps_is_floor:
        floor = v._replace(eps_in_sqrt=False, eps_is_floor=True)
        outside = x.log_eps / 2 if v.eps_in_sqrt else x.log_eps
        typical = _measure_typical_gradient(recording)
        yield [
            candidate._replace(variant=floor, x=x._replace(log_eps=log_eps))
            for log_eps in (outside, typical)
        ]
    if has_buffer and not v.nesterov:
        yield [candidate._replace(variant=v._replace(nesterov=True))]
    if has_buffer and not varies:
        varying = v._replace(momentum_varies=True, nesterov=False)
        fixed = free._replace(momentum=np.False_)
        yield [candidate._replace(variant=varying, free=fixed)]
    if not (v.takes_sign or varies):
        yield [
            candidate._replace(
                variant=v._replace(decay_varies=True),
                x=x._replace(decoupled_weight_decay=np.zeros(())),
                free=free._replace(decoupled_weight_decay=np.False_),
            )
        ]
    # A step that rounding undoes looks like one that caution undoes.
    if not v.cautious and recording.rounding < MAX_ROUNDING_OF_CAUTION:
        yield [candidate._replace(variant=v._replace(cautious=True))]
    if not has_clip(candidate):
        yield from _list_clips(candidate, recording)
    elif (
        np.any(free.weight_decay)
        and not v.clips_after_decay
        and (v.clips_elements or not recording.is_sampled)  # else that norm is unknown
    ):
        yield [candidate._replace(variant=v._replace(clips_after_decay=True))]
    if len(recording.names) > 1:
        yield from _list_by_leaf(candidate)


def _list_clips(
    candidate: Candidate, recording: Recording
) -> Iterator[list[Candidate]]:
    v, x, free = candidate.variant, candidate.x, candidate.free
    sizes = {
        "global": recording.gradient_norms,
        "leaf": np.sqrt(recording.sums.gg),
        "element": np.abs(recording.g),
    }
    if len(recording.names) == 1 or recording.is_sampled:
        del sizes["leaf"]  # the same as the global norm, or unknown
    logits = [x.logit_one_minus_alpha]
    if np.any(free.logit_one_minus_alpha):  # fitted without a clip, α may be far off
        logits.append(np.array(np.log(0.05 / 0.95)))
    for name, size in sizes.items():
        # Slightly less than the largest norm, otherwise it would clip nothing.
        levels = np.log(np.quantile(size[size > 0], (0.1, 0.5, 0.9, 1.0))) - 1e-4
        yield [
            Candidate(
                v._replace(
                    clips_elements=name == "element", clips_leaves=name == "leaf"
                ),
                x._replace(log_clip_norm=level, logit_one_minus_alpha=logit),
                free._replace(log_clip_norm=np.True_),
            )
            for level, logit in itertools.product(levels, logits)
        ]


def _list_by_leaf(candidate: Candidate) -> Iterator[list[Candidate]]:
    """Yield candidates whose leaves have their own learning rates or weight decay."""
    v, x, free = candidate.variant, candidate.x, candidate.free
    if not (v.learning_rate_by_leaf or v.decay_varies):
        yield [candidate._replace(variant=v._replace(learning_rate_by_leaf=True))]
    if np.any(free.decay_factor):
        return
    for name in ("weight_decay", "decoupled_weight_decay"):
        value = getattr(x, name)
        if not (np.any(getattr(free, name)) and value):
            continue
        # The decay is fixed, because the factors of the leaves multiply it.
        only = {"weight_decay": np.zeros(()), "decoupled_weight_decay": np.zeros(())}
        yield [
            candidate._replace(
                x=x._replace(**{**only, name: value}),
                free=free._replace(
                    weight_decay=np.False_,
                    decoupled_weight_decay=np.False_,
                    decay_factor=np.ones_like(free.decay_factor),
                ),
            )
        ]


_SURROUNDINGS = (
    "eps_is_floor",
    "nesterov",
    "momentum_varies",
    "decay_varies",
    "cautious",
    "clips_elements",
    "clips_leaves",
    "clips_after_decay",
    "learning_rate_by_leaf",
)


def list_variations(
    best: Candidate, fits: Iterable[tuple[Family, Candidate]], recording: Recording
) -> list[list[Candidate]]:
    """Return every family with the extensions of the best candidate.

    Each starts from its own numbers, and from those of the best candidate. If that has
    no extensions, there are no variations.
    """
    around = {name: getattr(best.variant, name) for name in _SURROUNDINGS}
    plain = {name: getattr(Variant(), name) for name in _SURROUNDINGS}
    by_leaf = bool(np.any(best.free.decay_factor))
    if around == plain and not by_leaf and not has_clip(best):
        return []
    numbers = ["log_clip_norm"]
    if by_leaf:
        numbers += ["weight_decay", "decoupled_weight_decay", "decay_factor"]
    variations: list[list[Candidate]] = []
    for family, own in fits:
        v = family.variant._replace(**around)
        if v.takes_sign or v.is_factored:
            continue
        if v.averages_gradient:
            v = v._replace(nesterov=False, momentum_varies=False)
        v = v._replace(eps_is_floor=bool(v.eps_is_floor and not v.eps_in_sqrt))
        free = own.free._replace(
            **{name: getattr(best.free, name) for name in numbers},
            momentum=own.free.momentum & ~np.bool_(v.momentum_varies),
        )
        theirs = own.x._replace(**{name: getattr(best.x, name) for name in numbers})
        power = 2.0 ** (int(v.eps_in_sqrt) - int(best.variant.eps_in_sqrt))
        ours = best.x._replace(
            log_initial_scale=own.x.log_initial_scale, log_eps=power * best.x.log_eps
        )
        variations.append(
            [raise_eps(Candidate(v, x, free), recording) for x in (theirs, ours)]
        )
    return variations
