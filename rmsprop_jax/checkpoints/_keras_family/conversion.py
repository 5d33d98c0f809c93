"""Convert an optimizer of Keras or TensorFlow from its file to ``(tx, opt_state)``.

Some options of Keras's optimizers become transformations in a chain here. In Keras's
order:

    gradient_accumulation_steps   optax.MultiSteps, which keeps the mean; Keras the sum
    clipnorm                      clips each leaf's norm
    global_clipnorm               optax.clip_by_global_norm
    clipvalue                     optax.clip
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._error_text import named_leaves, warn_user
from rmsprop_jax._optimizer.options import Mask
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.checkpoints._convert.arrays import NumpyArray, Value, to_real_number
from rmsprop_jax.checkpoints._convert.placement import Part, Shardings, put_scalar
from rmsprop_jax.checkpoints._convert.rearrangement import apply_function
from rmsprop_jax.checkpoints._convert.run import (
    MOMENTS,
    ErrorHints,
    Group,
    ParamState,
    Run,
    Settings,
    ToParams,
    make_run,
    place_tree,
)

Dialect: TypeAlias = Callable[..., optax.GradientTransformationExtraArgs]
Block: TypeAlias = str
# The blocks of an optimizer's variables, in the order of the files: the moving averages
# of the weights, the sums of the gradients, and the moments.
BLOCKS: tuple[Block, ...] = ("average", "accumulator", *MOMENTS)
# The blocks' names in Keras, and in legacy optimizers and TensorFlow.
BLOCK_NAMES: dict[Block, str] = {
    "average": "average",
    "accumulator": "gradient_accumulator",
    "nu": "velocity",
    "mu": "momentum",
    "grad_mean": "average_gradient",
}
LEGACY_BLOCK_NAMES: dict[Block, str] = {**BLOCK_NAMES, "nu": "rms", "grad_mean": "mg"}

ACCUMULATION = "gradient_accumulation_steps"
MASK = "weight_decay_mask"
# Settings that the user may override.
_OVERRIDABLE = ("learning_rate", "momentum")
# Arguments that are not settings of a dialect: they say which blocks a file has.
_LAYOUT = ("use_ema", ACCUMULATION)
# Flags that a file may hold.
_FLAGS = ("centered", "use_ema")
_LARGEST = {
    **dict.fromkeys(("rho", "ema_momentum"), 1.0),
    **dict.fromkeys(
        ("learning_rate", "momentum", "epsilon", "weight_decay", "decay"),
        sys.float_info.max,
    ),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue"), sys.float_info.max),
}


class SavedOptimizer(NamedTuple):
    """What a file holds of an optimizer.

    Attributes:
        what: What errors call the file.
        dialect: One of `rmsprop_jax.dialects`.
        settings: The settings, by Keras's names.
        iterations: The number of gradients so far.
        names: The names of the variables, in the optimizer's order.
        blocks: For each block, one array per variable.
        block_names: What the file calls the blocks.
    """

    what: str
    dialect: Dialect
    settings: Settings
    iterations: int
    names: Sequence[str]
    blocks: Mapping[Block, Sequence[Value]]
    block_names: Mapping[Block, str]


def drop_none(**arguments: Any) -> Settings:
    """Return the arguments that the user gave."""
    return {name: value for name, value in arguments.items() if value is not None}


def make_keras_run(
    saved: SavedOptimizer,
    given: Settings,
    to_params: ToParams | None,
    shardings: Shardings | None = None,
) -> Run:
    """Return the transformation and the state that resume a run.

    Args:
        saved: What the file holds, with all settings.
        given: The settings that the user gave.
        to_params: The user's function.
        shardings: Where the leaves belong.
    """
    if len(set(saved.names)) < len(saved.names):
        raise ValueError(
            f"names must be given, because some variables in {saved.what} have the "
            f"same name. Give a new name for each of {[*saved.names]}."
        )
    settings = dict(saved.settings)
    every = settings.get(ACCUMULATION) or 1
    schedule = settings["learning_rate"]
    if callable(schedule) and "learning_rate" not in given:
        # Keras's schedules count the gradients, not the updates.
        size = min(every, LARGEST_COUNT)
        most = (LARGEST_COUNT + 1 - size) // size  # so that int32 can count gradients
        settings["learning_rate"] = lambda count: schedule(
            jnp.minimum(count, most) * size + size - 1
        )
    learning_rate, *arguments = inspect.signature(saved.dialect).parameters
    group = Group(
        saved.dialect,
        settings[learning_rate],
        {name: settings[name] for name in arguments},
        _make_mask(saved, settings, to_params),
    )
    params = [
        ParamState(
            name,
            0,
            min(saved.iterations // every, LARGEST_COUNT),
            **{m: saved.blocks[m][i] for m in MOMENTS if m in saved.blocks},
        )
        for i, name in enumerate(saved.names)
    ]
    hints = ErrorHints(
        keys={m: saved.block_names.get(m, m) for m in MOMENTS},
        to_drop="give the names of the others, if the file has names; otherwise keep "
        "them under their own key.",
        to_join="",  # there is one group
    )
    state: optax.OptState
    tx, state = make_run(
        saved.what, params, [group], to_params, hints, shardings=shardings
    )
    for name, make_clip in _CLIPS.items():
        if settings.get(name):
            if name == "clipnorm":
                _check_one_leaf_per_variable(params, state)
            tx = optax.chain(make_clip(settings[name]), tx)
            state = (optax.EmptyState(), state)
    if every > 1:
        return _accumulate(saved, every, tx, state, to_params, shardings)
    return tx, state


def _make_mask(
    saved: SavedOptimizer, settings: Settings, to_params: ToParams | None
) -> Mask | None:
    """Return the mask of the weight decay for the parameters of the model."""
    mask = settings.get(MASK)
    if mask is None and settings.get("weight_decay"):
        warn_user(
            f"{MASK} must be given if exclude_from_weight_decay excluded variables, "
            f"because {saved.what} does not say which. Without it, all of them decay "
            f"by {settings['weight_decay']}. Give {MASK}=True if nothing was excluded."
        )
    if mask is None or mask is True:
        return None
    if to_params is None or not isinstance(mask, Mapping):
        return mask
    by_name: Mapping[str, object] = mask
    if set(by_name) != set(saved.names):
        return mask  # like the parameters
    filled = {
        name: np.full(np.shape(nu), float(bool(by_name[name])), np.float32)
        for name, nu in zip(saved.names, saved.blocks["nu"], strict=True)
    }
    tree = apply_function("to_params", to_params, filled)
    for path, leaf in named_leaves(tree):
        if np.ptp(leaf):
            raise ValueError(
                f"{MASK} must be the same for all variables of a leaf, but to_params "
                f"makes leaf {path} from some that decay and some that do not."
            )
    return jax.tree.map(lambda leaf: bool(np.max(leaf, initial=0)), tree)


def clean_names(names: Iterable[str]) -> list[str]:
    """Return the names that the user gave, without TensorFlow's ``:0``."""
    found: list[object] = [names] if isinstance(names, str) else [*names]
    if others := [name for name in found if not isinstance(name, str)]:
        raise TypeError(
            "names must be strings, such as [v.path for v in "
            f"model.trainable_variables], but there was a {type(others[0])}."
        )
    cleaned = [str(name).removesuffix(":0") for name in found]
    if len(set(cleaned)) < len(cleaned):
        raise ValueError(f"names must all be different, but they were {cleaned}.")
    return cleaned


