"""The options of a rule, validated once; errors name them as the user wrote them."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._optimizer import storage
from rmsprop_jax._optimizer.rule import Number, Rule

# A pytree of booleans like the parameters, a prefix of one, or a function to one.
Mask: TypeAlias = optax.Params | Callable[[optax.Params], optax.Params]
Seed: TypeAlias = ArrayLike  # an integer of 32 bits

T = TypeVar("T")

# None is 0. A default of 0 would become an array under `optax.inject_hyperparams`, and
# so allocate a buffer or need params.
_MAY_BE_NONE = ("momentum", "weight_decay")
# The smallest ε with which g/d stays below 2¹⁰⁰ for every g up to 2⁶².
_SMALLEST_SAFE_EPS = 1e-11


class Options(NamedTuple):
    """What the user gave to `rmsprop` or to a dialect, not validated yet."""

    learning_rate: optax.ScalarOrSchedule = 0.01
    alpha: optax.ScalarOrSchedule = 0.99
    eps: optax.ScalarOrSchedule = 1e-8
    weight_decay: optax.ScalarOrSchedule | None = None
    momentum: optax.ScalarOrSchedule | None = None
    centered: bool = False
    maximize: bool = False
    nesterov: bool = False
    eps_in_sqrt: bool = False
    initial_scale: ArrayLike = 0.0
    bias_correction: bool = False
    decoupled_weight_decay: bool = False
    weight_decay_mask: Mask | None = None
    state_dtype: DTypeLike = "float32"
    seed: Seed = 0
    # Only dialects set the following.
    learning_rate_in_momentum: bool = False
    has_learning_rate: bool = True
    cautious: bool = False
    names: Mapping[str, str] = {}  # what the user calls an option, if not this


class Hyperparams(NamedTuple):
    """The hyperparameters that may change from step to step."""

    learning_rate: Number | optax.Schedule
    alpha: Number | optax.Schedule
    eps: Number | optax.Schedule
    weight_decay: Number | optax.Schedule
    momentum: Number | optax.Schedule


class Config(NamedTuple):
    """Validated options."""

    rule: Rule
    hyperparams: Hyperparams
    initial_scale: Number
    weight_decay_mask: Mask | None
    state_dtype: np.dtype[np.generic]
    seed: np.uint32 | jax.Array
    names: Mapping[str, str]

    def name(self, option: str) -> str:
        """Return what the user calls an option."""
        return self.names.get(option, option)


def validate_options(options: Options) -> Config:
    """Return the options with every number a float, a scalar array or a schedule.

    Numbers must satisfy PyTorch's conditions: finite and not negative. The values of
    arrays are not read, because they may be traced.

    Raises:
        ValueError: If a number is out of range, or an array has the wrong shape or
            dtype.
        TypeError: If an option is of the wrong type.
    """

    def name(option: str) -> str:
        return options.names.get(option, option)

    def flag(option: str) -> bool:
        return validate_flag(name(option), getattr(options, option))

    def number_or_schedule(option: str) -> Number | optax.Schedule:
        value: Number | optax.Schedule | None = getattr(options, option)
        if callable(value) and is_schedule(value):
            return value
        if value is None and option in _MAY_BE_NONE:
            return 0.0
        return validate_number(name(option), value)

    hyperparams = Hyperparams(
        learning_rate=number_or_schedule("learning_rate"),
        alpha=number_or_schedule("alpha"),
        eps=number_or_schedule("eps"),
        weight_decay=number_or_schedule("weight_decay"),
        momentum=number_or_schedule("momentum"),
    )
    if isinstance(hyperparams.alpha, float) and hyperparams.alpha > 1:
        raise ValueError(
            f"{name('alpha')} must be at most 1, because it is the share of the second "
            f"moment that is kept, but it was {hyperparams.alpha}."
        )
    rule = Rule(
        has_learning_rate=options.has_learning_rate,
        learning_rate_in_momentum=flag("learning_rate_in_momentum"),
        has_momentum=not is_static_zero(hyperparams.momentum),
        nesterov=flag("nesterov"),
        centered=flag("centered"),
        bias_correction=flag("bias_correction"),
        maximize=flag("maximize"),
        has_weight_decay=not is_static_zero(hyperparams.weight_decay),
        decoupled_weight_decay=flag("decoupled_weight_decay"),
        eps_in_sqrt=flag("eps_in_sqrt"),
        has_eps=_is_safe_eps(hyperparams.eps, in_sqrt=options.eps_in_sqrt),
        cautious=flag("cautious"),
    )
    config = Config(
        rule=rule,
        hyperparams=hyperparams,
        initial_scale=validate_number(name("initial_scale"), options.initial_scale),
        weight_decay_mask=options.weight_decay_mask,
        state_dtype=_validate_state_dtype(options.state_dtype),
        seed=validate_seed(options.seed),
        names=options.names,
    )
    if rule.bias_correction:
        _validate_bias_correction(config)
    return config


def _validate_bias_correction(config: Config) -> None:
    flag, alpha = config.name("bias_correction"), config.hyperparams.alpha
    if callable(alpha):
        raise TypeError(
            f"{config.name('alpha')} can't be a schedule with {flag}, whose formula "
            f"needs the same value at every step, but it was {alpha}. Give a number, "
            f"or leave {flag} out."
        )
    if isinstance(alpha, float) and alpha >= 1:
        raise ValueError(
            f"{config.name('alpha')} must be less than 1 with {flag}, but it was "
            f"{alpha}."
        )
    scale = config.initial_scale
    if isinstance(scale, float) and not is_static_zero(scale):
        raise ValueError(
            f"{config.name('initial_scale')} must be 0 with {flag}, which removes what "
            f"the second moment was initialized to, but it was {scale}."
        )


def is_static_zero(value: object) -> bool:
    """Whether it is a Python zero: a traced number or a schedule has no value yet."""
    return isinstance(value, float) and value == 0.0


def is_schedule(value: object) -> bool:
    """Whether it is a function, and not a class."""
    return callable(value) and not isinstance(value, type)


def to_python_number(value: T) -> T | float:
    """Return a NumPy number as a Python number, and anything else as it is."""
    return value.item() if isinstance(value, np.number) else value


def validate_number(name: str, value: object) -> Number:
    """Return a finite, non-negative Python float, or a real scalar array unread."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        number = math.nan
        if not isinstance(value, np.complexfloating):
            with contextlib.suppress(OverflowError):  # of an integer like 10**400
                number = float(value)
        if not 0 <= number < math.inf:
            raise ValueError(
                f"{name} must be a finite number, not negative, but it was {value}."
            )
        return number
    if is_schedule(value):
        raise TypeError(
            f"{name} must be a number or a scalar array, but it was the function "
            f"{value!r}. It has one value for the whole run, so it can't be a schedule."
        )
    if not isinstance(value, jax.Array | np.ndarray):
        hint = ""
        if hasattr(value, "learning_rate") and hasattr(value, "momentum"):
            hint = (
                " It is a pair: give its learning_rate, and its momentum as momentum."
            )
        raise TypeError(
            f"{name} must be a number or a scalar array (or a schedule, unless it is "
            f"fixed for the whole run), but it was {reprlib.repr(value)}.{hint}"
        )
    if value.size != 1 or not jnp.isrealobj(value):
        raise ValueError(
            f"{name} must be a number or a real scalar array, but it was an array of "
            f"shape {value.shape} and dtype {value.dtype}. For a value per model, map "
            "jax.vmap over the whole optimizer."
        )
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.asarray(value.reshape(()), None if floating else jnp.result_type(float))


