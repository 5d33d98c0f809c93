"""Adafactor's second moment, which depends on whole matrices.

Shazeer and Stern, *Adafactor*, arXiv:1804.04235, 2018, algorithms 4 and 5: a matrix's
second moment is the product of its means over rows and over columns, and the decay rate
at step t is 1 − t^(−0.8). Everything else that it does multiplies the update of a leaf
by a number, which a learning rate for each leaf absorbs.
"""

from __future__ import annotations

import numpy as np

# optax factors matrices of this size and above; PyTorch and Transformers factor all.
LEAST_SIZES = (128, 2)


def compute_moments(
    g: np.ndarray, shape: tuple[int, ...], chosen: np.ndarray
) -> np.ndarray:
    """Return the second moment of some elements of a leaf, [T, 2, n].

    Args:
        g: [T, size], the leaf's gradients.
        shape: The leaf's shape.
        chosen: [n], the elements.
    """
    both = [_compute_moments(g, shape, chosen, least) for least in LEAST_SIZES]
    return np.stack(both, axis=1)


def _compute_moments(
    g: np.ndarray, shape: tuple[int, ...], chosen: np.ndarray, least_size: int
) -> np.ndarray:
    axes = np.argsort(shape)[-2:]
    if len(axes) < 2 or shape[axes[0]] < least_size:
        return _average(np.square(g[:, chosen], dtype=np.float64))
    square = np.square(g, dtype=np.float64).reshape(len(g), *shape)
    second, largest = (int(axis) + 1 for axis in axes)
    rows = _average(np.mean(square, axis=largest, keepdims=True))
    columns = _average(np.mean(square, axis=second, keepdims=True))
    whole = rows * columns / np.mean(rows, axis=second, keepdims=True)
    return whole.reshape(len(g), -1)[:, chosen]


def _average(square: np.ndarray) -> np.ndarray:
    """Return the moving averages of squares [T, …]."""
    moments = np.empty_like(square)
    moment = np.zeros_like(square[0])
    for t, now in enumerate(square):
        moment = moment + (t + 1) ** -0.8 * (now + 1e-30 - moment)
        moments[t] = moment
    return moments