def select_variables(saved: SavedOptimizer, names: Sequence[str]) -> SavedOptimizer:
    """Select variables by name; or rename all, if the file's names are not unique.

    Args:
        saved: What the file holds.
        names: Cleaned names.
    """
    own = [*saved.names]
    if len(set(own)) < len(own) == len(names):
        return saved._replace(names=names)
    position = {name: i for i, name in enumerate(own)}
    if missing := [name for name in names if name not in position]:
        raise ValueError(
            f"names must be names of variables in {saved.what}, {own[:8]}, but one "
            f"was {missing[0]!r}."
        )
    blocks: dict[Block, Sequence[Value]] = {
        block: [arrays[position[name]] for name in names]
        for block, arrays in saved.blocks.items()
    }
    return saved._replace(names=names, blocks=blocks)


def merge_settings(
    what: str, dialect: Dialect, own: Settings, given: Settings
) -> Settings:
    """Return the file's settings and the user's.

    Raises:
        ValueError: If some are missing, unknown, or contradict the file.
    """
    arguments = [*inspect.signature(dialect).parameters]
    for name, value in given.items():
        is_mask = name == MASK and "weight_decay" in arguments
        if name not in (*arguments, *own, *_LAYOUT) and not is_mask:
            raise ValueError(
                f"{name} must be left out, because {what} is resumed as "
                f"dialects.{dialect.__name__}, whose settings are "
                f"{_join_and(arguments)}."
            )
        if name in own and name not in _OVERRIDABLE and not _is_same(own[name], value):
            raise ValueError(
                f"{name} must be left out, because {what} has its own, {own[name]!r}, "
                f"but it was {value!r}."
            )
    missing = [name for name in arguments if name not in own and name not in given]
    if missing:
        none = " (weight_decay=0 for none)" if "weight_decay" in missing else ""
        raise ValueError(
            f"{_join_and(missing)} must be given, because {what} does not hold "
            f"{'it' if len(missing) == 1 else 'them'}. Give what the optimizer was "
            f"made with{none}."
        )
    return {**own, **given}


