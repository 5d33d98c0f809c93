"""Each class of PyTorch's schedulers, from its own state_dict.

The keys tell the class:

    StepLR                        step_size, gamma
    MultiStepLR                   milestones, gamma
    ConstantLR                    factor, total_iters
    LinearLR                      start_factor, end_factor, total_iters
    ExponentialLR                 gamma
    PolynomialLR                  total_iters, power
    CosineAnnealingLR             T_max, eta_min
    CosineAnnealingWarmRestarts   T_0, T_i, T_mult, T_cur, eta_min
    CyclicLR                      max_lrs, total_size, step_ratio, mode, …
    OneCycleLR                    total_steps, _schedule_phases, _anneal_func_type, …
    SWALR                         anneal_epochs, _anneal_strategy
    SequentialLR                  _schedulers, _milestones
    ChainedScheduler              _schedulers
    LambdaLR, MultiplicativeLR    lr_lambdas: the same keys, and not the functions
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from rmsprop_jax._error_text import warn_user
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.schedules._annealing import (
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    swa_lr,
)
from rmsprop_jax.schedules._cycles import cyclic_lr, one_cycle_lr
from rmsprop_jax.schedules._factors import (
    constant_lr,
    exponential_lr,
    linear_lr,
    multi_step_lr,
    polynomial_lr,
    step_lr,
)
from rmsprop_jax.schedules._schedule import LearningRateAndMomentum, Schedule

# A value from a file, which may be anything until it is validated.
Unchecked: TypeAlias = Any
StateDict: TypeAlias = Mapping[Unchecked, Unchecked]
ParamGroups: TypeAlias = Sequence[Mapping[str, Unchecked]]

LAMBDA = "LambdaLR or MultiplicativeLR"
PLATEAU = "ReduceLROnPlateau"
# The keys of each class, and those that it need not have.
_CLASSES: dict[str, tuple[set[str], set[str]]] = {
    "StepLR": ({"step_size", "gamma"}, set()),
    "MultiStepLR": ({"milestones", "gamma"}, set()),
    "ConstantLR": ({"factor", "total_iters"}, set()),
    "LinearLR": ({"start_factor", "end_factor", "total_iters"}, set()),
    "ExponentialLR": ({"gamma"}, set()),
    "PolynomialLR": ({"total_iters", "power"}, set()),
    "CosineAnnealingLR": ({"T_max", "eta_min"}, set()),
    "CosineAnnealingWarmRestarts": ({"T_0", "T_mult", "T_cur", "eta_min"}, {"T_i"}),
    "CyclicLR": (
        {"max_lrs", "total_size", "step_ratio", "mode", "gamma", "cycle_momentum"},
        {"scale_mode", "use_beta1", "base_momentums", "max_momentums"},
    ),
    "OneCycleLR": (
        {"total_steps", "_schedule_phases", "_anneal_func_type", "cycle_momentum"},
        {"use_beta1"},
    ),
    "SWALR": ({"anneal_epochs", "_anneal_strategy"}, set()),
    "SequentialLR": ({"_schedulers", "_milestones"}, set()),
    "ChainedScheduler": ({"_schedulers"}, set()),
    LAMBDA: ({"lr_lambdas"}, set()),
    PLATEAU: (
        {"factor", "patience", "cooldown", "eps", "mode", "threshold"},
        {
            "best",
            "cooldown_counter",
            "default_min_lr",
            "min_lrs",
            "mode_worse",
            "num_bad_epochs",
            "threshold_mode",
        },
    ),
}
# These do not start from the learning rate of the optimizer. (A MultiplicativeLR does,
# but has the same keys as a LambdaLR.)
WITH_OWN_LEARNING_RATES = {
    LAMBDA,
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "OneCycleLR",
}
_COMMON = {"base_lrs", "last_epoch", "verbose"}
# PyTorch's versions differ in these private keys, which do not affect the schedule.
_PRIVATE = {
    "_schedulers",
    "_milestones",
    "_schedule_phases",
    "_anneal_func_type",
    "_anneal_strategy",
}
_MOST_MILESTONES = 100_000


@dataclasses.dataclass(frozen=True)
class Source:
    """A state_dict of a known class, whose values may be anything.

    Attributes:
        what: What errors call the state_dict.
        name: The class.
        state_dict: The state_dict.
        param_groups: The groups of the optimizer, if they are known.
    """

    what: str
    name: str
    state_dict: StateDict
    param_groups: ParamGroups | None

    def make(
        self, function: Callable[[], LearningRateAndMomentum]
    ) -> LearningRateAndMomentum:
        """Call a function; if it refuses an argument, name the scheduler."""
        try:
            return function()
        except (ArithmeticError, TypeError) as error:  # a number that is not one
            raise ValueError(f"{self.what}, a {self.name}: {error}") from error
        except NamedError:
            raise
        except ValueError as error:
            raise ValueError(f"{self.what}, a {self.name}: {error}") from error

    def read(self, key: str) -> Unchecked:
        """Return a value, a tensor or an array of one number as a Python number."""
        if key not in self.state_dict:
            raise NamedError(f"{self.what}, a {self.name}, has no {key!r}.")
        return to_number(self.state_dict[key])

    def read_list(self, key: str) -> list[Unchecked]:
        """Return a list of such values; a list of groups must not be empty."""
        values = self.state_dict.get(key)
        if not isinstance(values, list | tuple) or (
            not values and key != "_milestones"
        ):
            raise NamedError(
                f"{self.what}, a {self.name}, must have a list of numbers as its "
                f"{key!r}, but it was {values!r}."
            )
        return [to_number(value) for value in values]

    def read_of_group(self, key: str, g: int) -> Unchecked:
        """Return the value of a group from a list of one for each."""
        values = self.read_list(key)
        if g >= len(values):
            raise NamedError(
                f"{self.what}, a {self.name}, must have a number for each group as its "
                f"{key!r}, but it was {values!r}."
            )
        return values[g]

    def read_setting(self, key: str, g: int) -> Unchecked:
        """Return what a scheduler put into the optimizer's group."""
        if self.param_groups is None:
            raise NamedError(
                f"param_groups must be given, because a {self.name} keeps {key!r} "
                "there: optimizer.state_dict()['param_groups']."
            )
        if g >= len(self.param_groups) or key not in self.param_groups[g]:
            raise NamedError(
                f"param_groups must have {key!r} in group {g}, where a {self.name} "
                "keeps it, but it did not. Give the groups of the optimizer's "
                "state_dict that was saved with the scheduler's."
            )
        return to_number(self.param_groups[g][key])

    def read_epoch(self, depth: int) -> int:
        """Return the scheduler's steps; -1 if it has not begun inside another one."""
        value = self.read("last_epoch")
        smallest = -1 if depth else 0
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not smallest <= value <= LARGEST_COUNT or value % 1:
            raise NamedError(
                f"{self.what}, a {self.name}, must have an integer from {smallest} to "
                f"{LARGEST_COUNT} as its 'last_epoch', but it was {value!r}."
            )
        return int(value)

    def read_real(self, key: str, value: Unchecked) -> float:
        """Return a finite number, not negative."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= sys.float_info.max:
            raise NamedError(
                f"{self.what}, a {self.name}, must have finite numbers, not negative, "
                f"as its {key!r}, but one was {value!r}."
            )
        return float(value)


class NamedError(ValueError):
    """An error that already names the state_dict."""


def recognize(what: str, state_dict: StateDict) -> str:
    """Return the class whose keys a state_dict has."""
    keys = {
        key
        for key in state_dict
        if not isinstance(key, str) or not key.startswith("_") or key in _PRIVATE
    }
    own = keys - _COMMON
    for name, (required, optional) in _CLASSES.items():
        if required <= own <= required | optional:
            return name
    inner = [
        key
        for key, value in state_dict.items()
        if isinstance(value, Mapping) and "last_epoch" in value
    ]
    if inner:
        raise ValueError(
            f"{what} must be the state_dict of a scheduler, but it is a dictionary "
            f"that has one in {inner[0]!r}: give that."
        )
    raise ValueError(
        f"{what} must have the keys of one of torch's schedulers, which tell its "
        f"class, but those that tell were {sorted(map(repr, own))[:12]}. Make the "
        "schedule with the functions of rmsprop_jax.schedules, or as a function of the "
        "step count."
    )


def describe_plateau(what: str) -> str:
    return (
        f"{what} is of a ReduceLROnPlateau, which depends on the loss, so it is not "
        "a schedule. Put schedules.plateau_from_torch(state_dict), which resumes it, "
        "after the optimizer in optax.chain."
    )


def to_number(value: Unchecked) -> Unchecked:
    """Return an array or a tensor of one number as a Python number."""
    if not hasattr(value, "shape"):
        return value
    try:
        shape = np.shape(value)
        if math.prod(shape) == 1 and not np.iscomplexobj(value):
            # A tensor that requires a gradient has no array.
            is_scalar = shape == () and hasattr(value, "__float__")
            return float(value if is_scalar else np.asarray(value).reshape(()))
    except (ArithmeticError, TypeError, ValueError, RuntimeError):
        pass
    return value


# --- Each class: from its state_dict and the index of a group to its schedules.


def wrap(schedule: Schedule) -> LearningRateAndMomentum:
    return LearningRateAndMomentum(schedule)


def _read_plain(
    make: Callable[..., Schedule], *keys: str
) -> Callable[[Source, int, int], LearningRateAndMomentum]:
    """Return a reader of a class whose state_dict has its arguments by name."""

    def read(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
        del depth
        arguments = {key: source.read(key) for key in keys}
        return wrap(make(source.read_of_group("base_lrs", g), **arguments))

    return read


def _read_multi_step(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
    del depth
    milestones: object = source.state_dict["milestones"]
    counts: list[tuple[Unchecked, Unchecked]] = []
    if isinstance(milestones, Mapping):  # a Counter
        counts = [(place, n) for place, n in milestones.items()]
    elif isinstance(milestones, list | tuple):
        counts = [(place, 1) for place in milestones]
    numbers = [n for _, n in counts if isinstance(n, int) and n >= 0]
    if len(numbers) < len(counts) or sum(numbers) > _MOST_MILESTONES:
        odd = [n for _, n in counts if n not in numbers]
        was = f"one was counted by {odd[0]!r}" if odd else f"it had {sum(numbers)}"
        raise NamedError(
            f"{source.what}, a MultiStepLR, must have at most {_MOST_MILESTONES} "
            f"'milestones', each counted by a non-negative integer, but {was}."
        )
    places = [place for place, n in counts for _ in range(n)]
    base, gamma = source.read_of_group("base_lrs", g), source.read("gamma")
    return wrap(multi_step_lr(base, places, gamma))


def _read_restarts(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
    done = source.read("T_cur")
    if isinstance(done, float) and done % 1:
        raise NamedError(
            f"{source.what} is of a CosineAnnealingWarmRestarts that stepped by "
            f"fractions of an epoch, because its 'T_cur' is {done}, so it is not a "
            "function of the number of its steps. Make the schedule with T_0 in "
            "updates: schedules.cosine_annealing_warm_restarts(base_lr, T_0=…)."
        )
    keys = ("T_0", "T_mult", "eta_min")
    return _read_plain(cosine_annealing_warm_restarts, *keys)(source, g, depth)


def _read_cyclic(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
    if g == 0:
        _warn_of_scale_fn(source)
    size = source.read_real("total_size", source.read("total_size"))
    up = size * source.read_real("step_ratio", source.read("step_ratio"))
    # torch keeps the quotient, so the product is an integer only up to rounding.
    is_rounded = abs(up - round(up)) <= 1e-9 * max(size, 1.0)
    rounded: Unchecked = round(up) if is_rounded else up
    moves = source.read("cycle_momentum")
    _check_momentum(source, moves)
    low, high = (
        source.read_of_group(key, g) if moves else 0.0
        for key in ("base_momentums", "max_momentums")
    )
    return cyclic_lr(
        source.read_of_group("base_lrs", g),
        source.read_of_group("max_lrs", g),
        step_size_up=rounded,
        step_size_down=size - rounded,
        mode=source.read("mode"),
        gamma=source.read("gamma"),
        cycle_momentum=moves,
        base_momentum=low,
        max_momentum=high,
    )


def _warn_of_scale_fn(source: Source) -> None:
    mode = source.read("mode")
    if source.state_dict.get("_scale_fn_custom") is not None:
        raise NamedError(
            f"{source.what} is of a CyclicLR with a scale_fn, which torch does not "
            "store. Make it with schedules.cyclic_lr(base_lr, max_lr, scale_fn=…)."
        )
    warn_user(
        f"{source.what} is of a CyclicLR with the mode {mode!r} or with a scale_fn, "
        "which torch does not store. The schedule follows the mode. If there was a "
        "scale_fn, make it with schedules.cyclic_lr(base_lr, max_lr, scale_fn=…)."
    )


def _check_momentum(source: Source, moves: object) -> None:
    if not isinstance(moves, bool):
        raise NamedError(
            f"{source.what}, a {source.name}, must have True or False as its "
            f"'cycle_momentum', but it was {moves!r}."
        )
    if moves and source.state_dict.get("use_beta1"):
        raise NamedError(
            f"{source.what} is of a {source.name} that moves 'betas', which the "
            "RMSprop of torch does not have: it is of another optimizer."
        )


def _read_one_cycle(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
    del depth
    first, largest, last = (
        source.read_real(key, source.read_setting(key, g))
        for key in ("initial_lr", "max_lr", "min_lr")
    )
    moves = source.read("cycle_momentum")
    _check_momentum(source, moves)
    low, high = (
        source.read_setting(key, g) if moves else 0.0
        for key in ("base_momentum", "max_momentum")
    )
    steps = source.read("total_steps")
    phases = source.state_dict["_schedule_phases"]
    ends: list[Unchecked] = []
    if isinstance(phases, list | tuple):
        ends = [to_number(x.get("end_step")) for x in phases if isinstance(x, Mapping)]
    if len(ends) not in (2, 3) or not all(isinstance(x, int | float) for x in ends):
        raise NamedError(
            f"{source.what}, a OneCycleLR, must have two or three phases with an "
            f"'end_step' as its '_schedule_phases', but they were {phases!r}."
        )
    if len(ends) == 3 and not math.isclose(ends[1], 2 * ends[0], abs_tol=1e-6):
        raise NamedError(
            f"{source.what}, a OneCycleLR, must have phases as torch makes them, but "
            f"they end at {ends}."
        )
    if not first or not last or not isinstance(steps, int) or steps < 1:
        raise NamedError(
            f"{source.what}, a OneCycleLR, must have a positive integer as its "
            f"'total_steps', and the group positive learning rates, but they were "
            f"{steps!r}, {first} and {last}."
        )
    return one_cycle_lr(
        largest,
        total_steps=steps,
        pct_start=(ends[0] + 1) / steps,
        anneal_strategy=source.read("_anneal_func_type"),
        cycle_momentum=moves,
        div_factor=largest / first,
        final_div_factor=first / last,
        three_phase=len(ends) == 3,
        base_momentum=low,
        max_momentum=high,
    )


def _read_swa(source: Source, g: int, depth: int) -> LearningRateAndMomentum:
    """Start from the learning rate that SWALR found, which its last one shows."""
    base = source.read_real("base_lrs", source.read_of_group("base_lrs", g))
    last = source.read_real("swa_lr", source.read_setting("swa_lr", g))
    arguments = (source.read("anneal_epochs"), source.read("_anneal_strategy"))
    if depth == 0 and "_last_lr" in source.state_dict:
        found = source.read_real("_last_lr", source.read_of_group("_last_lr", g))
        # With 1 and 0 as the two learning rates, the schedule is what is left.
        left = np.asarray(swa_lr(1.0, 0.0, *arguments)(source.read_epoch(0))).item()
        if left > 0:
            base = max((found - last * (1 - left)) / left, 0.0)
    return wrap(swa_lr(base, last, *arguments))


READERS: dict[str, Callable[[Source, int, int], LearningRateAndMomentum]] = {
    "StepLR": _read_plain(step_lr, "step_size", "gamma"),
    "MultiStepLR": _read_multi_step,
    "ConstantLR": _read_plain(constant_lr, "factor", "total_iters"),
    "LinearLR": _read_plain(linear_lr, "start_factor", "end_factor", "total_iters"),
    "ExponentialLR": _read_plain(exponential_lr, "gamma"),
    "PolynomialLR": _read_plain(polynomial_lr, "total_iters", "power"),
    "CosineAnnealingLR": _read_plain(cosine_annealing_lr, "T_max", "eta_min"),
    "CosineAnnealingWarmRestarts": _read_restarts,
    "CyclicLR": _read_cyclic,
    "OneCycleLR": _read_one_cycle,
    "SWALR": _read_swa,
}
