"""The three optimizers whose state_dicts look like those of PyTorch.

PyTorch's own, timm's RMSpropTF and Stable-Baselines3's RMSpropTFLike write the same
buffers. If one were taken for another, the run would silently resume with the wrong
rule. So the optimizer is recognized:

    timm                 its groups have 'decoupled_decay' and 'lr_in_momentum'
    PyTorch              its groups have 'foreach' and others, unless PyTorch is old
    Stable-Baselines3    neither. But its ν is initialized to 1, so after t steps it is
                         at least α^t; PyTorch's is initialized to 0, and may be less
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import optax

from rmsprop_jax import dialects
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.checkpoints._convert.arrays import (
    Value,
    to_float,
    to_numpy,
    to_real_numbers,
)
from rmsprop_jax.checkpoints._convert.run import Group, Moment, Settings

# All keys of the frameworks are defined here. In a parameter's state:
STEP = "step"
MOMENT_KEYS: dict[Moment, str] = {
    "nu": "square_avg",
    "mu": "momentum_buffer",
    "grad_mean": "grad_avg",
}
# In a group, in every state_dict of an RMSProp:
REQUIRED_SETTINGS = ("lr", "alpha", "eps", "weight_decay")
NUMBERS = (*REQUIRED_SETTINGS, "momentum")
# In a group, whatever their values: only in timm's, and only in PyTorch's.
TIMM_SETTINGS = {"decoupled_decay", "lr_in_momentum"}
TORCH_SETTINGS = {"foreach", "maximize", "capturable", "differentiable"}
# In a group, if true, only of other optimizers, which look the same otherwise:
FOREIGN_SETTINGS = {"nesterov", "decoupled_weight_decay", "caution"}
# What a scheduler puts into a group, by the setting that it changes:
SCHEDULER_TRACES = {"lr": "initial_lr", "momentum": "max_momentum"}

Buffers: TypeAlias = Mapping[str, Value]


class OptimizerSpec(NamedTuple):
    """An optimizer whose state_dict looks like PyTorch's.

    Attributes:
        optimizer: Its name, for errors.
        framework: As in the names of the functions: from_torch, to_torch.
        dialect: Its rule.
        initial_nu: What ν is initialized to.
        extra_settings: From a group to the arguments that only this dialect has.
    """

    optimizer: str
    framework: str
    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    initial_nu: float
    extra_settings: Callable[[Settings, str], Settings]

    def make_group(self, settings: Settings, what: str) -> Group:
        """Return the settings of a group as arguments of the dialect.

        Args:
            settings: The group.
            what: What errors call it, such as "group 0 of state_dict".

        Raises:
            ValueError: If a number is invalid.
        """
        lr, *numbers = read_numbers(settings, NUMBERS, what)
        arguments = {
            **dict(zip(NUMBERS[1:], numbers, strict=True)),
            "centered": read_flag(settings, "centered", what),
            **self.extra_settings(settings, what),
        }
        return Group(self.dialect, lr, arguments)


def _read_torch_settings(settings: Settings, what: str) -> Settings:
    return {"maximize": read_flag(settings, "maximize", what)}


def _read_timm_settings(settings: Settings, what: str) -> Settings:
    """Leave out settings without effect, which timm accepts and the dialect refuses."""
    is_decoupled = read_flag(settings, "decoupled_decay", what)
    is_corrected = is_decoupled and read_flag(settings, "corrected_weight_decay", what)
    (momentum,) = read_numbers(settings, ["momentum"], what)
    max_lr = None
    if is_corrected:
        # Before timm had the snapshot, only its schedulers stored this learning rate.
        keys = [key for key in ("max_lr_snapshot", "initial_lr") if key in settings]
        if not keys:
            raise ValueError(
                f"{what} has 'corrected_weight_decay', so it must have "
                "'max_lr_snapshot', the learning rate that the optimizer was made "
                "with, but an old timm left it out. Put it into the group."
            )
        (max_lr,) = read_numbers(settings, keys[:1], what)
    return {
        "decoupled_decay": is_decoupled,
        "corrected_weight_decay": is_corrected,
        "max_lr": max_lr,
        "lr_in_momentum": read_flag(settings, "lr_in_momentum", what, default=True),
        "caution": momentum > 0 and read_flag(settings, "caution", what),
    }


TORCH = OptimizerSpec(
    "torch.optim.RMSprop", "torch", rmsprop, 0.0, _read_torch_settings
)
TIMM = OptimizerSpec(
    "timm.optim.RMSpropTF", "timm", dialects.timm, 1.0, _read_timm_settings
)
STABLE_BASELINES3 = OptimizerSpec(
    "Stable-Baselines3's RMSpropTFLike",
    "stable_baselines3",
    dialects.stable_baselines3,
    1.0,
    lambda settings, what: {},
)


def identify_optimizer(
    what: str,
    groups: list[Settings],
    state: Mapping[Any, Buffers],
    wanted: OptimizerSpec,
) -> OptimizerSpec:
    """Return which optimizer made a state_dict.

    Stable-Baselines3 accepts PyTorch's as well, which is the default of its A2C.

    Raises:
        ValueError: If it is not the wanted optimizer.
    """
    for g, settings in enumerate(groups):
        _check_is_rmsprop(what, g, settings, wanted)
    found = _recognize(groups, state)
    also = [TORCH, None] if wanted == STABLE_BASELINES3 else []
    if found in [wanted, *also]:
        return found or wanted
    to = "to" if what == "like" else "from"
    if found is None and wanted == TORCH:
        raise ValueError(
            f"{what} must be of torch.optim.RMSprop, but it may be of "
            "Stable-Baselines3's RMSpropTFLike, which keeps the same buffers with "
            f"another rule: use {to}_stable_baselines3. If an old torch made it, put "
            "'foreach': None into its groups, as newer versions do (read(path) reads a "
            "file)."
        )
    found = found or STABLE_BASELINES3
    raise ValueError(
        f"{what} must be of {wanted.optimizer}, but it is of {found.optimizer}, which "
        f"has another rule: use {to}_{found.framework}."
    )


def _recognize(
    groups: list[Settings], state: Mapping[Any, Buffers]
) -> OptimizerSpec | None:
    """Return the optimizer, or None if it may be PyTorch's or Stable-Baselines3's."""
    keys = {key for settings in groups for key in settings}
    if keys & TIMM_SETTINGS:
        return TIMM
    nu_key = MOMENT_KEYS["nu"]
    stepped = {i: x for i, x in state.items() if {nu_key, STEP} <= set(x)}
    if keys & TORCH_SETTINGS or not stepped:
        return TORCH
    alphas = {i: to_float(s["alpha"]) for s in groups for i in s["params"]}
    # The smallest come first, because reading stops at the first one that decides.
    by_size = sorted(stepped.items(), key=lambda x: np.prod(np.shape(x[1][nu_key])))
    for i, buffers in by_size:
        smallest = alphas[i] ** to_float(buffers[STEP])
        # Rounding changes α^t by less than a thousandth.
        if (np.real(to_numpy(buffers[nu_key])) < 0.999 * smallest).any():
            return TORCH
    return None


def _check_is_rmsprop(
    what: str, g: int, settings: Settings, wanted: OptimizerSpec
) -> None:
    missing = set(REQUIRED_SETTINGS) - set(settings)
    foreign = {key for key in FOREIGN_SETTINGS if settings.get(key)}
    if missing:
        problem = f"has no {min(missing)!r}"
    elif foreign and not TIMM_SETTINGS & set(settings):
        problem = f"has {min(foreign)!r}, which belongs to another rule"
    else:
        return
    raise ValueError(
        f"{what} must be of {wanted.optimizer}, but its group {g} {problem}."
    )


def read_numbers(settings: Settings, keys: Sequence[str], what: str) -> list[float]:
    """Return settings that must be finite and not negative; 0 if they are absent.

    Raises:
        ValueError: If one is invalid. It names the key and the group.
    """
    numbers = to_real_numbers([settings.get(key, 0) for key in keys])
    for key, number in zip(keys, numbers, strict=True):
        largest = 1.0 if key == "alpha" else sys.float_info.max
        if not 0 <= number <= largest:
            limit = ", at most 1" if key == "alpha" else ""
            raise ValueError(
                f"{key!r} in {what} must be a finite number, not negative{limit}, but "
                f"it was {settings.get(key)!r}."
            )
    return numbers


def read_flag(
    settings: Settings, key: str, what: str, *, default: bool = False
) -> bool:
    """Return a setting that must be true or false.

    Raises:
        ValueError: If it is not. It names the key and the group.
    """
    value = settings.get(key, default)
    if not isinstance(value, bool | np.bool_ | int | None):
        raise ValueError(
            f"{key!r} in {what} must be True or False, but it was {value!r}."
        )
    return bool(value)
