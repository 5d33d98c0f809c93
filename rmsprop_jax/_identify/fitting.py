"""Fit the hyperparameters of many rules at once, by damped least squares.

SciPy would fit them one by one, and take more time between the predictions than for
them. Here all candidates of a stage take their steps together. Derivatives are
differences of predictions, so that only the prediction must be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._identify.model import (
    Array,
    Observations,
    Prediction,
    Steps,
    Sums,
    Theta,
    Variant,
    predict,
)
from rmsprop_jax._identify.recording import Recording
from rmsprop_jax._identify.thresholds import ELEMENTS, SIGMAS

_BATCH = 64  # predictions in one call of the compiled program
_DIFFERENCE = 1e-6  # of a number's scale
_LARGEST_DAMPING = 1e8
_LARGEST_LOG = 690.0  # its exponential is finite
# The largest change of a logarithm in one step of a fit, if the state from before the
# recording is fitted too. A larger one may leave an element without an update, or ν and
# ε without a trace, and no fit comes back from there.
_LARGEST_STEP_WITH_STATE = 2.0

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class Candidate(NamedTuple):
    """A rule with its numbers.

    Attributes:
        variant: The rule.
        x: Its numbers.
        free: Which of them are fitted, booleans.
        cost: The sum of squared residuals over the sum of squared updates.
        shift: How far its numbers are from those of fits that explain as much with more
            numbers; None if it was not simplified.
    """

    variant: Variant
    x: Theta
    free: Theta
    cost: float = np.inf
    shift: Theta | None = None

    @property
    def residual(self) -> float:
        """The share of the updates that is unexplained."""
        return float(np.sqrt(self.cost))


class Problem:
    """A recording, and how well rules explain it."""

    def __init__(
        self, seen: Observations, scale: Theta, bounds: tuple[Theta, Theta]
    ) -> None:
        """Store the recording.

        Args:
            seen: The recording.
            scale: A typical change of each number.
            bounds: The smallest and the largest value of each number.
        """
        steps = seen.steps
        self.seen: Observations = jax.tree.map(jnp.asarray, seen)
        self.num_groups = seen.columns.shape[1] - 1
        self.size = float(np.sum(np.square(steps.weight * steps.u)))
        self._scale = _flatten(scale)
        self._bounds = [_flatten(bound) for bound in bounds]
        far = Theta(*(np.full_like(x, np.inf) for x in scale))
        self._has_state = scale.log_nu.size > 0
        if self._has_state:
            largest = _LARGEST_STEP_WITH_STATE
            far = far._replace(
                logit_one_minus_alpha=np.array(largest),
                log_eps=np.array(largest),
                log_nu=np.full_like(scale.log_nu, largest),
            )
        self._largest_step = _flatten(far)
        self._shapes: Shapes = tuple(np.shape(part) for part in scale)

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with their costs."""
        if not candidates:
            return []
        costs, _ = self._predict_residuals(*_to_arrays(candidates))
        return [
            c._replace(cost=float(cost))
            for c, cost in zip(candidates, costs, strict=True)
        ]

    def fit(
        self,
        candidates: Sequence[Candidate],
        max_steps: int = 40,
        tolerance: float = 1e-6,
    ) -> list[Candidate]:
        """Return the candidates with the numbers, near theirs, that explain most.

        Args:
            candidates: Where to start, and which numbers are free.
            max_steps: The largest number of steps of a candidate.
            tolerance: A candidate stops when the derivatives predict that its cost
                can't fall by more than this share.
        """
        if not candidates:
            return []
        flags, x = _to_arrays(candidates)
        free = np.stack([_flatten(c.free) for c in candidates]).astype(bool)
        columns = np.flatnonzero(np.any(free, axis=0))
        m, k = len(x), len(columns)
        costs, _ = self._predict_residuals(flags, x)
        hessian, gradient = np.zeros((m, k, k)), np.zeros((m, k))
        damping = np.full(m, 1e-2)
        has_moved = np.ones(m, bool)
        is_active = np.isfinite(costs) & np.any(free, axis=1)
        for _ in range(max_steps):
            moved = np.flatnonzero(is_active & has_moved)
            if len(moved):
                hessian[moved], gradient[moved] = self._differentiate(
                    flags[moved], x[moved], free[moved], columns
                )
            _, gains = _find_steps(hessian, gradient, np.full(m, 1e-6))
            is_active &= gains > tolerance * costs * self.size
            active = np.flatnonzero(is_active)
            if not len(active):
                break
            trial = x[active]
            steps, _ = _find_steps(hessian[active], gradient[active], damping[active])
            largest = self._largest_step[columns]
            trial[:, columns] += np.clip(steps, -largest, largest)
            trial = np.clip(trial, *self._bounds)
            trial_costs, _ = self._predict_residuals(flags[active], trial)
            is_better = trial_costs < costs[active]
            has_moved[active] = is_better
            x[active[is_better]] = trial[is_better]
            costs[active[is_better]] = trial_costs[is_better]
            damping[active] *= np.where(is_better, 0.1, 10.0)
            is_active &= damping < _LARGEST_DAMPING
        return [
            c._replace(x=_unflatten(self._shapes, row), cost=float(cost))
            for c, row, cost in zip(candidates, x, costs, strict=True)
        ]

    def fit_state(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with the state from before the recording refitted.

        A number in fewer digits needs another state. If the recording starts with the
        run, there is no such state, and they are only evaluated.
        """
        if not self._has_state:
            return self.evaluate(candidates)
        states = [
            c._replace(free=_fix_all(c.free)._replace(**_get_state(c.free)))
            for c in candidates
        ]
        return [
            fit._replace(free=c.free)
            for c, fit in zip(candidates, self.fit(states, 8, 1e-4), strict=True)
        ]

    def covariance(self, candidate: Candidate, ratio: float) -> np.ndarray:
        """Return the covariance of all numbers; infinite if one can't be determined.

        `SIGMAS` standard errors are how far a number may be off, with the others
        adjusted, if costs up to `ratio` times as large explain as much. Statistics
        alone would promise smaller errors, because it assumes independent residuals,
        and rounding errors are not.
        """
        flags, x = _to_arrays([candidate])
        free = _flatten(candidate.free).astype(bool)
        columns = np.flatnonzero(free)
        hessian, _ = self._differentiate(flags, x, free[None], columns)
        more = (ratio - 1) * candidate.cost * self.size / SIGMAS**2
        covariance = np.zeros((free.size, free.size))
        covariance[np.ix_(columns, columns)] = more * _invert(hessian[0])
        return covariance

    def learning_rate_variance(
        self, candidate: Candidate, covariance: np.ndarray
    ) -> np.ndarray:
        """Return how far the numbers' errors put the learning rates off, [T, groups].

        Args:
            candidate: The fit.
            covariance: That of its numbers.
        """
        flags, x = _to_arrays([candidate])
        free = np.flatnonzero(_flatten(candidate.free))
        shifted = np.repeat(x, 1 + len(free), axis=0)
        step = _DIFFERENCE * self._scale[free]
        shifted[np.arange(1, len(shifted)), free] += step
        made = self._predict(np.repeat(flags, len(shifted), axis=0), shifted)
        rates = np.concatenate([np.asarray(x.learning_rate)[:n] for n, (_, x) in made])
        slopes = (rates[1:] - rates[0]) / step[:, None, None]
        known = covariance[np.ix_(free, free)]
        known = np.where(np.isfinite(known), known, 0.0)
        return np.einsum("itg,ij,jtg->tg", slopes, known, slopes)

    def stderr(self, candidate: Candidate, covariance: np.ndarray) -> Theta:
        """Return the standard error of each number; infinite if it is undetermined.

        It includes the shift by simplifying: if ε can't be determined, α may be less
        certain.
        """
        stderr = np.sqrt(np.diagonal(covariance))
        if candidate.shift is not None:
            stderr = stderr + np.abs(_flatten(candidate.shift)) / SIGMAS
        return _unflatten(self._shapes, stderr)

    def find_column(self, name: str) -> int:
        """Return the index of a number among all."""
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        return sum(sizes[: Theta._fields.index(name)])

    def fit_learning_rates(self, candidate: Candidate) -> float:
        """Return the cost with the best learning rates of all steps together.

        The updates must be linear in them.
        """
        (made,) = self.predict([candidate])
        x = candidate.x._replace(learning_rate=made.learning_rate[:, 0])
        free = _fix_all(candidate.free)
        free = free._replace(learning_rate=np.isnan(candidate.x.learning_rate))
        flags, flat = _to_arrays([candidate._replace(x=x)])
        mask = _flatten(free).astype(bool)
        columns = np.flatnonzero(mask)
        hessian, gradient = self._differentiate(flags, flat, mask[None], columns)
        steps, _ = _find_steps(hessian, gradient, np.full(1, 1e-9))
        flat[:, columns] += steps
        costs, _ = self._predict_residuals(flags, flat)
        return min(candidate.cost, float(costs[0]))

    def predict(self, candidates: Sequence[Candidate]) -> list[Prediction]:
        """Return the candidates' predictions from the gradients, as NumPy arrays."""
        flags, x = _to_arrays(candidates)
        found: list[Prediction] = []
        for rows, (_, made) in self._predict(flags, x):
            arrays = [np.asarray(part) for part in made]
            found += [Prediction(*(a[i] for a in arrays)) for i in range(rows)]
        return found

    def _differentiate(
        self, flags: np.ndarray, x: np.ndarray, free: np.ndarray, columns: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return JᵀJ [m, k, k] and Jᵀr [m, k] of some columns of the numbers.

        They are 0 where a number is not free.
        """
        m, k = len(x), len(columns)
        hessian, gradient = np.zeros((m, k, k)), np.zeros((m, k))
        scale = _DIFFERENCE * self._scale[columns]
        rows, starts, places = [], [0], []
        for i in range(m):
            place = np.flatnonzero(free[i, columns])
            shifted = np.repeat(x[i : i + 1], 1 + len(place), axis=0)
            shifted[np.arange(1, 1 + len(place)), columns[place]] += scale[place]
            rows.append(shifted)
            places.append(place)
            starts.append(starts[-1] + len(shifted))
        owner = np.repeat(np.arange(m), np.diff(starts))
        _, residuals = self._predict_residuals(flags[owner], np.concatenate(rows))
        for i, place in enumerate(places):
            base = residuals[starts[i]]
            change = residuals[starts[i] + 1 : starts[i + 1]] - base
            square, slope = change @ change.T, change @ base
            is_bad = ~np.isfinite(np.diagonal(square) + slope)
            square[is_bad], square[:, is_bad], slope[is_bad] = 0, 0, 0
            step = scale[place]
            hessian[np.ix_([i], place, place)] = square / np.outer(step, step)
            gradient[i, place] = slope / step
        return hessian, gradient

    def _predict_residuals(
        self, flags: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the costs [m], infinite where numbers overflow, and residuals."""
        costs, residuals = [], []
        for rows, (cost, made) in self._predict(flags, x):
            costs.append(np.asarray(cost)[:rows])
            residuals.append(np.asarray(made.residuals)[:rows].reshape(rows, -1))
        cost = np.concatenate(costs) / self.size
        return np.where(np.isfinite(cost), cost, np.inf), np.concatenate(residuals)

    def _predict(
        self, flags: np.ndarray, x: np.ndarray
    ) -> Iterator[tuple[int, tuple[jax.Array, Prediction]]]:
        """Yield how many rows of a batch are meant, and the batch."""
        for i in range(0, len(x), _BATCH):
            rows = np.minimum(np.arange(i, i + _BATCH), len(x) - 1)
            made = _predict_batch(self._shapes, flags[rows], x[rows], self.seen)
            yield min(_BATCH, len(x) - i), made


def make_problem(recording: Recording, group_of: np.ndarray, count: int) -> Problem:
    """Return the problem, in which the leaves of a group share their settings.

    Args:
        recording: The recording.
        group_of: [leaves], the group of each leaf.
        count: The steps before the first.
    """
    # All problems have the same number of elements, because another number would
    # compile again.
    missing = 0 if count else max(0, ELEMENTS - recording.g.shape[1])
    leaf = np.pad(recording.leaf, (0, missing))
    group = group_of[leaf]
    num_groups = int(np.max(group_of)) + 1
    columns = np.column_stack([np.ones(len(group)), np.eye(num_groups)[group]])
    steps = _make_steps(recording, missing)
    seen = Observations(steps, leaf, group, columns, np.array(float(count)))
    scale = _measure_scale(recording, num_groups, has_state=count > 0)
    return Problem(seen, scale, _make_bounds(scale))


def _make_steps(recording: Recording, missing: int) -> Steps:
    """Return the observations of each step, with zeros for missing elements."""

    def pad(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])

    sums = recording.sums
    moved_share = np.maximum(recording.moved_share[:, recording.leaf], 1e-9)
    return Steps(
        g=pad(recording.g),
        p=pad(recording.p),
        u=pad(recording.u),
        weight=pad(recording.weight),
        global_sums=Sums(
            gg=np.square(recording.gradient_norms)[:, None],
            gp=np.sum(sums.gp, axis=1, keepdims=True),
            pp=np.sum(sums.pp, axis=1, keepdims=True),
        ),
        leaf_sums=sums,
        caution=pad((recording.u != 0) / moved_share),
        adafactor_nu=pad(recording.adafactor_nu),
    )


def _measure_scale(recording: Recording, num_groups: int, *, has_state: bool) -> Theta:
    """Return a typical change of each number."""

    def measure(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x))))

    size, moved = measure(recording.g), measure(recording.u)
    decay = np.array(size / max(measure(recording.p), 1e-30))
    num_states = recording.g.shape[1] if has_state else 0
    one = np.ones(())
    return Theta(
        logit_one_minus_alpha=one,
        log_eps=one,
        momentum=one,
        log_initial_scale=one,
        log_clip_norm=one,
        weight_decay=decay,
        decoupled_weight_decay=decay,
        decay_factor=np.ones(num_groups),
        learning_rate=np.full(len(recording.g), moved),
        learning_rate_factor=np.ones(num_groups),
        log_nu=np.ones(num_states),
        mu=np.full(num_states, moved),
        grad_mean=np.full(num_states, size),
    )


