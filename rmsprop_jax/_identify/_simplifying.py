"""A fit without all that it explains as much without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rmsprop_jax._identify._explaining import Structure, Unknowns
from rmsprop_jax._identify._fitting import Fit, Problem

# By how much more may be unexplained, squared, for a rule to explain as well. The rate
# of each step is free. So of two rules that are one at a constant rate, either may
# explain more, by chance: about one part in as many as there are elements that count,
# which may be a dozen.
ALIKE = 1.25
# Logarithms of an ε that is not there, and of one beside which nothing is, and of
# (1 − α)/α where nothing is ever forgotten.
_NO_EPS, _ALL_EPS, _NO_FORGETTING = -700.0, 18.0, -21.0

Change = tuple[Structure, Unknowns, Unknowns]


def cost_of(fit: Fit) -> float:
    """What is unexplained, to sort by."""
    return fit.cost


def simplified(problem: Problem, fit: Fit) -> Fit:
    """The simplest fit that explains as much."""
    fit = problem.fit(fit.structure, fit.x, fit.free)
    for change in (_no_clip, _no_start, _no_decay, _no_momentum):
        fit = _changed(problem, fit, change)
    for limit, change in (("SGD", _sgd), ("Adagrad", _adagrad)):
        simpler = _changed(problem, fit, change)
        if simpler is not fit:
            fit = simpler._replace(limit=limit)
            break
    return _changed(problem, fit, _no_eps)


def _changed(problem: Problem, fit: Fit, change: Callable[[Fit], Change]) -> Fit:
    """With the change, if that explains as much."""
    s, x, free = change(fit)
    if np.array_equal(_bits(free), _bits(fit.free)):
        return fit
    other = problem.fit(s, x, free)._replace(limit=fit.limit)
    return other if other.cost <= ALIKE * fit.cost else fit


def _bits(free: Unknowns) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in free])


def _sgd(fit: Fit) -> Change:
    """The divisor is always the same: SGD, maybe with momentum."""
    s, x, free = fit.structure, fit.x, fit.free
    no = np.False_
    return (
        s._replace(centered=False, eps_in_sqrt=False, corrected=False, started=False),
        x._replace(eps=np.array(_ALL_EPS) + x.clip, forgetting=np.array(0.0)),
        free._replace(eps=no, forgetting=no, start=no, nu=no & free.nu),
    )


def _adagrad(fit: Fit) -> Change:
    """The second moment forgets nothing: the sum of all squares, and of its start."""
    s, x, free = fit.structure, fit.x, fit.free
    smaller = _NO_FORGETTING + np.logaddexp(0, -x.forgetting)  # 1 − α, and with it ν
    return (
        s._replace(corrected=False),
        x._replace(
            forgetting=np.array(_NO_FORGETTING),
            eps=x.eps + smaller * (1.0 if s.eps_in_sqrt else 0.5),
            start=x.start + smaller,
        ),
        free._replace(forgetting=np.False_),
    )


def _no_clip(fit: Fit) -> Change:
    x, free = fit.x, fit.free
    return (
        fit.structure,
        x._replace(clip=x.clip + 50 * free.clip),
        free._replace(clip=np.False_),
    )


def _no_start(fit: Fit) -> Change:
    s, free = fit.structure, fit.free
    return s._replace(started=False), fit.x, free._replace(start=np.False_)


def _no_momentum(fit: Fit) -> Change:
    s, x, free = fit.structure, fit.x, fit.free
    return (
        s._replace(nesterov=False, rate_in_momentum=False),
        x._replace(momentum=np.array(0.0), mu=0 * x.mu),
        free._replace(momentum=np.False_, mu=np.zeros_like(x.mu, bool)),
    )


def _no_decay(fit: Fit) -> Change:
    s, x, free = fit.structure, fit.x, fit.free
    return (
        s._replace(decoupled=False),
        x._replace(decay=np.zeros_like(x.decay)),
        free._replace(decay=np.zeros_like(x.decay, bool)),
    )


def _no_eps(fit: Fit) -> Change:
    s, x, free = fit.structure, fit.x, fit.free
    return (
        s._replace(eps_in_sqrt=False),
        x._replace(eps=np.array(_NO_EPS)),
        free._replace(eps=np.False_),
    )
