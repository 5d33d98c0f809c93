"""Centered, we keep the variance ν, and all others keep E[g²] = ν + m².

The conversion is in float64, of the real and the imaginary parts each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """ν = E[g²] − m², in the dtype of E[g²]."""
    # Rounding may have left E[g²] below m². There torch itself makes NaN.
    return _by_parts(lambda v, m: np.maximum(v - m * m, 0), square, mean)


def mean_square(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """E[g²] = ν + m², in the dtype of ν."""
    return _by_parts(lambda v, m: v + m * m, variance, mean)


def _by_parts(
    formula: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
) -> np.ndarray:
    if np.iscomplexobj(x):
        both = np.empty_like(x)
        both.real = _by_parts(formula, np.real(x), np.real(y))
        both.imag = _by_parts(formula, np.imag(x), np.imag(y))
        return both
    return np.asarray(formula(x.astype(float), y.astype(float)), x.dtype)
