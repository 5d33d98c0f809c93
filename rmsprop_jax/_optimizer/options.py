"""The options of a rule, checked once; errors name them as the user wrote them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from rmsprop_jax import _storage
from rmsprop_jax._rule import Rule

# A tree of booleans like the parameters, a prefix of one, or a function to one.
Mask = optax.Params | Callable[[optax.Params], optax.Params]
Seed = jax.typing.ArrayLike  # an integer of 32 bits
SCHEDULED = ("learning_rate", "alpha", "eps", "weight_decay", "momentum")


class Options(NamedTuple):
    """What `rmsprop` is given, and what its dialects may say beside that."""

    learning_rate: optax.ScalarOrSchedule = 0.01
    alpha: optax.ScalarOrSchedule = 0.99
    eps: optax.ScalarOrSchedule = 1e-8
    weight_decay: optax.ScalarOrSchedule = 0.0
    momentum: optax.ScalarOrSchedule = 0.0
    centered: bool = False
    maximize: bool = False
    nesterov: bool = False
    eps_in_sqrt: bool = False
    initial_scale: jax.typing.ArrayLike = 0.0
    bias_correction: bool = False
    decoupled_weight_decay: bool = False
    weight_decay_mask: Mask | None = None
    state_dtype: DTypeLike = "float32"
    seed: Seed = 0
    rate_in_momentum: bool = False
    has_rate: bool = True
    cautious: bool = False
    max_rate: jax.typing.ArrayLike | None = None  # the decay's η is then η²/max_rate
    names: Mapping[str, str] = {}  # what the user calls an option, if not as here

    @property
    def decays(self) -> bool:
        return not known_zero(self.weight_decay)

    def name(self, option: str) -> str:
        """What the user calls an option."""
        return self.names.get(option, option)

    @property
    def rule(self) -> Rule:
        """Which of the equations hold."""
        eps = self.eps if isinstance(self.eps, float) else 0.0
        return Rule(
            centered=self.centered,
            momentum=not known_zero(self.momentum),
            nesterov=self.nesterov,
            maximize=self.maximize,
            eps_in_sqrt=self.eps_in_sqrt,
            decoupled=self.decoupled_weight_decay,
            rate_in_momentum=self.rate_in_momentum,
            has_rate=self.has_rate,
            cautious=self.cautious,
            # So that g/d, with g up to 2⁶², is below 2¹⁰⁰.
            has_eps=(math.sqrt(eps) if self.eps_in_sqrt else eps) >= 1e-11,
        )


def known_zero(value: object) -> bool:
    """Whether it is a Python zero: a traced number or a schedule has no value yet."""
    return isinstance(value, float) and value == 0.0


def checked(options: Options) -> Options:
    """The options with every number a float, a scalar array or a schedule.

    Numbers are held to torch's conditions: finite and not negative. The values of
    arrays pass unread, as they may be traced.

    Raises:
        ValueError: On a number out of range, or of the wrong shape or dtype.
        TypeError: On an option of the wrong kind.
    """
    name = options.name
    new: dict[str, Any] = {
        option: flag(name(option), getattr(options, option))
        for option, default in options._field_defaults.items()
        if isinstance(default, bool)
    }
    for option in SCHEDULED:
        value = getattr(options, option)
        new[option] = value if _is_schedule(value) else number(name(option), value)
    new["initial_scale"] = number(name("initial_scale"), options.initial_scale)
    if options.max_rate is not None:
        new["max_rate"] = number(name("max_rate"), options.max_rate)
    alpha, start = new["alpha"], new["initial_scale"]
    if new["bias_correction"] and _is_schedule(alpha):
        raise TypeError(
            f"{name('alpha')} can't be a schedule with {name('bias_correction')}, "
            f"whose formula takes it to be the same at every step, but it was {alpha}. "
            "Give a number, or leave the correction out."
        )
    if new["bias_correction"] and isinstance(alpha, float) and alpha >= 1:
        raise ValueError(
            f"{name('alpha')} must be less than 1 with {name('bias_correction')}, but "
            f"it was {alpha}."
        )
    if new["bias_correction"] and isinstance(start, float) and start != 0:
        raise ValueError(
            f"{name('initial_scale')} must be 0 with {name('bias_correction')}, which "
            f"forgets what the second moment began with, but it was {start}."
        )
    new["state_dtype"] = _state_dtype(options.state_dtype)
    return options._replace(**new, seed=seed(options.seed))


def python_number(value: Any) -> Any:
    """A NumPy number as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.number) else value


def _is_schedule(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def number(name: str, value: object) -> float | jax.Array:
    """A finite Python float that is not negative, or a real scalar array unread."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        if isinstance(value, np.complexfloating) or not 0 <= value < math.inf:
            raise ValueError(
                f"{name} must be a finite number, not negative, but it was {value}."
            )
        return float(value)
    if _is_schedule(value):
        raise TypeError(
            f"{name} must be a number or a scalar array, but it was the function "
            f"{value!r}. It is one for the whole run, so it can't be a schedule."
        )
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"{name} must be a number or a scalar array, but it was {value!r}."
        )
    if value.shape != () or not jnp.isrealobj(value):
        raise ValueError(
            f"{name} must be a number or a real scalar array, but it was an array of "
            f"shape {value.shape} and dtype {value.dtype}. For a value per model, map "
            "jax.vmap over the whole optimizer."
        )
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.asarray(value, None if floating else jnp.result_type(float))


def _state_dtype(value: DTypeLike) -> DTypeLike:
    dtypes = _storage.dtypes()
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype == jnp.float16:
        raise ValueError(
            "state_dtype can't be 'float16': the second moment is a square, and of "
            "squares float16 holds only those of gradients between 2e-4 and 256. "
            "'bfloat16' has as many bits, and the range of float32."
        )
    if dtype is None or dtype.name not in dtypes:
        *others, last = map(repr, dtypes)
        raise ValueError(
            f"state_dtype must be {', '.join(others)} or {last}, but it was {value!r}."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            "state_dtype can't be 'float64' while JAX has no float64: set "
            "jax_enable_x64, or leave it at 'float32'."
        )
    return dtype


def seed(value: Any) -> np.uint32 | jax.Array:
    """A seed of 32 bits; raises on what is none. That of an array passes unread."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    is_scalar = isinstance(value, jax.Array) and value.shape == ()
    if is_scalar and jnp.issubdtype(value.dtype, jnp.integer):
        return jnp.asarray(value).astype(jnp.uint32)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(
            f"seed must be an integer or a scalar array of one, but it was {value!r}."
        )
    if not 0 <= value < 2**32:
        raise ValueError(f"seed must be from 0 to 4294967295, but it was {value}.")
    return np.uint32(value)


def flag(name: str, value: object) -> bool:
    """A Python boolean; raises on what is none."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{name} must be True or False, but it was {value!r}. It decides what is "
            "compiled, so it can't be an array."
        )
    return bool(value)
