"""Least squares over the numbers of a structure, by SciPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._identify._explaining import Seen, Structure, Unknowns, explained

_FAR = 1e9  # where numbers overflow, the solver turns back


class Fit(NamedTuple):
    """A structure with the numbers that explain most.

    Attributes:
        structure: Which of the equations hold.
        x: The numbers.
        free: Which of them were fitted, booleans.
        cost: What is unexplained, squared, over the updates squared.
        error: Their standard deviations; infinite where one is not seen.
        rates: [T].
        limit: What this is, where it is a limit of RMSProp and not one.
    """

    structure: Structure
    x: Unknowns
    free: Unknowns
    cost: float
    error: Unknowns
    rates: np.ndarray
    limit: str = ""

    @property
    def residual(self) -> float:
        return float(np.sqrt(self.cost))


class Problem:
    """A recording, and how well a rule with its numbers explains it."""

    def __init__(self, seen: Seen, scale: Unknowns) -> None:
        """Keep the recording where JAX has it.

        Args:
            seen: The recording.
            scale: How much of each number is a small change, all of them positive.
        """
        self.size = float(np.sum(np.square(seen.weight * seen.u)))
        self._seen: Seen = jax.tree.map(jnp.asarray, seen)
        self._shapes = [np.shape(part) for part in scale]
        self._scale = _flat(scale)

    def cost(self, s: Structure, x: Unknowns) -> float:
        """What is unexplained, squared, over the updates squared."""
        cost = float(np.sum(np.square(self._evaluated(s, _flat(x))[1]))) / self.size
        return cost if np.isfinite(cost) else np.inf

    def costs(self, s: Structure, x: Unknowns) -> np.ndarray:
        """The same for structures [m], each with unknowns [k]: [m, k]."""
        costs = np.asarray(_costs(s, x, self._seen)) / self.size
        return np.where(np.isfinite(costs), costs, np.inf)

    def fit(self, s: Structure, start: Unknowns, free: Unknowns, most: int = 40) -> Fit:
        """The numbers that explain most, from a start, where they are free.

        Args:
            s: The structure.
            start: The numbers to begin from.
            free: Which of them may change.
            most: Evaluations of the residuals.
        """
        from scipy import optimize  # slower to import than this whole package

        flat, mask = _flat(start), _flat(free).astype(bool)
        last: dict[bytes, Any] = {}

        def at(some: np.ndarray) -> tuple[np.ndarray, ...]:
            key = some.tobytes()
            if key not in last:
                last.clear()
                flat[mask] = some
                slopes, rest, rates = self._evaluated(s, flat)
                slopes = np.clip(np.nan_to_num(slopes), -_FAR, _FAR)[:, mask]
                rest = np.clip(np.nan_to_num(rest, nan=_FAR), -_FAR, _FAR)
                last[key] = slopes, rest, rates
            return last[key]

        if mask.any():
            solve: Any = optimize.least_squares
            some = solve(
                lambda some: at(some)[1],
                flat[mask].copy(),
                lambda some: at(some)[0],
                method="lm",  # the other's SVD waits for threads, on a busy machine
                x_scale=self._scale[mask],
                ftol=1e-9,
                xtol=1e-9,
                gtol=1e-15,
                max_nfev=most,
            ).x
        else:
            some = flat[mask]
        slopes, rest, rates = at(some)
        flat[mask] = some
        total = float(np.sum(np.square(rest)))
        variance = total / max(1, rest.size - mask.sum() - len(rates))
        error = np.zeros(mask.size)
        error[mask] = np.sqrt(variance * _inverse_diagonal(slopes))
        return Fit(
            s,
            self._unknowns(flat),
            free,
            total / self.size,
            self._unknowns(error),
            rates,
        )

    def _evaluated(self, s: Structure, flat: np.ndarray) -> tuple[np.ndarray, ...]:
        """The residuals' slopes, the residuals, the rates."""
        return tuple(map(np.asarray, _evaluated(s, self._unknowns(flat), self._seen)))

    def _unknowns(self, flat: np.ndarray) -> Unknowns:
        sizes = np.cumsum([np.prod(shape, dtype=int) for shape in self._shapes])
        parts = np.split(flat.copy(), sizes[:-1])
        return Unknowns(
            *(x.reshape(shape) for x, shape in zip(parts, self._shapes, strict=True))
        )


def _flat(x: Unknowns) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in x]).astype(np.float64)


@jax.jit
def _costs(s: Structure, x: Unknowns, seen: Seen) -> jax.Array:
    def cost(s: Structure, x: Unknowns) -> jax.Array:
        made, _ = explained(s, x, seen)
        return jnp.sum(jnp.square(seen.weight * (made - seen.u)))

    return jax.vmap(jax.vmap(cost, (None, 0)))(s, x)


@jax.jit
def _evaluated(s: Structure, x: Unknowns, seen: Seen) -> Any:
    def residuals(x: Unknowns) -> Any:
        made, rates = explained(s, x, seen)
        unexplained = (seen.weight * (made - seen.u)).reshape(-1)
        return unexplained, (unexplained, rates)

    slopes, (unexplained, rates) = jax.jacfwd(residuals, has_aux=True)(x)
    by_number = [part.reshape(unexplained.size, -1) for part in slopes]
    return jnp.concatenate(by_number, axis=1), unexplained, rates


def _inverse_diagonal(slopes: np.ndarray) -> np.ndarray:
    """The diagonal of (JᵀJ)⁻¹, infinite where a number is not seen."""
    scale = np.sqrt(np.sum(np.square(slopes), axis=0))
    seen = scale > 0
    scaled = slopes[:, seen] / scale[seen]
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    inverse = np.full(len(scale), np.inf)
    inverse[seen] = np.sum(np.square(vectors) / np.maximum(values, 1e-15), axis=1)
    inverse[seen] /= np.square(scale[seen])
    return inverse
