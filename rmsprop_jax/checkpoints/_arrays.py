"""NumPy arrays of tensors, arrays and numbers, and back. torch is not imported."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt


@runtime_checkable
class Tensor(Protocol):
    """A ``torch.Tensor``: the part of it that is used here."""

    @property
    def dtype(self) -> object: ...

    def __array__(self) -> np.ndarray: ...

    def detach(self) -> Tensor: ...

    def cpu(self) -> Tensor: ...

    def resolve_conj(self) -> Tensor: ...

    def resolve_neg(self) -> Tensor: ...

    def float(self) -> Tensor: ...

    def numpy(self) -> np.ndarray: ...

    def new_tensor(self, data: npt.ArrayLike) -> Tensor: ...


def as_array(value: npt.ArrayLike | Tensor) -> np.ndarray:
    """A NumPy array, at least float32, of a tensor, an array or a number."""
    if isinstance(value, Tensor):
        value = _resolved(value).cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    array = np.asarray(value)
    narrow = "float16" in str(array.dtype)  # or bfloat16, which NumPy doesn't know
    return array.astype(np.float32) if narrow else array


def as_exact(value: Tensor | np.ndarray) -> np.ndarray:
    """A NumPy array of a tensor or an array, in its own dtype."""
    if not isinstance(value, Tensor):
        return value
    if "bfloat16" in str(value.dtype):
        return as_array(value).astype(jnp.bfloat16)
    return _resolved(value).cpu().numpy()


def as_float(value: npt.ArrayLike) -> float:
    """A Python number of a number or a tensor of one."""
    return float(as_array(value).reshape(()))


def is_complex(value: npt.ArrayLike) -> bool:
    """Whether a tensor or an array is complex."""
    return "complex" in str(getattr(value, "dtype", type(value)))


def of_kind(like: npt.ArrayLike, value: npt.ArrayLike) -> npt.ArrayLike:
    """The value as a tensor, a NumPy array or a number, as `like` is."""
    if isinstance(like, Tensor):
        return _resolved(like).new_tensor(value)
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    if isinstance(like, int | float):
        return type(like)(as_float(value))
    return np.array(value, np.asarray(like).dtype)


def _resolved(tensor: Tensor) -> Tensor:
    """Without a gradient. A lazily conjugated or negated tensor has no array."""
    return tensor.detach().resolve_conj().resolve_neg()
