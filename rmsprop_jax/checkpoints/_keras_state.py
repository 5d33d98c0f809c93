"""An optimizer of Keras or TensorFlow, as its file has it, into ours.

Around the rule, Keras's optimizers do what are links of a chain here. In their order:

    gradient_accumulation_steps   optax.MultiSteps; Keras keeps the sum, it the mean
    clipnorm                      each leaf's norm
    global_clipnorm               optax.clip_by_global_norm
    clipvalue                     optax.clip
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax.checkpoints._arrays import as_array
from rmsprop_jax.checkpoints._rearranging import apply
from rmsprop_jax.checkpoints._records import Group, Record, Wording, from_records

# What the user may give in place of the file's.
_IN_PLACE = ("learning_rate", "momentum")
ACCUMULATION = "gradient_accumulation_steps"
# What is no setting of a dialect, but says what there is in a file.
_AROUND = ("use_ema", ACCUMULATION)
# What Keras calls its blocks, in their order.
KEYS = {"average": "average", "accumulator": "gradient_accumulator", "nu": "velocity"}
KEYS |= {"mu": "momentum", "grad_mean": "average_gradient"}
LEGACY_KEYS = KEYS | {"nu": "rms", "grad_mean": "mg"}


class Saved(NamedTuple):
    """What a file holds of an optimizer.

    Attributes:
        what: How errors speak of it.
        dialect: Of `rmsprop_jax.dialects`.
        settings: Those that the file has, by Keras's names.
        iterations: How many gradients it has had.
        names: The variables', in the optimizer's order.
        slots: By ``"nu"``, ``"mu"``, ``"grad_mean"``, ``"average"`` (of the weights)
            and ``"accumulator"`` (of the gradients), an array of each variable.
        keys: What the file calls them.
    """

    what: str
    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    settings: Mapping[str, Any]
    iterations: int
    names: Sequence[str]
    slots: Mapping[str, Sequence[np.ndarray]]
    keys: Mapping[str, str]


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that the user gave."""
    return {name: value for name, value in arguments.items() if value is not None}