def validate_iterations(what: str, number: float) -> int:
    """Return a count that a file holds.

    Raises:
        ValueError: If it is negative or not whole.
    """
    if not number >= 0 or number % 1:
        raise ValueError(
            f"{what} must have a non-negative whole number of iterations, but it was "
            f"{number}."
        )
    return int(number)


def validate_settings(what: str, own: Settings) -> None:
    """Raise if a file has a setting with which no optimizer can be made."""
    for name, value in own.items():
        if value is None or callable(value):
            continue
        if name in _FLAGS and not isinstance(value, bool):
            raise ValueError(
                f"{name!r} in {what} must be True or False, but it was {value!r}."
            )
        most = _LARGEST.get(name)
        if most is not None and not 0 <= to_real_number(value) <= most:
            limit = "" if most > 1 else ", at most 1"
            raise ValueError(
                f"{name!r} in {what} must be a finite number, not negative{limit}, but "
                f"it was {value!r}."
            )
    every = own.get(ACCUMULATION)
    if every is not None and (type(every) is not int or every < 1):
        raise ValueError(
            f"{ACCUMULATION!r} in {what} must be a positive integer, but it was "
            f"{every!r}."
        )


def _join_and(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _is_same(own: object, value: object) -> bool:
    if isinstance(own, int | float) and isinstance(value, int | float):
        return bool(np.float32(own) == np.float32(value))  # as the frameworks have it
    return own is value


def _clip_each_leaf(norm: float) -> optax.GradientTransformation:
    def clip(gradient: jax.Array) -> jax.Array:
        return gradient * norm / jnp.maximum(jnp.linalg.norm(gradient.ravel()), norm)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


_CLIPS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "clipnorm": _clip_each_leaf,
    "global_clipnorm": optax.clip_by_global_norm,
    "clipvalue": optax.clip,
}


def _check_one_leaf_per_variable(
    params: Sequence[ParamState], state: optax.OptState
) -> None:
    """Raise unless each leaf is one variable, because clipnorm clips each variable."""
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(optax.tree.get(state, "nu")))
    if sizes != sorted(np.prod(np.shape(param.nu), dtype=int) for param in params):
        raise ValueError(
            "to_params must make one leaf from each variable, without joining or "
            "splitting, because the optimizer's clipnorm clips each variable "
            "separately."
        )


def _accumulate(
    saved: SavedOptimizer,
    every: int,
    tx: optax.GradientTransformation,
    state: optax.OptState,
    to_params: ToParams | None,
    shardings: Shardings | None,
) -> Run:
    """Return the run with its partly accumulated gradients."""
    since = saved.iterations % every
    sums = dict(zip(saved.names, saved.blocks["accumulator"], strict=True))
    is_wide = any("float64" in str(getattr(x, "dtype", "")) for x in sums.values())
    dtype = jax.dtypes.canonicalize_dtype("float64" if is_wide else "float32")

    def to_means(
        _: Sequence[Part], arrays: Sequence[Sequence[NumpyArray]]
    ) -> list[list[NumpyArray | None]]:
        # Keras keeps the sum of the gradients, and optax their mean.
        (sums,) = arrays
        return [[np.asarray(array / max(since, 1), dtype) for array in sums]]

    key = saved.block_names["accumulator"]
    means = place_tree(to_params, sums, key, shardings, to_means)
    scalar = None if shardings is None else optax.tree.get(state, "count").sharding
    multi = optax.MultiSteps(tx, every, accumulator_dtype=dtype)
    multi_state = optax.MultiStepsState(
        mini_step=put_scalar(since, scalar),
        gradient_step=put_scalar(saved.iterations // every, scalar),
        inner_opt_state=state,
        acc_grads=means,
        skip_state=(),
    )
    return optax.with_extra_args_support(multi.gradient_transformation()), multi_state
