"""Name a rule: find the calls that make it, with their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax._identify.model import Variant
from rmsprop_jax._identify.thresholds import SIGMAS
from rmsprop_jax._optimizer.options import Config, Options, validate_options
from rmsprop_jax._optimizer.transform import get_config

# A number, a flag, or a schedule of the momentum.
Arguments: TypeAlias = dict[str, object]
# Whether a call is a system's, its distance from the defaults of what many use, and its
# place among these.
Rank: TypeAlias = tuple[bool, float, int]

# Most runs come from these frameworks. The call of another framework comes first only
# if it needs two arguments fewer.
_WIDESPREAD = ("torch", "keras", "tensorflow", "timm", "optax")
# The modules with dialects that are a framework's rule with a system's settings. They
# come after the frameworks.
_SYSTEMS = ("_papers", "_reinforcement_learning")

_FLAGS = ("centered", "maximize", "bias_correction", "cautious")
_MOMENTUM_FLAGS = ("nesterov", "learning_rate_in_momentum")
_NUMBERS = ("alpha", "eps", "momentum", "weight_decay")

# Other optimizers: optax's function, and for its arguments our names and its defaults.
_OTHERS: dict[str, tuple[str, dict[str, tuple[str, float]]]] = {
    "Adam": (
        "optax.adam",
        {"b1": ("momentum", 0.9), "b2": ("alpha", 0.999), "eps": ("eps", 1e-8)},
    ),
    "AdamW": (
        "optax.adamw",
        {
            "b1": ("momentum", 0.9),
            "b2": ("alpha", 0.999),
            "eps": ("eps", 1e-8),
            "weight_decay": ("weight_decay", 1e-4),
        },
    ),
    "LAMB": (
        "optax.lamb",
        {
            "b1": ("momentum", 0.9),
            "b2": ("alpha", 0.999),
            "eps": ("eps", 1e-6),
            "weight_decay": ("weight_decay", 0.0),
        },
    ),
    "Adafactor": ("optax.adafactor", {}),
    "Adagrad": (
        "optax.adagrad",
        {"initial_accumulator_value": ("initial_scale", 0.1), "eps": ("eps", 1e-7)},
    ),
    "Lion": (
        "optax.lion",
        {
            "b1": ("momentum", 0.9),
            "b2": ("alpha", 0.99),
            "weight_decay": ("weight_decay", 1e-3),
        },
    ),
    "SGD": ("optax.sgd", {"momentum": ("momentum", 0.0)}),
}


def list_calls(
    rule: Options, stderr: Mapping[str, float]
) -> Iterator[tuple[str, Arguments, Config]]:
    """Yield the calls of dialects that may make a rule, each with its configuration.

    For each dialect, the first call has as many of its defaults as the standard errors
    allow, and the last one has all numbers of the rule.

    Args:
        rule: The rule; its ε is 0 if ε can't be determined.
        stderr: The standard errors of its numbers.
    """
    try:
        ours = validate_options(rule)
    except ValueError:  # no optimizer can have these numbers
        return
    for name in dialects.__all__:
        for arguments in _list_arguments(name, rule, stderr):
            try:
                config = get_config(getattr(dialects, name)(0.01, **arguments))
            except ValueError:  # the dialect has no such call
                continue
            if _is_same_rule(config, ours):
                yield f"dialects.{name}", arguments, config


def use_defaults(
    optimizer: str,
    numbers: Mapping[str, float],
    fitted: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    """Return numbers with the defaults of another optimizer where errors allow them.

    Args:
        optimizer: Its name.
        numbers: Its numbers in few digits.
        fitted: The fitted values, with their standard errors.
    """
    _, parameters = _OTHERS.get(optimizer, ("", {}))
    near = {
        name: default
        for name, default in parameters.values()
        if name in fitted
        and abs(fitted[name][0] - default)
        <= SIGMAS * fitted[name][1] + 1e-6 * abs(default)
    }
    return {**numbers, **near}


def name_other(
    optimizer: str, v: Variant, numbers: Mapping[str, float]
) -> dict[str, Arguments]:
    """Return the call of another optimizer, with arguments that aren't its defaults.

    Args:
        optimizer: Its name.
        v: Its equations.
        numbers: Its numbers in few digits.
    """
    if optimizer not in _OTHERS:
        return {}
    function, parameters = _OTHERS[optimizer]
    expressed = {name for name, _ in parameters.values()} | {"eps", "clip"}
    if any(numbers[name] and name not in expressed for name in numbers):
        return {}
    arguments: Arguments = {
        argument: numbers[name]
        for argument, (name, default) in parameters.items()
        if name in numbers and numbers[name] != default
    }
    if v.nesterov:
        arguments["nesterov"] = True
    return {function: arguments}


def rank_call(name: str, arguments: Arguments) -> Rank:
    """Return a sort key: the likelier that someone wrote a call, the smaller."""
    library, _, function = name.rpartition(".")
    if library != "dialects":
        return False, float(len(arguments)), 0 if library else len(_WIDESPREAD)
    module = getattr(dialects, function).__module__.rpartition(".")[2]
    is_widespread = function in _WIDESPREAD
    place = _WIDESPREAD.index(function) if is_widespread else len(_WIDESPREAD)
    distance = len(arguments) + (0 if is_widespread else 1.5)
    return module in _SYSTEMS, distance, place


def write_call(
    name: str, learning_rate: str, arguments: Arguments, momentum: str = "…"
) -> str:
    """Return a call to paste; `momentum` is written for a schedule of the momentum."""
    words = [
        f"{key}={momentum if callable(value) else write_value(value)}"
        for key, value in arguments.items()
    ]
    return f"{name}({', '.join([learning_rate, *words])})"


def write_value(value: object) -> str:
    """Return a number with all its digits, and anything else as text."""
    return f"{value:.12g}" if isinstance(value, float) else f"{value}"


def shorten(value: float, stderr: float) -> float:
    """Return the number of the fewest digits within five standard errors of a value."""
    if not np.isfinite(value) or value == 0:
        return value
    reach = min(max(SIGMAS * stderr, 1e-9 * abs(value)), 0.2 * abs(value))
    for digits in range(17):
        rounded = float(f"{value:.{digits}e}")
        if abs(rounded - value) <= reach and rounded != 0:
            return rounded
    return value


def _list_arguments(
    name: str, rule: Options, stderr: Mapping[str, float]
) -> list[Arguments]:
    """Return a dialect's possible arguments for a rule, with most defaults first."""
    dialect = getattr(dialects, name)
    theirs_of = get_config(dialect(0.01)).names
    option_of = {theirs: ours for ours, theirs in theirs_of.items()}
    needed: Arguments = {}
    eps: list[str] = []
    within_errors: list[str] = []
    for parameter in list(inspect.signature(dialect).parameters.values())[1:]:
        option = option_of.get(parameter.name, parameter.name)
        if option not in Options._fields:
            continue
        value, default = getattr(rule, option), parameter.default
        if value == default or (default is None and not value):
            continue
        if option in _MOMENTUM_FLAGS and not rule.momentum:
            continue
        needed[parameter.name] = value
        if option not in _NUMBERS or not isinstance(default, float) or not default:
            continue
        if abs(default - value) <= SIGMAS * stderr.get(option, 0.0):
            within_errors.append(parameter.name)
            eps += [parameter.name] if option == "eps" else []
    # If ε can't be determined, neither can its place.
    place = [] if rule.eps else [theirs_of.get("eps_in_sqrt", "eps_in_sqrt")]
    listed: list[Arguments] = []
    for left_out in ([*within_errors, *place], within_errors, eps, []):
        arguments = {key: x for key, x in needed.items() if key not in left_out}
        if arguments not in listed:
            listed.append(arguments)
    return listed


def _is_same_rule(one: Config, other: Config) -> bool:
    """Whether two configurations are the same rule, apart from α and ε."""
    flags = [*_FLAGS]
    if other.rule.has_momentum:
        flags += _MOMENTUM_FLAGS
    if other.rule.has_weight_decay:
        flags += ["decoupled_weight_decay"]
    if other.hyperparams.eps != 0.0:
        flags += ["eps_in_sqrt"]
    return bool(
        all(getattr(one.rule, flag) == getattr(other.rule, flag) for flag in flags)
        and one.initial_scale == other.initial_scale
        and one.hyperparams.momentum == other.hyperparams.momentum
        and one.hyperparams.weight_decay == other.hyperparams.weight_decay
    )