def _make_bounds(scale: Theta) -> tuple[Theta, Theta]:
    """Return the smallest and the largest value of each number."""
    far = Theta(*(np.full_like(x, np.inf) for x in scale))
    most = far._replace(
        logit_one_minus_alpha=np.array(7.0),
        log_eps=np.array(_LARGEST_LOG),
        momentum=np.array(0.9999),
        log_initial_scale=np.array(_LARGEST_LOG),
        log_clip_norm=np.array(_LARGEST_LOG),
        log_nu=np.full_like(scale.log_nu, _LARGEST_LOG),
    )
    least = Theta(*(-x for x in most))._replace(
        logit_one_minus_alpha=np.array(-30.0), momentum=np.array(-0.5)
    )
    return least, most


def _fix_all(free: Theta) -> Theta:
    return Theta(*(np.zeros_like(flags, bool) for flags in free))


def _get_state(x: Theta) -> dict[str, Array]:
    return {name: getattr(x, name) for name in ("log_nu", "mu", "grad_mean")}


def _to_arrays(candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
    """Return the flags [m, flags] and numbers [m, k] of candidates."""
    flags = np.array([c.variant for c in candidates], bool)
    return flags, np.stack([_flatten(c.x) for c in candidates])


def _flatten(x: Theta) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in x]).astype(np.float64)


