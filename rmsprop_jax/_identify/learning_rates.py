"""Find the learning rates of a fit, and the fewest that explain as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rmsprop_jax._identify.fitting import Candidate, Problem
from rmsprop_jax._identify.model import Prediction
from rmsprop_jax._identify.naming import shorten
from rmsprop_jax._identify.thresholds import MAX_PIECES, MAX_STARTS, SIGMAS


class Piece(NamedTuple):
    """A learning rate that stays the same for some steps."""

    steps: int
    learning_rate: float


def read_learning_rates(made: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Return the learning rates [T, groups] and their standard errors."""
    residuals = np.asarray(made.residuals)
    is_used = np.any(residuals != 0, axis=0)  # the others are padding
    degrees = max(1, len(residuals) * (int(np.sum(is_used)) - 1))
    variance = np.sum(np.square(residuals)) / degrees
    stderr = np.sqrt(variance / np.maximum(made.precision, 1e-300))
    return np.asarray(made.learning_rate), np.asarray(stderr)


def count_changes(rates: np.ndarray, stderr: np.ndarray) -> int:
    """Return how often learning rates [T] change by more than their errors allow.

    Unlike `find_pieces`, this needs no fit.
    """
    changes, piece = 0, list[float]()
    for rate, error in zip(rates, stderr, strict=True):
        mean = np.mean(piece) if piece else rate
        if abs(rate - mean) > SIGMAS * error + 1e-6 * abs(mean):
            changes, piece = changes + 1, []
        piece.append(float(rate))
    return changes


def find_pieces(
    problem: Problem,
    fit: Candidate,
    rates: np.ndarray,
    stderr: np.ndarray,
    limit: float,
) -> list[Piece]:
    """Return the fewest learning rates, in few digits, that explain as much.

    All steps are tested together, because the errors of single steps may hide that the
    learning rate is constant or falls in steps. If many pieces are needed, the result
    is empty.

    Args:
        problem: The recording.
        fit: The fit, whose learning rates are free.
        rates: [T], its learning rates.
        stderr: [T], their standard errors; infinite if one can't be determined.
        limit: The largest cost of what explains as much.
    """
    for lengths in split(rates, stderr):
        start = [np.median(x) for x in np.split(rates, np.cumsum(lengths)[:-1])]
        values = _fit_pieces(
            problem, fit, np.array(start), lengths, np.isfinite(stderr), limit
        )
        if values is not None:
            return [Piece(*both) for both in zip(lengths, values, strict=True)]
    return []


def list_pieces(rates: np.ndarray) -> list[Piece]:
    """Return how long learning rates [T] that are known stay the same, if often."""
    starts = np.flatnonzero(np.diff(rates, prepend=np.nan) != 0)
    if len(starts) > MAX_PIECES:
        return []
    lengths = np.diff(starts, append=len(rates))
    return [
        Piece(int(n), _as_written(rates[i]))
        for i, n in zip(starts, lengths, strict=True)
    ]


def _as_written(rate: np.floating) -> float:
    """Return a learning rate, as the user wrote it if it was recorded in float32."""
    narrow = np.float32(rate)
    return float(str(narrow)) if narrow == rate else float(rate)


def split(rates: np.ndarray, stderr: np.ndarray) -> Iterator[Sequence[int]]:
    """Yield the lengths of one piece, of the best two, and so on."""
    weights = 1 / np.square(stderr + 1e-9 * np.abs(rates) + 1e-300)
    jumps = np.abs(np.diff(rates)) / (stderr[1:] + stderr[:-1] + 1e-300)
    starts = 1 + np.sort(np.argsort(-jumps)[:MAX_STARTS])
    starts = np.array([0, *starts, len(rates)])

    def accumulate(x: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(x)])[starts]

    weight, mean, square = (accumulate(weights * rates**power) for power in range(3))
    # The cost of a piece from each start to each end, if its learning rate is the mean.
    of_weight, of_mean, of_square = (
        x[None, :] - x[:, None] for x in (weight, mean, square)
    )
    costs = of_square - np.square(of_mean) / np.where(of_weight > 0, of_weight, np.inf)
    costs = np.where(starts[None, :] > starts[:, None], costs, np.inf)
    best, ways = costs[0], [[0, i] for i in range(len(starts))]
    for _ in range(MAX_PIECES):
        if not np.isfinite(best[-1]):  # there are not as many steps
            return
        yield [int(n) for n in np.diff(starts[ways[-1]])]
        # One piece more: the last of them starts where the others end.
        both = best[:, None] + costs
        last = np.argmin(both, axis=0)
        best = np.min(both, axis=0)
        ways = [[*ways[i], end] for end, i in enumerate(last)]


