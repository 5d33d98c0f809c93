"""Causes for which nothing may explain a recording, as far as they can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rmsprop_jax._identify.match import write_share
from rmsprop_jax._identify.search import Found
from rmsprop_jax._identify.thresholds import ODD_FIRST_STEP, UNRELATED


def list_causes(found: Found, count: int, without_rate: Found | None) -> Iterator[str]:
    """Yield causes for which nothing explains a recording, in sentences.

    Args:
        found: What the search found.
        count: The steps before the first, as the user gave them.
        without_rate: The same without the user's learning rate, if there was one.
    """
    residual = found.fits[0].residual
    if without_rate is not None:
        left = without_rate.fits[0].residual
        if left < 0.5 * residual:
            yield (
                "The learning_rate given may not be the run's: without it, the nearest "
                f"rule leaves {write_share(left)} of the updates unexplained."
            )
            residual = left
    if count == 0 and residual < UNRELATED and not may_be_first_step(found):
        yield (
            "The recording may not start at the beginning of the run: pass count=, the "
            "number of steps before it."
        )


def may_be_first_step(found: Found) -> bool:
    """Whether the first step may be the first of a run.

    There, the update of an element depends only on its gradient, and increases with it.
    """
    recording = found.recording
    if recording.kept[0] > 0:  # a step at which nothing moved may have left a state
        return True
    g, p, u, weight = (
        x[0] for x in (recording.g, recording.p, recording.u, recording.weight)
    )
    group = found.group_of[recording.leaf]
    coupled, decoupled = np.geomspace(1e-5, 1.0, 26), np.geomspace(1e-6, 0.1, 26)
    trials = [
        (g, u),
        *((g + decay * p, u) for decay in coupled),
        *((g, u + decay * p) for decay in decoupled),
    ]
    left = min(_measure_disorder(*trial, weight, group) for trial in trials)
    return left <= ODD_FIRST_STEP


def _measure_disorder(
    g: np.ndarray, u: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> float:
    """Return the share of updates that no increasing function of |g| explains."""
    is_seen = g != 0
    towards = np.sign(g) * u
    if np.sum(np.square(weight) * towards) < 0:
        towards = -towards
    residuals = np.zeros_like(u)
    for i in np.unique(group):
        some = np.flatnonzero(is_seen & (group == i))
        some = some[np.argsort(np.abs(g[some]), kind="stable")]
        fitted = _fit_increasing(towards[some], np.square(weight[some]))
        residuals[some] = towards[some] - np.maximum(fitted, 0.0)
    total = np.sum(np.square(weight * u)[is_seen])
    left = np.sum(np.square(weight * residuals))
    return float(np.sqrt(left / total)) if total > 0 else 0.0


def _fit_increasing(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the increasing values nearest to y: those out of order share a mean."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for mean, weight in zip(y.tolist(), weights.tolist(), strict=True):
        blocks.append((mean, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, w, m), (b, v, n) = blocks[-2:]
            blocks[-2:] = [((a * w + b * v) / (w + v), w + v, m + n)]
    return np.repeat([x[0] for x in blocks], [x[2] for x in blocks])
