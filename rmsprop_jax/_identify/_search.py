"""The search: every structure from a few starts, then the best of them to the end."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._identify._explaining import Seen, Structure, Unknowns
from rmsprop_jax._identify._fitting import Fit, Problem
from rmsprop_jax._identify._recording import ROUNDINGS, Recording
from rmsprop_jax._identify._simplifying import ALIKE, cost_of, simplified

_ELEMENTS = 64
_BEFORE = 10  # elements where the state before the run has to be fitted as well
_ROUGH = 12  # evaluations
_TO_THE_END = 20  # structures
_MOST = 6  # structures to compare
_MOST_LEAVES = 16  # that may each decay for themselves


class Found(NamedTuple):
    """The fits, best first, and what they were fitted to."""

    fits: list[Fit]
    problem: Problem
    recording: Recording  # its sampled elements
    group: np.ndarray  # [leaves], which of the decays is a leaf's
    elements: int  # of the whole recording
    known: bool  # whether the rates are

    @property
    def explains(self) -> bool:
        """Whether the best leaves no more unexplained than rounding would."""
        return self.fits[0].residual <= ROUNDINGS * self.recording.rounding


def structures() -> list[Structure]:
    """Every rule: 96."""
    flags = itertools.product([False, True], repeat=5)
    begins = ((False, False), (False, True), (True, False))
    return [
        Structure._make((*five, *two)) for five, two in itertools.product(flags, begins)
    ]


def searched(recording: Recording, rates: np.ndarray, count: int) -> Found:
    """The structures that explain most, with their numbers.

    Args:
        recording: All of it.
        rates: [T], NaN where one is unknown.
        count: The steps before the first.
    """
    some = recording.elements(recording.spread(_BEFORE if count else _ELEMENTS))
    leaves, elements = int(some.leaf.max()) + 1, recording.g.shape[1]
    group = np.zeros(leaves, int)
    rules = [s for s in structures() if not (count and s.started)]
    starts = [_starts(some, group, s, count) for s in rules]
    problem = _problem(some, group, rates, count, starts[0][0])
    fits = _plain(problem, rules, starts)
    if fits[0].residual > ROUNDINGS * some.rounding:
        # Something else may have been done: a clip, or a decay of some leaves only.
        by_leaf = np.arange(leaves) if leaves <= _MOST_LEAVES else group
        like = _starts(some, by_leaf, rules[0], count)[0]
        other = _problem(some, by_leaf, rates, count, like)
        more = [_extended(other, fit, like, some.norm) for fit in fits[:_MOST]]
        nearest = min(more, key=cost_of)
        for s in _near(nearest.structure):
            fit = nearest._replace(structure=s)
            more.append(_finished(other, fit, _starts(some, by_leaf, s, count)))
        if min(map(cost_of, more)) * ALIKE < fits[0].cost:
            fits, problem, group = sorted(more, key=cost_of), other, by_leaf
    simple: dict[Any, Fit] = {}
    for fit in fits:
        fit = simplified(problem, fit)
        key = fit.structure, fit.limit
        if key not in simple or fit.cost < simple[key].cost:
            simple[key] = fit
        if len(simple) == _MOST:
            break
    best = sorted(simple.values(), key=cost_of)
    known = bool(np.isfinite(rates[0]))
    return Found(best, problem, some, group, elements, known)


def _plain(
    problem: Problem, rules: list[Structure], starts: list[list[Unknowns]]
) -> list[Fit]:
    """The fits of the best structures, without a clip and with one decay."""
    costs = problem.costs(_stacked(rules), _stacked([_stacked(xs) for xs in starts]))
    begun = []
    for s, xs, cost in zip(rules, starts, costs, strict=True):
        # Of the starts without much momentum the best, and of those with.
        tried = (min(range(i, len(xs), 2), key=cost.__getitem__) for i in (0, 1))
        fits = [problem.fit(s, xs[i], _free(s, xs[i]), _ROUGH) for i in tried]
        begun.append(min(fits, key=cost_of))
    best = sorted(zip(begun, starts, strict=True), key=lambda both: both[0].cost)
    fits = [_finished(problem, fit, xs) for fit, xs in best[:_TO_THE_END]]
    return sorted(fits, key=cost_of)


def _finished(problem: Problem, fit: Fit, starts: list[Unknowns]) -> Fit:
    """The best from here, and, if ε has run out of sight, from other ε."""
    best = problem.fit(fit.structure, fit.x, fit.free)
    if best.error.eps > 1:
        for eps in {float(x.eps) for x in starts}:
            start = best.x._replace(eps=np.array(eps))
            again = problem.fit(fit.structure, start, fit.free)
            best = min(best, again, key=cost_of)
    return best


def _extended(problem: Problem, fit: Fit, like: Unknowns, norm: np.ndarray) -> Fit:
    """The fit where gradients may be clipped, and each group has its own decay."""
    x = fit.x._replace(decay=np.full_like(like.decay, fit.x.decay[0]))
    free = fit.free._replace(clip=np.True_, decay=np.ones_like(like.decay, bool))
    fits = [problem.fit(fit.structure, x, free._replace(clip=np.False_))]
    for share in (0.1, 0.5, 0.9):
        clip = np.array(np.log(np.quantile(norm, share)))
        fits.append(problem.fit(fit.structure, x._replace(clip=clip), free))
    return min(fits, key=cost_of)


def _near(s: Structure) -> list[Structure]:
    """Others that may explain as much where ε is small or the rate is constant."""
    flags = itertools.product([False, True], repeat=2)
    both = [s._replace(eps_in_sqrt=a, rate_in_momentum=b) for a, b in flags]
    return [other for other in both if other != s]


def _stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *trees)


def _problem(
    some: Recording, group: np.ndarray, rates: np.ndarray, count: int, like: Unknowns
) -> Problem:
    seen = Seen(
        g=some.g,
        p=some.p,
        u=some.u,
        weight=some.weight,
        norm=np.maximum(some.norm, 1e-100),
        group=group[some.leaf],
        rate=rates,
        count=np.int32(count),
    )
    size = float(np.sqrt(np.mean(np.square(some.g))))
    ones = Unknowns(*(np.ones(np.shape(part)) for part in like))
    decay = size / float(np.sqrt(np.mean(np.square(some.p))) or 1)
    scale = ones._replace(decay=decay * ones.decay, grad_mean=size * ones.grad_mean)
    if count:
        moved = np.sqrt(np.mean(np.square(some.u)))
        scale = scale._replace(mu=np.maximum(moved, 1e-30) * scale.mu)
    return Problem(seen, scale)


def _starts(
    some: Recording, group: np.ndarray, s: Structure, count: int
) -> list[Unknowns]:
    """Numbers to begin from; every second one with much momentum."""
    mean = np.mean(some.g, axis=0)
    square = np.mean(np.square(some.g), axis=0)
    low, middle, high = np.quantile(np.sqrt(square[square > 0]), (0.1, 0.5, 0.9))
    n = len(mean) if count else 0
    nu = square - np.square(mean) if s.centered else square
    return [
        Unknowns(
            forgetting=np.log((1 - alpha) / alpha),
            eps=np.log(eps) * (2 if s.eps_in_sqrt else 1),
            momentum=np.float64(momentum),
            start=np.float64(0),
            clip=np.log(np.max(some.norm)) + 1,
            decay=np.zeros(group.max() + 1),
            nu=np.log(nu + 1e-12 * middle**2)[:n],
            mu=np.zeros(n),
            grad_mean=mean[:n],
        )
        for alpha, eps, momentum in itertools.product(
            (0.6, 0.95, 0.995), (1e-3 * low, middle, 10 * high), (0.1, 0.9)
        )
    ]


def _free(s: Structure, x: Unknowns) -> Unknowns:
    """All numbers that the structure has."""
    flags = (True, True, True, s.started, False, True, True, True, s.centered)
    return Unknowns(
        *(np.full(np.shape(part), flag) for part, flag in zip(x, flags, strict=True))
    )
