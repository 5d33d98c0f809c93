"""What is left of an array once it was encoded in a format of the state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._optimizer import random_bits, storage


def make_salt(*, seed=0, step=0, leaf=0, use: Any = "state"):
    count = jnp.int32(step)
    salts = random_bits.make_salts(np.uint32(seed), count, leaves=leaf + 1, use=use)
    return salts[leaf]


def init(x: jax.Array, dtype: str, field: Any) -> Any:
    """A leaf of the state before the first step."""
    return jnp.zeros_like(x, storage.initial_dtype(field, jnp.dtype(dtype)))


def encoded(x: Any, dtype: str, field: Any, **place: int) -> Any:
    """A leaf of the state in that format, rounded as at that step, leaf and seed."""
    x = jnp.asarray(x, jnp.float32)
    return storage.encode(x, init(x, dtype, field), field, make_salt(**place))


def decoded(x: Any, dtype: str, field: Any, **place: int) -> np.ndarray:
    """The float64 array that is decoded from it."""
    return np.asarray(storage.decode(encoded(x, dtype, field, **place)), np.float64)


def decoded_at_steps(
    x: Any, index: Any, dtype: str, field: Any, steps: int, **place: int
) -> Any:
    """What is decoded of x[index] at each of the first steps: [steps, *its shape]."""
    x = jnp.asarray(x, jnp.float32)
    old = init(x, dtype, field)

    def at(step):
        new = storage.encode(x, old, field, make_salt(step=step, **place))
        return storage.decode(new)[index]

    each: Callable[[Any], Any] = jax.jit(jax.vmap(at))
    return np.asarray(each(jnp.arange(steps)), np.float64)
