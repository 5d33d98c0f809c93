"""Tensors, arrays and numbers, told apart without importing torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_array(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """A NumPy array, at least float32, of a tensor, an array or a number."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array = np.asarray(value)
    narrow = "float16" in str(array.dtype)  # or bfloat16, which NumPy doesn't know
    return array.astype(np.float32) if narrow else array


def number(value: Any) -> float:
    """A Python number of a number or a tensor of one."""
    return float(to_array(value).reshape(()))


def is_complex(value: Any) -> bool:
    """Whether a tensor or an array is complex."""
    return "complex" in str(value.dtype)


def of_kind(like: Any, value: Any) -> Any:
    """The value as a tensor, a NumPy array or a number, as `like` is."""
    if hasattr(like, "new_tensor"):
        # A lazily conjugated or negated tensor can make no other.
        return like.detach().resolve_conj().resolve_neg().new_tensor(value)
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    return (
        type(like)(value)
        if isinstance(like, int | float)
        else np.array(value, like.dtype)
    )


def variance(square_avg: Any, grad_avg: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """E[g²] − m², in float64, of real and imaginary parts each."""
    # Rounding may have left E[g²] below m², where torch itself makes NaN.
    return _by_parts(lambda v, m: np.maximum(v - m * m, 0), square_avg, grad_avg)


def mean_square(variance: Any, grad_mean: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """The inverse of `variance`: ν + m²."""
    return _by_parts(lambda v, m: v + m * m, variance, grad_mean)


def _by_parts(formula: Any, x: Any, y: Any) -> np.ndarray[Any, np.dtype[Any]]:
    if np.iscomplexobj(x):
        both = np.empty_like(x)
        both.real = _by_parts(formula, x.real, y.real)
        both.imag = _by_parts(formula, x.imag, y.imag)
        return both
    return np.asarray(formula(x.astype(float), y.astype(float)), x.dtype)
