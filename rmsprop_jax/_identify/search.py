"""Search every family from a few starts, then extensions, then rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from rmsprop_jax._identify.extending import (
    list_extensions,
    list_typical_eps,
    list_variations,
    raise_eps,
    raise_moments,
)
from rmsprop_jax._identify.families import (
    NOTHING,
    Family,
    guess_state,
    has_decaying_moment,
    list_families,
    list_starts,
)
from rmsprop_jax._identify.fitting import Candidate, Problem, make_problem
from rmsprop_jax._identify.learning_rates import (
    find_unseen_groups,
    have_constant_ratios,
)
from rmsprop_jax._identify.recording import Recording
from rmsprop_jax._identify.simplifying import (
    Ratios,
    drop_decay,
    drop_imitations,
    find_ratios,
    fix_scale,
    is_below,
    simplify,
)
from rmsprop_jax._identify.thresholds import (
    CLEAR,
    FEW,
    FINE_ROUNDING,
    GREEDY,
    HIDING_ROUNDING,
    MAX_LEAVES,
    ROUNDINGS,
    ROUNDINGS_OF_CANCELLATION,
)

Raced: TypeAlias = list[tuple[Family, Candidate]]
Report: TypeAlias = Callable[[], object]  # called after each part of the search


class Found(NamedTuple):
    """The result of the search.

    Attributes:
        problem: What the fits were fitted to.
        recording: The same, as it was recorded.
        group_of: [leaves], the group of each leaf in the problem.
        fits: The simplest rules that explain as much as the best, best first.
        others: The next best, if there is one.
        ratios: By which factors a cost may be larger and still explain as much.
        limit: The largest share of the updates that rounding may leave unexplained.
    """

    problem: Problem
    recording: Recording
    group_of: np.ndarray
    fits: list[Candidate]
    others: list[Candidate]
    ratios: Ratios
    limit: float

    @property
    def is_hidden(self) -> bool:
        """Whether rounding may be so much of the updates that it hides the rule."""
        return self.limit > HIDING_ROUNDING

    @property
    def is_explained(self) -> bool:
        """Whether the best leaves no more than rounding may, which is not much."""
        best = min(self.fits, key=_get_cost)
        return not self.is_hidden and is_below(self.problem, best, self.limit**2)


def find_rules(
    recording: Recording,
    learning_rate: np.ndarray,
    count: int,
    *,
    report: Report,
    is_quick: bool = False,
) -> Found:
    """Find the rules that explain a recording.

    Args:
        recording: The recording.
        learning_rate: [T], NaN where it is unknown.
        count: The steps before the first.
        report: What to call after each part of the search.
        is_quick: Whether to leave out extensions, which few runs have.
    """
    group_of = _group_leaves(recording)
    problem = make_problem(recording, group_of, count)
    ratios = find_ratios(recording)
    limit = max(
        ROUNDINGS * recording.rounding,
        ROUNDINGS_OF_CANCELLATION * recording.precision,
    )
    raced = _race(problem, recording, learning_rate, count)
    report()
    fits = _sort(fit for _, fit in raced)
    if not is_quick:
        fits = _explore(problem, recording, raced, ratios, report)
    report()
    fits = _recover_moments(problem, recording, fits)
    if count:
        fits = _retry_families(problem, recording, raced, fits)
    is_explained = is_below(problem, fits[0], limit**2)
    if not (is_quick or is_explained):
        fits = _persist(problem, recording, fits)
        is_explained = is_below(problem, fits[0], limit**2)
    chosen, others = fits[:1], fits[1:2]
    if is_explained or not is_quick:
        most = len(fits) if is_explained else FEW
        chosen, others = _simplify_best(problem, recording, fits, ratios, most)
        if all(_explains_anything(problem, fit) for fit in chosen):
            fits = [fit for fit in fits if not _varies_by_leaf(fit)]
            chosen, others = _simplify_best(problem, recording, fits, ratios, FEW)
        chosen = [fit for fit in chosen if not _explains_anything(problem, fit)]
    return Found(problem, recording, group_of, chosen, others, ratios, limit)


def _explore(
    problem: Problem,
    recording: Recording,
    raced: Raced,
    ratios: Ratios,
    report: Report,
) -> list[Candidate]:
    """Return the fits of all families, and those with extensions."""
    fits = _sort(fit for _, fit in raced)
    # The effect of a clip may look like an odd initial scale.
    first = next(fit for fit in fits if not np.any(fit.free.log_initial_scale))
    if _is_clear(recording, first):
        return fits
    fits = _extend(problem, recording, fits, ratios)
    report()
    best = simplify(problem, fits[:1], ratios)[0]
    return _sort([*fits, *_vary(problem, recording, raced, best)])


def _simplify_best(
    problem: Problem,
    recording: Recording,
    fits: list[Candidate],
    ratios: Ratios,
    most: int,
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the simplest rules that explain as much as the best, and the next best."""
    near = [fit for fit in fits if fit.cost <= GREEDY * fits[0].cost][:most]
    chosen = _choose_alike(problem, recording, near, ratios)
    rivals = _find_rivals(problem, chosen)
    chosen = _choose_alike(problem, recording, [*chosen, *rivals], ratios)
    worst = ratios.rule * max(fit.cost for fit in chosen)
    others = [fit for fit in fits if fit.cost > worst][:1]
    return drop_imitations(chosen, problem), simplify(problem, others, ratios)