def validate_flag(name: str, value: object) -> bool:
    """Return a Python boolean; raise if it is anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{name} must be True or False, but it was {value!r}. It decides what is "
            "compiled, so it can't be an array."
        )
    return bool(value)


def validate_seed(value: object) -> np.uint32 | jax.Array:
    """Return a seed of 32 bits; the value of an array is not read."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    is_array = isinstance(value, jax.Array)
    if is_array and value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.uint32)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(
            f"seed must be an integer or a scalar array of one, but it was {value!r}."
        )
    if not 0 <= value < 2**32:
        raise ValueError(f"seed must be from 0 to 4294967295, but it was {value}.")
    return np.uint32(value)


def _is_safe_eps(eps: object, *, in_sqrt: bool) -> bool:
    if not isinstance(eps, float):
        return False
    return (math.sqrt(eps) if in_sqrt else eps) >= _SMALLEST_SAFE_EPS


def _validate_state_dtype(value: DTypeLike | None) -> np.dtype[np.generic]:
    names = [name for form in storage.FORMATS for name in form.state_dtypes]
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype == jnp.float16:
        raise ValueError(
            "state_dtype can't be 'float16': the second moment is a square, and "
            "float16 holds only squares of gradients between 2e-4 and 256. 'bfloat16' "
            "has as many bits and the range of float32."
        )
    if dtype is None or dtype.name not in names:
        *others, last = map(repr, names)
        raise ValueError(
            f"state_dtype must be {', '.join(others)} or {last}, but it was {value!r}."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            "state_dtype can't be 'float64' while JAX has no float64: set "
            "jax_enable_x64, or leave it at 'float32'."
        )
    return dtype
