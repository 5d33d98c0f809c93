"""The learning rates of a fit, and for how many steps each stays the same."""

from __future__ import annotations

import numpy as np

from rmsprop_jax._identify.model import Prediction
from rmsprop_jax._identify.thresholds import SIGMAS


def read_learning_rates(made: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Return the learning rates [T, groups] and their standard errors."""
    residuals = np.asarray(made.residuals)
    is_used = np.any(residuals != 0, axis=0)  # the others only fill up
    degrees = max(1, len(residuals) * (int(np.sum(is_used)) - 1))
    variance = np.sum(np.square(residuals)) / degrees
    stderr = np.sqrt(variance / np.maximum(made.precision, 1e-300))
    return np.asarray(made.learning_rate), np.asarray(stderr)


def find_pieces(rates: np.ndarray, stderr: np.ndarray) -> list[tuple[int, float]]:
    """Return for how many steps a learning rate stays the same, and what it is.

    Learning rates are the same if their standard errors allow it.

    Args:
        rates: [T], NaN where nothing moved.
        stderr: [T], infinite where a learning rate can't be seen.
    """
    pieces: list[list[float]] = []
    is_known = np.isfinite(rates) & np.isfinite(stderr)
    for rate, error in zip(rates[is_known], stderr[is_known], strict=True):
        mean = np.mean(pieces[-1]) if pieces else np.inf
        if pieces and abs(rate - mean) <= SIGMAS * error + 1e-6 * abs(mean):
            pieces[-1].append(float(rate))
        else:
            pieces.append([float(rate)])
    return [(len(piece), float(np.median(piece))) for piece in pieces]
