"""Which optimizer made a state_dict of torch's form, and its rule in our terms.

torch's own, timm's RMSpropTF and Stable-Baselines3's RMSpropTFLike write the same
buffers. Taken for each other's, a run goes on with another rule, and nothing shows it.

    timm                 its groups have 'decoupled_decay' and 'lr_in_momentum'
    torch                its groups have 'foreach' and others; not those of an old torch
    Stable-Baselines3    neither. But its ν begins at 1, so after t steps it is at least
                         α^t. torch's begins at 0, and may be less
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from rmsprop_jax import dialects
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax.checkpoints._arrays import as_array, as_float
from rmsprop_jax.checkpoints._records import Group
from rmsprop_jax.checkpoints._torch_layout import Part, Settings

# What torch calls the fields of RMSPropState; the count is its "step".
KEYS = {"nu": "square_avg", "mu": "momentum_buffer", "grad_mean": "grad_avg"}
STEP = "step"
# timm's groups have these, whatever their values, and torch's have the next.
_TIMM = {"decoupled_decay", "lr_in_momentum"}
_TORCH = {"foreach", "maximize", "capturable", "differentiable"}
# Settings of other rules, in dictionaries that else look the same.
_FOREIGN = {"nesterov", "decoupled_weight_decay", "caution"}


class Kind(NamedTuple):
    """An optimizer whose state_dict has torch's form.

    Attributes:
        optimizer: Its name, for errors.
        framework: As in the names of our functions: from_torch, to_torch.
        rate: What `dialect` calls the rate.
        dialect: Its rule.
        start: What ν is before the first step.
        more: Its settings beside those that all have, as arguments of the dialect.
    """

    optimizer: str
    framework: str
    rate: str
    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    start: float
    more: Callable[[Settings], Mapping[str, Any]]


def _of_torch(settings: Settings) -> Mapping[str, Any]:
    return {"maximize": bool(settings.get("maximize", False))}


def _of_timm(settings: Settings) -> Mapping[str, Any]:
    """Without what does nothing, which timm accepts and the dialect refuses."""
    decoupled = bool(settings.get("decoupled_decay", False))
    corrected = decoupled and bool(settings.get("corrected_weight_decay", False))
    # Before the snapshot timm had it in no group, but its schedulers put it there.
    largest = settings.get("max_lr_snapshot", settings.get("initial_lr"))
    if corrected and largest is None:
        raise ValueError(
            "A group with 'corrected_weight_decay' must have 'max_lr_snapshot', the "
            "rate that the optimizer was made with, but an old timm left it out: put "
            "it there."
        )
    return {
        "decoupled_decay": decoupled,
        "corrected_weight_decay": corrected,
        "max_lr": as_float(largest) if corrected and largest is not None else None,
        "lr_in_momentum": bool(settings.get("lr_in_momentum", True)),
        "caution": bool(settings.get("caution")) and _momentum(settings) > 0,
    }


TORCH = Kind("torch.optim.RMSprop", "torch", "learning_rate", rmsprop, 0.0, _of_torch)
TIMM = Kind("timm.optim.RMSpropTF", "timm", "lr", dialects.timm, 1.0, _of_timm)
STABLE_BASELINES3 = Kind(
    "Stable-Baselines3's RMSpropTFLike",
    "stable_baselines3",
    "lr",
    dialects.stable_baselines3,
    1.0,
    lambda settings: {},
)


def group_of(kind: Kind, settings: Settings) -> Group:
    """The settings in our terms."""
    numbers = {key: as_float(settings[key]) for key in ("alpha", "eps", "weight_decay")}
    return Group(
        kind.dialect,
        {
            kind.rate: as_float(settings["lr"]),
            **numbers,
            "momentum": _momentum(settings),
            "centered": bool(settings.get("centered", False)),
            **kind.more(settings),
        },
    )


def keeps(settings: Settings) -> set[str]:
    """Which fields of RMSPropState are kept with these settings."""
    fields = {"nu"}
    if _momentum(settings) > 0:
        fields.add("mu")
    if settings.get("centered", False):
        fields.add("grad_mean")
    return fields


def kind_of(what: str, part: Part, wanted: Kind) -> Kind:
    """Which optimizer made it.

    Stable-Baselines3 takes torch's as well: its A2C has torch's by default.

    Raises:
        ValueError: Where it is not the wanted one.
    """
    for g, settings in enumerate(part.groups):
        _check_settings(what, g, settings, wanted)
    found = _kind_of(part)
    takes = [TORCH, None] if wanted == STABLE_BASELINES3 else []
    if found in [wanted, *takes]:
        return found or wanted
    to = "from" if what == "state_dict" else "to"
    if found is None and wanted == TORCH:
        raise ValueError(
            f"{what} must be of torch.optim.RMSprop, but it may be of "
            "Stable-Baselines3's RMSpropTFLike, which keeps the same with another "
            f"rule: use {to}_stable_baselines3. If an old torch made it, put "
            "'foreach': None into its groups, as a newer one does (read(path) reads a "
            "file)."
        )
    found = found or STABLE_BASELINES3
    raise ValueError(
        f"{what} must be of {wanted.optimizer}, but it is of {found.optimizer}, which "
        f"follows another rule: use {to}_{found.framework}."
    )


def _kind_of(part: Part) -> Kind | None:
    """None where it may be torch's or Stable-Baselines3's."""
    keys = {key for settings in part.groups for key in settings}
    if keys & _TIMM:
        return TIMM
    stepped = {i: of for i, of in part.state.items() if {KEYS["nu"], STEP} <= set(of)}
    if keys & _TORCH or not stepped:
        return TORCH
    decays = {i: as_float(s["alpha"]) for s in part.groups for i in s["params"]}
    for i, buffers in stepped.items():
        least = decays[i] ** as_float(buffers[STEP])
        # A thousandth is more than rounding makes of α^t.
        if (np.real(as_array(buffers[KEYS["nu"]])) < 0.999 * least).any():
            return TORCH
    return None


def _check_settings(what: str, g: int, settings: Settings, wanted: Kind) -> None:
    """Raises where group `g` is of none of them."""
    missing = {"lr", "alpha", "eps", "weight_decay"} - set(settings)
    foreign = {key for key in _FOREIGN if settings.get(key)}
    if missing or (foreign and not _TIMM & set(settings)):
        raise ValueError(
            f"{what} must be of {wanted.optimizer}, but its group {g} "
            + (
                f"has no {min(missing)!r}."
                if missing
                else f"has {min(foreign)!r}, which follows another rule."
            )
        )


def _momentum(settings: Settings) -> float:
    return as_float(settings.get("momentum", 0))