def _fit_pieces(
    problem: Problem,
    fit: Candidate,
    start: np.ndarray,
    lengths: Sequence[int],
    is_seen: np.ndarray,
    limit: float,
) -> list[float] | None:
    """Return the learning rate of each piece, or None if they explain less.

    Updates are linear in them.
    """
    piece_of = np.repeat(np.arange(len(lengths)), lengths)

    def put(values: np.ndarray) -> Candidate:
        rates = np.where(is_seen, values[piece_of], np.nan)
        return fit._replace(x=fit.x._replace(learning_rate=rates))

    step = 1e-3 * np.where(start, start, 1.0)
    shifted = [put(start), *(put(start + row) for row in np.diag(step))]
    base, *others = (x.residuals.ravel() for x in problem.predict(shifted))
    slopes = (np.stack(others) - base) / step[:, None]
    hessian = slopes @ slopes.T
    inverse = np.linalg.pinv(hessian, hermitian=True)
    values = start - inverse @ (slopes @ base)
    (exact,) = problem.fit_state([put(values)])
    if not exact.cost <= limit:
        return None
    more = (limit - exact.cost) * problem.size
    stderr = np.sqrt(more * np.diagonal(inverse)) / SIGMAS
    # A state from before the recording makes up for some of the change.
    wider = (125.0, 25.0, 5.0) if fit.x.log_nu.size else ()
    for reach in (*wider, 1.0, 0.2, 0.04):
        brief = [shorten(*x) for x in zip(values, reach * stderr, strict=True)]
        (tried,) = problem.fit_state([put(np.array(brief))])
        if tried.cost <= limit:
            return brief
    return [float(x) for x in values]


def find_unseen_groups(problem: Problem, fit: Candidate) -> np.ndarray:
    """Return for each group whether its learning rates alone explain everything.

    This is so for a leaf of one element if each leaf has its own learning rate in each
    step: then nothing else can be determined for that leaf.
    """
    is_element = np.any(np.asarray(problem.seen.steps.weight) > 0, axis=0)
    columns = np.asarray(problem.seen.columns)[is_element, 1:]
    elements = np.sum(columns, axis=0)
    is_unseen = np.asarray(fit.variant.learning_rate_by_leaf & (elements == 1))
    return is_unseen & ~np.all(is_unseen)


def compare_groups(
    rates: np.ndarray, errors: np.ndarray, is_unseen: np.ndarray
) -> np.ndarray | None:
    """Return the learning rates of groups over the first's, if that is constant.

    It is 1 for groups of which nothing is known.
    """
    seen = np.flatnonzero(~is_unseen)
    all_factors = np.ones(len(is_unseen))
    rates, errors = rates[:, seen], errors[:, seen]
    first = rates[:, :1]
    weights = 1 / np.square(errors + 1e-9 * np.abs(rates) + 1e-30)
    square = np.sum(weights * np.square(first), axis=0)
    factors = np.sum(weights * first * rates, axis=0) / square
    off = np.abs(rates - factors * first)
    reach = SIGMAS * (errors + np.abs(factors) * errors[:, :1]) + 1e-3 * np.abs(rates)
    if np.mean(off > reach) > 0.1:
        return None
    stderr = 1 / np.sqrt(square)
    all_factors[seen] = [shorten(*x) for x in zip(factors, stderr, strict=True)]
    return all_factors


def have_constant_ratios(problem: Problem, fit: Candidate) -> bool:
    """Whether the learning rates of groups differ by factors that stay the same."""
    (made,) = problem.predict([fit])
    both = read_learning_rates(made)
    return compare_groups(*both, find_unseen_groups(problem, fit)) is not None
