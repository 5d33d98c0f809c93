"""Convert the variance ν of a centered state to E[g²] = ν + m², and back.

The conversion is in float64, of the real and the imaginary part by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rmsprop_jax.checkpoints._convert.arrays import NumpyArray

_BLOCK = 2**13  # elements, whose float64 fits the cache and needs no new pages


def to_variance(mean_square: NumpyArray, mean: NumpyArray) -> NumpyArray:
    """Return ν = E[g²] − m², in the dtype of E[g²]."""
    # Rounding may have left E[g²] below m², for which torch itself gives NaN.
    return _map_parts(lambda v, m: np.maximum(v - m * m, 0), mean_square, mean)


def to_mean_square(variance: NumpyArray, mean: NumpyArray) -> NumpyArray:
    """Return E[g²] = ν + m², in the dtype of ν."""
    return _map_parts(lambda v, m: v + m * m, variance, mean)


def _map_parts(
    formula: Callable[[NumpyArray, NumpyArray], NumpyArray],
    x: NumpyArray,
    y: NumpyArray,
) -> NumpyArray:
    if np.iscomplexobj(x):
        both = np.empty_like(x)
        both.real = _map_parts(formula, np.real(x), np.real(y))
        both.imag = _map_parts(formula, np.imag(x), np.imag(y))
        return both
    # In the order of the memory, in which transposed arrays are not copied.
    order = "F" if x.flags.f_contiguous and y.flags.f_contiguous else "C"
    made: NumpyArray = np.empty(x.shape, x.dtype, order)
    flat, of_x, of_y = (array.reshape(-1, order=order) for array in (made, x, y))
    # In float64 all at once would take several times the memory.
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        flat[block] = formula(of_x[block].astype(float), of_y[block].astype(float))
    return made
