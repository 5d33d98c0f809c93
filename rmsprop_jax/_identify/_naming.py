"""Names for a rule: which dialects it is, and in which arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax._optimizer.options import Config, Options
from rmsprop_jax._optimizer.transform import get_config

# Those that a port most often comes from; with as many arguments they are named first.
_FIRST = ("torch", "keras", "tensorflow", "timm", "optax")

Arguments = dict[str, Any]


def calls(rule: Options, explains: Callable[[Options], bool]) -> dict[str, Arguments]:
    """The dialects that are a rule, with its numbers as arguments that aren't defaults.

    Args:
        rule: An ε of 0 stands for one that is not seen.
        explains: Whether a rule, with another ε, explains the recording as well.
    """
    found = {}
    for name in dialects.__all__:
        for given in _arguments(name, rule):
            try:
                made = options_of(getattr(dialects, name)(0.01, **given))
            except ValueError:  # not a call that this dialect has
                continue
            if _same(made, rule) and (_same_eps(made, rule) or explains(made)):
                found[name] = given
                break

    def nearness(name: str) -> tuple[int, int]:
        first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
        return len(found[name]), first

    return {name: found[name] for name in sorted(found, key=nearness)}


def options_of(transformation: Any) -> Options:
    """The options of one of our transformations."""
    config: Config = get_config(transformation)
    rule = config.rule._asdict()
    own = {name: rule[name] for name in rule if name in Options._fields}
    return Options()._replace(
        **own,
        **config.hyperparams._asdict(),
        initial_scale=config.initial_scale,
        names=config.names,
    )


def written(name: str, arguments: Mapping[str, Any]) -> str:
    """The call of a dialect, but for the rate."""
    words = [f"{key}={text(value)}" for key, value in arguments.items()]
    return f"dialects.{name}({', '.join(words)})"


def short(value: float, error: float) -> float:
    """The number of the fewest digits that is within five errors of a value."""
    if not np.isfinite(value) or value == 0:
        return value
    reach = min(max(5 * error, 1e-9 * abs(value)), 0.2 * abs(value))
    for digits in range(17):
        rounded = float(f"{value:.{digits}e}")
        if abs(rounded - value) <= reach and rounded != 0:
            return rounded
    return value


def text(value: Any) -> str:
    """A number in few digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _arguments(name: str, rule: Options) -> list[Arguments]:
    """What a dialect can be given of a rule: with its own ε, or with the rule's."""
    parameters = list(inspect.signature(getattr(dialects, name)).parameters.values())
    names = options_of(getattr(dialects, name)(0.01)).names
    option_of = {theirs: ours for ours, theirs in names.items()}
    given: Arguments = {}
    eps = None
    for parameter in parameters[1:]:
        option = option_of.get(parameter.name, parameter.name)
        if option not in Options._fields:
            continue
        value, default = getattr(rule, option), parameter.default
        if option == "eps":
            eps = parameter.name
        if value != default and not (default is None and not value):
            given[parameter.name] = value
    if eps is None or rule.eps:
        return [given]
    return [{key: value for key, value in given.items() if key != eps}, given]


def _same(one: Options, other: Options) -> bool:
    """Whether two options are one rule, whatever ε is."""
    fields = ["centered", "maximize", "alpha", "initial_scale", "bias_correction"]
    fields += ["momentum", "weight_decay"]
    if other.momentum:
        fields += ["nesterov", "learning_rate_in_momentum"]
    if other.weight_decay:
        fields += ["decoupled_weight_decay"]
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def _same_eps(one: Options, other: Options) -> bool:
    return bool(other.eps) and (one.eps, one.eps_in_sqrt) == (
        other.eps,
        other.eps_in_sqrt,
    )