def resumed(
    saved: Saved,
    user: Mapping[str, Any],
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on.

    Args:
        saved: What the file holds.
        user: The settings that the user gave.
        to_params: The user's function.
    """
    if len(set(saved.names)) < len(saved.names):
        raise ValueError(
            f"names must be given, as in {saved.what} some variables have the same: a "
            f"new one for each of {[*saved.names]}."
        )
    settings = completed(saved.what, saved.dialect, saved.settings, user)
    every = settings.get(ACCUMULATION) or 1
    rate = settings["learning_rate"]
    if callable(rate) and "learning_rate" not in user:
        # Keras's schedules count the gradients, not the updates.
        settings["learning_rate"] = lambda count: rate(count * every + every - 1)
    arguments = inspect.signature(saved.dialect).parameters
    group = Group(saved.dialect, {name: settings[name] for name in arguments})
    moments = {
        moment: [as_array(array) for array in arrays]
        for moment, arrays in saved.slots.items()
        if moment in Record._fields
    }
    count = saved.iterations // every
    records = [
        Record(name, 0, count, **{m: arrays[i] for m, arrays in moments.items()})
        for i, name in enumerate(saved.names)
    ]
    wording = Wording(
        keys=saved.keys,
        to_drop="give the names of the others, if the file knows the names; else keep "
        "them under a key of their own.",
        to_join="",  # there is one group
    )
    tx, state = from_records(records, [group], to_params, wording)
    for name, link in _CLIPS.items():
        if settings.get(name):
            if name == "clipnorm":
                _check_leaves(records, state)
            tx = optax.chain(link(settings[name]), tx)
            state = (optax.EmptyState(), state)
    if every > 1:
        return _accumulating(saved, every, tx, state, to_params)
    return tx, state


def listed(names: Iterable[str]) -> list[str]:
    """The names that the user gave, without TensorFlow's ``:0``."""
    found = [names] if isinstance(names, str) else [*names]
    if others := [name for name in found if not isinstance(name, str)]:
        raise TypeError(
            "names must be strings, such as [v.path for v in "
            f"model.trainable_variables], but there was a {type(others[0])}."
        )
    found = [name.removesuffix(":0") for name in found]
    if len(set(found)) < len(found):
        raise ValueError(f"names must be different, but they were {found}.")
    return found


def chosen(saved: Saved, names: Iterable[str]) -> Saved:
    """Some of the variables; all by new names, where the file's are not unique."""
    own, found = saved.names, listed(names)
    if len(set(own)) < len(own) == len(found):
        return saved._replace(names=found)
    if missing := [name for name in found if name not in own]:
        raise ValueError(
            f"names must be among those of the variables in {saved.what}, "
            f"{[*own][:8]}, but there was {missing[0]!r}."
        )
    slots = {m: [of[own.index(n)] for n in found] for m, of in saved.slots.items()}
    return saved._replace(names=found, slots=slots)


def completed(
    what: str,
    dialect: Callable[..., Any],
    own: Mapping[str, Any],
    user: Mapping[str, Any],
) -> dict[str, Any]:
    """The file's settings and the user's; raises where they are not all there."""
    arguments = [*inspect.signature(dialect).parameters]
    for name, value in user.items():
        if name not in (*arguments, *own, *_AROUND):
            raise ValueError(
                f"{name} must be left out, as {what} goes on as "
                f"dialects.{dialect.__name__}, whose settings are "
                f"{_listing(arguments)}."
            )
        if name in own and name not in _IN_PLACE and not _same(own[name], value):
            raise ValueError(
                f"{name} must be left out, as {what} has its own, {own[name]!r}, but "
                f"it was {value!r}."
            )
    missing = [name for name in arguments if name not in own and name not in user]
    if missing:
        none = " (weight_decay=0 for none)" if "weight_decay" in missing else ""
        raise ValueError(
            f"{_listing(missing)} must be given, as {what} does not hold "
            f"{'it' if len(missing) == 1 else 'them'}: what the optimizer was made "
            f"with{none}."
        )
    return {**own, **user}


def _listing(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _same(own: Any, value: Any) -> bool:
    if isinstance(own, int | float) and isinstance(value, int | float):
        return bool(np.float32(own) == np.float32(value))  # as the frameworks have it
    return own is value


def _clip_each(norm: float) -> optax.GradientTransformation:
    def clip(gradient: jax.Array) -> jax.Array:
        return gradient * norm / jnp.maximum(jnp.linalg.norm(gradient.ravel()), norm)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


_CLIPS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "clipnorm": _clip_each,
    "global_clipnorm": optax.clip_by_global_norm,
    "clipvalue": optax.clip,
}


def _check_leaves(records: Sequence[Record], state: optax.OptState) -> None:
    """Raises where a leaf is no variable: clipnorm is of each variable by itself."""
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(optax.tree.get(state, "nu")))
    if sizes != sorted(record.nu.size for record in records):
        raise ValueError(
            "to_params must make one leaf of each variable, neither joined nor split, "
            "as the optimizer has clipnorm, which clips each variable by itself."
        )


def _accumulating(
    saved: Saved,
    every: int,
    tx: optax.GradientTransformation,
    state: optax.OptState,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """Within gradients that are accumulated, of which Keras keeps the sum."""
    since = saved.iterations % every
    arrays = [as_array(array) / max(since, 1) for array in saved.slots["accumulator"]]
    means = dict(zip(saved.names, arrays, strict=True))
    wide = any(array.dtype == np.float64 for array in arrays)
    dtype = jax.dtypes.canonicalize_dtype("float64" if wide else "float32")
    multi = optax.MultiSteps(tx, every, accumulator_dtype=dtype)
    state = optax.MultiStepsState(
        mini_step=jnp.array(since, jnp.int32),
        gradient_step=jnp.array(saved.iterations // every, jnp.int32),
        inner_opt_state=state,
        acc_grads=jax.tree.map(
            lambda x: jnp.array(x, dtype), apply("to_params", to_params, means)
        ),
        skip_state=(),
    )
    return optax.with_extra_args_support(multi.gradient_transformation()), state