def _unflatten(shapes: Shapes, flat: np.ndarray) -> Theta:
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = np.split(flat.copy(), np.cumsum(sizes)[:-1])
    return Theta(
        *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    )


def _find_steps(
    hessian: np.ndarray, gradient: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Levenberg-Marquardt steps [m, k], and the predicted gains.

    A number does not change if it is not free, or if nothing depends on it.
    """
    scale = np.sqrt(np.diagonal(hessian, axis1=1, axis2=2))
    scale = np.where(scale > 0, scale, np.inf)
    scaled = hessian / (scale[:, :, None] * scale[:, None, :])
    identity = np.eye(scale.shape[1])
    diagonal = np.where(np.isfinite(scale), damping[:, None], 1.0)
    damped = scaled + diagonal[:, None] * identity
    slope = (gradient / scale)[..., None]
    steps = -np.linalg.solve(damped, slope)
    gains = -np.swapaxes(steps, 1, 2) @ (2 * slope + scaled @ steps)
    return steps[..., 0] / scale, gains[:, 0, 0]


def _invert(hessian: np.ndarray) -> np.ndarray:
    """Return the inverse, with an infinite diagonal for undetermined numbers."""
    scale = np.sqrt(np.diagonal(hessian))
    is_seen = scale > 0
    scale = scale[is_seen]
    values, vectors = np.linalg.eigh(
        hessian[np.ix_(is_seen, is_seen)] / np.outer(scale, scale)
    )
    inverse = np.diag(np.where(is_seen, 0.0, np.inf))
    inverse[np.ix_(is_seen, is_seen)] = (
        vectors / np.maximum(values, 1e-12) @ vectors.T / np.outer(scale, scale)
    )
    return inverse


@partial(jax.jit, static_argnums=0)
def _predict_batch(
    shapes: Shapes, flags: jax.Array, x: jax.Array, seen: Observations
) -> tuple[jax.Array, Prediction]:
    """Return the costs [m] and predictions [m, …] of candidates.

    Only this function is compiled, and only once.
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    ends = list(np.cumsum(sizes)[:-1])

    def predict_one(flags: jax.Array, x: jax.Array) -> tuple[jax.Array, Prediction]:
        parts = [a.reshape(s) for a, s in zip(jnp.split(x, ends), shapes, strict=True)]
        made = predict(Variant(*flags), Theta(*parts), seen)
        return jnp.sum(jnp.square(made.residuals)), made

    return jax.vmap(predict_one)(flags, x)