def _varies_by_leaf(fit: Candidate) -> bool:
    v = fit.variant
    return bool(v.momentum_varies and v.learning_rate_by_leaf)


def _explains_anything(problem: Problem, fit: Candidate) -> bool:
    """Whether each step has a momentum and learning rates of leaves, all by themselves.

    So many numbers explain few elements whatever they do.
    """
    return _varies_by_leaf(fit) and not have_constant_ratios(problem, fit)


def _persist(
    problem: Problem, recording: Recording, fits: list[Candidate]
) -> list[Candidate]:
    """Return the fits, and the best of them after more steps, from other ε as well.

    If every step is clipped, α, ε and the clip have nearly the same effect. A fit then
    creeps along a valley, and may end at an ε of 0, whose place can't be determined.
    """
    starts: list[Candidate] = []
    for fit in _choose_different(fits)[:FEW]:
        starts.append(fit)
        if np.any(fit.free.log_eps):
            starts += list_typical_eps(fit, recording)
    again = problem.fit(starts, 200, 1e-9)
    again = [*again, *_find_rivals(problem, _choose_different(_sort(again))[:4])]
    return _sort([*fits, *again])


def _recover_moments(
    problem: Problem, recording: Recording, fits: list[Candidate]
) -> list[Candidate]:
    """Return the fits, and the best again if they lost the state before the run."""
    raised = [(fit, raise_moments(fit, recording)) for fit in fits[:8]]
    again = problem.fit([other for fit, other in raised if other is not fit])
    return _sort([*fits, *again])


def _choose_alike(
    problem: Problem, recording: Recording, fits: list[Candidate], ratios: Ratios
) -> list[Candidate]:
    """Return the simplest fits that explain as much as the best of them."""
    limit = ratios.rule * min(fit.cost for fit in fits)
    alike = [fix_scale(recording, fit) for fit in fits if is_below(problem, fit, limit)]
    simple = simplify(problem, alike, ratios)
    # A simpler fit may explain much more, if the other one was stuck.
    limit = ratios.rule**2 * min(fit.cost for fit in simple)
    return [fit for fit in simple if is_below(problem, fit, limit)]


def _is_clear(recording: Recording, fit: Candidate) -> bool:
    """Whether the search can stop."""
    rounding = recording.rounding
    return rounding < FINE_ROUNDING and fit.residual <= CLEAR * rounding


def _group_leaves(recording: Recording) -> np.ndarray:
    """Return each leaf's group: its own, or if too many, matrices and vectors."""
    if len(recording.names) <= MAX_LEAVES:
        return np.arange(len(recording.names))
    _, groups = np.unique([ndim > 1 for ndim in recording.ndims], return_inverse=True)
    return groups


