"""What is left of an array once a format has kept it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax import _storage


def salt(*, seed=0, step=0, leaf=0, use: Any = "state"):
    salts = _storage.salts(np.uint32(seed), jnp.int32(step), leaves=leaf + 1, use=use)
    return salts[leaf]


def stored(x: Any, dtype: str, field: str, **place: int) -> Any:
    """A leaf of the state in that format, rounded as at that step, leaf and seed."""
    x = jnp.asarray(x, jnp.float32)
    old = _storage.started(jnp.zeros_like(x), field, dtype)
    return _storage.keep(x, old, field, salt(**place))


def kept(x: Any, dtype: str, field: str, **place: int) -> np.ndarray:
    """The float64 array that is read of it."""
    return np.asarray(_storage.read(stored(x, dtype, field, **place)), np.float64)


def kept_at_steps(
    x: Any, index: Any, dtype: str, field: str, steps: int, **place: int
) -> Any:
    """What is kept of x[index] at each of the first steps: [steps, *its shape]."""
    x = jnp.asarray(x, jnp.float32)
    old = _storage.started(jnp.zeros_like(x), field, dtype)

    def at(step):
        new = _storage.keep(x, old, field, salt(step=step, **place))
        return _storage.read(new)[index]

    each: Callable[[Any], Any] = jax.jit(jax.vmap(at))
    return np.asarray(each(jnp.arange(steps)), np.float64)
