"""Convert the variance ν of a centered state to E[g²] = ν + m², and back.

The conversion is in float64, of the real and the imaginary part by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rmsprop_jax.checkpoints._convert.arrays import NumpyArray

Float64Array = npt.NDArray[np.float64]

_BLOCK = 2**17  # elements, whose float64 fits the cache


def to_variance(mean_square: NumpyArray, mean: NumpyArray) -> NumpyArray:
    """Return ν = E[g²] − m², in the dtype of E[g²]."""

    def subtract_square(v: Float64Array, m: Float64Array) -> None:
        np.subtract(v, np.multiply(m, m, out=m), out=v)
        # Rounding may have left E[g²] below m², for which torch itself gives NaN.
        np.maximum(v, 0, out=v)

    return _map_parts(subtract_square, mean_square, mean)


def to_mean_square(variance: NumpyArray, mean: NumpyArray) -> NumpyArray:
    """Return E[g²] = ν + m², in the dtype of ν."""

    def add_square(v: Float64Array, m: Float64Array) -> None:
        np.add(v, np.multiply(m, m, out=m), out=v)

    return _map_parts(add_square, variance, mean)


def _map_parts(
    change: Callable[[Float64Array, Float64Array], None],
    x: NumpyArray,
    y: NumpyArray,
) -> NumpyArray:
    """Return x in its own dtype, as the function changes it in float64 in place."""
    if np.iscomplexobj(x):
        both = np.empty_like(x)
        both.real = _map_parts(change, np.real(x), np.real(y))
        both.imag = _map_parts(change, np.imag(x), np.imag(y))
        return both
    # In the order of the memory, in which transposed arrays are not copied.
    order = "F" if x.flags.f_contiguous and y.flags.f_contiguous else "C"
    made: NumpyArray = np.empty(x.shape, x.dtype, order)
    flat, of_x, of_y = (array.reshape(-1, order=order) for array in (made, x, y))
    # In float64 all at once would take several times the memory, and new memory for
    # each block would take longer than the arithmetic.
    wide_x, wide_y = np.empty((2, min(_BLOCK, flat.size)))
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        size = flat[block].size
        wide_x[:size], wide_y[:size] = of_x[block], of_y[block]
        change(wide_x[:size], wide_y[:size])
        flat[block] = wide_x[:size]
    return made