def _race(
    problem: Problem, recording: Recording, learning_rate: np.ndarray, count: int
) -> Raced:
    """Return the best of every family, from starts that drop out in three rounds."""
    families = list_families()
    if count:  # the initial value of the second moment can't be found
        families = [family for family in families if family.start == "zero"]
    starts = [
        list_starts(family, recording, problem.num_groups, learning_rate, count)
        for family in families
    ]
    evaluated = iter(_apply(problem.evaluate, [x for some in starts for x in some]))
    runners = [
        _sort(min(next(evaluated), key=_get_cost) for _ in some)[:4] for some in starts
    ]
    for max_steps, tolerance, kept in ((3, 1e-3, 2), (8, 1e-3, 1), (40, 1e-6, 1)):
        fitted = _apply(
            partial(problem.fit, max_steps=max_steps, tolerance=tolerance), runners
        )
        runners = [_sort(some)[:kept] for some in fitted]
    winners = [some[0] for some in runners]
    others = _share_numbers(problem, winners) if count else []
    best = _restart(problem, recording, winners, others)
    if count:  # ε can't be seen before the state is nearly right
        best = _restart(problem, recording, best, _share_numbers(problem, best))
    return list(zip(families, best, strict=True))


def _restart(
    problem: Problem,
    recording: Recording,
    fits: list[Candidate],
    others: Iterable[Candidate] = (),
) -> list[Candidate]:
    """Return the fits, or better ones from new starts.

    Args:
        problem: The recording.
        recording: The same, as it was recorded.
        fits: The fits.
        others: The new starts of each fit.
    """
    starts = [_list_restarts(fit, recording) for fit in fits]
    for some, other in zip(starts, others, strict=False):
        some.append(other)
    again = _apply(problem.fit, starts)
    return [
        min([fit, *some], key=_get_cost) for fit, some in zip(fits, again, strict=True)
    ]


def _list_restarts(fit: Candidate, recording: Recording) -> list[Candidate]:
    """Return new starts for a fit, because it may be stuck."""
    raised = raise_moments(raise_eps(fit, recording), recording)
    restarts = [] if raised is fit else [raised]
    if np.any(fit.free.weight_decay):
        # If a gradient is 0, the smallest decay makes a full step, so a fit with some
        # decay can hardly change it.
        restarts.append(drop_decay(raised, "weight_decay"))
    return restarts


def _share_numbers(problem: Problem, fits: list[Candidate]) -> list[Candidate]:
    """Return the fits with the numbers and the state of the best among them.

    If a state or a clip is fitted too, a rule may not find them alone.
    """
    if not fits:
        return []
    best = min(fits, key=_get_cost)
    (made,) = problem.predict([best])
    learning_rate = np.median(made.learning_rate)
    momentum = best.x.momentum
    if best.variant.momentum_varies:
        momentum = np.array(np.median(made.varying))
    shared: list[Candidate] = []
    for fit in fits:
        v, x, theirs = fit.variant, best.x, best.variant
        power = 2.0 ** (int(v.eps_in_sqrt) - int(theirs.eps_in_sqrt))
        holds, held = (
            int(v.learning_rate_in_momentum or v.momentum_varies) for v in (v, theirs)
        )
        x = x._replace(
            momentum=momentum,
            log_eps=power * x.log_eps,
            log_initial_scale=fit.x.log_initial_scale,
            mu=x.mu * learning_rate ** float(holds - held),
        )
        shared.append(fit._replace(x=x))
    return shared


def _retry_families(
    problem: Problem, recording: Recording, raced: Raced, fits: list[Candidate]
) -> list[Candidate]:
    """Return the fits, and every family again from the numbers of the best.

    With a state to fit, a rule with more numbers may find its way where the right one
    has lost it.
    """
    own, best = [fit for _, fit in raced], fits[0]
    if best.cost >= min(fit.cost for fit in own):
        return fits
    # The state of an element says nothing if its learning rate explains whatever it
    # does.
    is_unseen = find_unseen_groups(problem, best)[np.asarray(problem.seen.group)]
    log_nu, grad_mean = guess_state(recording.g, centered=bool(best.variant.centered))
    x = best.x._replace(
        log_nu=np.where(is_unseen, log_nu, best.x.log_nu),
        mu=np.where(is_unseen, 0.0, best.x.mu),
        grad_mean=np.where(is_unseen, grad_mean, best.x.grad_mean),
    )
    shared = _share_numbers(problem, [best._replace(x=x), *own])[1:]
    starts = [
        other._replace(
            x=other.x._replace(
                log_clip_norm=fit.x.log_clip_norm, decay_factor=fit.x.decay_factor
            )
        )
        for fit, other in zip(own, shared, strict=True)
    ]
    return _sort([*fits, *problem.fit(starts)])


def _extend(
    problem: Problem, recording: Recording, fits: list[Candidate], ratios: Ratios
) -> list[Candidate]:
    """Return the fits, and those with extensions, added one after the other."""
    beam = _choose_different(fits)[:8]
    for _ in range(3):
        starts = [x for fit in beam for x in list_extensions(fit, recording)]
        evaluated = _apply(problem.evaluate, starts)
        more = [x for some in evaluated for x in _sort(some)[:3]]
        more = _sort(problem.fit(more, 4, 1e-2))[:32]
        more = _sort(problem.fit(more, 12, 1e-3))[:8]
        more = _sort(problem.fit(more))
        if not more:
            break
        is_better = more[0].cost * ratios.number < fits[0].cost
        fits = _sort([*fits, *more])
        if not is_better or _is_clear(recording, fits[0]):
            break
        beam = more
    return fits


def _vary(
    problem: Problem, recording: Recording, raced: Raced, best: Candidate
) -> list[Candidate]:
    """Return every family with the extensions of the best fit."""
    starts = list_variations(best, raced, recording)
    fitted = _apply(partial(problem.fit, max_steps=4, tolerance=1e-2), starts)
    fits = problem.fit([min(some, key=_get_cost) for some in fitted])
    return _restart(problem, recording, fits, _share_numbers(problem, fits))


def _find_rivals(problem: Problem, fits: list[Candidate]) -> list[Candidate]:
    """Return the fits, each with one of its equations changed."""
    rivals: list[Candidate] = []
    for fit in fits:
        v, x = fit.variant, fit.x
        has_buffer = np.any(fit.free.momentum) and not v.averages_gradient
        changes = ["nesterov"] if has_buffer else []
        if has_buffer and not v.momentum_varies:
            changes.append("learning_rate_in_momentum")
        if has_decaying_moment(v) and x.log_initial_scale < NOTHING / 2:
            changes.append("bias_correction")
        for name in changes:
            rivals.append(
                fit._replace(variant=v._replace(**{name: not getattr(v, name)}))
            )
        if np.any(fit.free.log_eps) and not v.eps_is_floor:
            log_eps = x.log_eps * (0.5 if v.eps_in_sqrt else 2.0)
            rivals.append(
                fit._replace(
                    variant=v._replace(eps_in_sqrt=not v.eps_in_sqrt),
                    x=x._replace(log_eps=log_eps),
                )
            )
    return problem.fit(rivals)


def _choose_different(fits: list[Candidate]) -> list[Candidate]:
    """Return the two best, and of those that differ in little else the best."""
    chosen: dict[object, Candidate] = {}
    for i, fit in enumerate(fits):
        v = fit.variant._replace(
            eps_in_sqrt=False, learning_rate_in_momentum=False, nesterov=False
        )
        has_start = bool(fit.x.log_initial_scale > -1)
        key = v, bool(np.any(fit.free.log_initial_scale)), has_start
        chosen.setdefault(i if i < 2 else key, fit)
    return list(chosen.values())


def _apply(
    function: Callable[[list[Candidate]], list[Candidate]], lists: list[list[Candidate]]
) -> list[list[Candidate]]:
    """Apply a function to the candidates of several lists at once."""
    results = iter(function([x for some in lists for x in some]))
    return [[next(results) for _ in some] for some in lists]


def _get_cost(fit: Candidate) -> float:
    return fit.cost


def _sort(fits: Iterable[Candidate]) -> list[Candidate]:
    return sorted(fits, key=_get_cost)
