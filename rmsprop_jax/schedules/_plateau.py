"""``ReduceLROnPlateau``, which depends on the loss, so it is not a schedule."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax.schedules._arguments import (
    validate_choice,
    validate_integer,
    validate_real,
)
from rmsprop_jax.schedules._state_dict import validate_arguments
from rmsprop_jax.schedules._torch_classes import (
    PLATEAU,
    Source,
    StateDict,
    recognize,
)

# optax's states have no common type.
State: TypeAlias = Any
# Stands for a relative threshold of 0, which optax refuses: 1 minus this is 1.
_NO_THRESHOLD = 1e-300


def reduce_lr_on_plateau(
    learning_rate: float,
    mode: Literal["min", "max"] = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Make the ``optax.contrib.reduce_on_plateau`` that equals ``ReduceLROnPlateau``.

    PyTorch steps it after the optimizer, usually once per epoch, so that the next
    updates are smaller. To follow it exactly, keep the transformation apart from the
    optimizer: call its ``update`` with the loss (or the metric) as ``value`` where
    PyTorch would call ``step``, and multiply the updates by the ``scale`` of its state.
    In an ``optax.chain`` after the optimizer, it takes a value with every update, and
    already scales the update that came with the value.

    Args:
        learning_rate: The optimizer's learning rate, which the bounds refer to.
        mode: ``"min"`` if a smaller value is better, or ``"max"``.
        factor: What the learning rate is multiplied by, more than 0 and less than 1.
        patience: How many bad values in a row are tolerated. One more reduces the
            learning rate.
        threshold: How much better a value must be.
        threshold_mode: ``"rel"`` if the threshold is a fraction of the best value, or
            ``"abs"``.
        cooldown: How many values are ignored after a reduction.
        min_lr: The smallest learning rate.
        eps: The smallest change of the learning rate. A smaller one is not made.

    Returns:
        An optax transformation, which scales the updates. Its state is optax's
        ``ReduceLROnPlateauState``.

    Raises:
        ValueError: If a number is out of range, or a mode is unknown.
        TypeError: If an argument is not a number.

    Examples:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from rmsprop_jax import rmsprop, schedules
        >>> plateau = schedules.reduce_lr_on_plateau(0.5, factor=0.5, patience=2)
        >>> tx = optax.chain(rmsprop(0.5), plateau)
        >>> params = jnp.array(1.0)
        >>> state = tx.init(params)
        >>> for _ in range(4):
        ...     updates, state = tx.update(params, state, params, value=0.25)
        >>> state[1].scale
        Array(0.5, dtype=float32)
    """
    base = validate_real("learning_rate", learning_rate)
    validate_choice("mode", mode, ("min", "max"))
    validate_choice("threshold_mode", threshold_mode, ("rel", "abs"))
    factor = validate_real("factor", factor, 0.0, 1.0)
    if factor in (0.0, 1.0):
        raise ValueError(
            f"factor must be more than 0 and less than 1, but it was {factor}."
        )
    bound = validate_real("threshold", threshold)
    if mode == "min" and threshold_mode == "rel" and bound > 1:
        raise ValueError(
            "threshold must be a number from 0 to 1 if it is relative, because no loss "
            f"is better otherwise, but it was {threshold}."
        )
    is_relative = threshold_mode == "rel"
    counts = {
        # optax counts the value that reduces it.
        "patience": validate_integer("patience", patience, 0) + 1,
        "cooldown": validate_integer("cooldown", cooldown, 0),
    }
    scale = _find_smallest_scale(
        base, factor, validate_real("min_lr", min_lr), validate_real("eps", eps)
    )
    if mode == "min":
        return optax.contrib.reduce_on_plateau(
            factor,
            rtol=(bound or _NO_THRESHOLD) if is_relative else 0.0,
            atol=0.0 if is_relative else (bound or _NO_THRESHOLD),
            min_scale=scale,
            **counts,
        )
    return _maximize(
        optax.contrib.reduce_on_plateau(
            factor, rtol=_NO_THRESHOLD, atol=0.0, min_scale=scale, **counts
        ),
        bound,
        is_relative=is_relative,
    )


def plateau_from_torch(
    state_dict: StateDict, *, group: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Resume a ``ReduceLROnPlateau`` of PyTorch from its state_dict.

    The transformation is that of `reduce_lr_on_plateau` with the same settings. Its
    ``init`` returns a state with the best value, the number of bad values since, and
    the cooldown of the state_dict. Because the scale is 1 at first, the optimizer must
    have the state_dict's last learning rate.

    Args:
        state_dict: ``scheduler.state_dict()``.
        group: The index of the optimizer's group. Each group has its own smallest
            learning rate.

    Returns:
        An optax transformation, as from `reduce_lr_on_plateau`.

    Raises:
        ValueError: If a value is missing or invalid.
        TypeError: If ``state_dict`` is not a dictionary.

    Examples:
        >>> import optax
        >>> from rmsprop_jax import rmsprop, schedules
        >>> state_dict = {"mode": "min", "factor": 0.5, "patience": 2, "cooldown": 0}
        >>> state_dict |= {"threshold": 1e-4, "threshold_mode": "rel", "eps": 1e-8}
        >>> state_dict |= {"min_lrs": [0], "best": 0.25, "num_bad_epochs": 2}
        >>> state_dict |= {"cooldown_counter": 0, "last_epoch": 7, "_last_lr": [0.5]}
        >>> plateau = schedules.plateau_from_torch(state_dict)
        >>> tx = optax.chain(rmsprop(0.5), plateau)
        >>> state = tx.init(1.0)
        >>> _, state = tx.update(1.0, state, value=0.25)
        >>> state[1].scale
        Array(0.5, dtype=float32)

    References:
        torch 2.13.0, ``torch/optim/lr_scheduler.py``.
    """
    validate_arguments(state_dict)
    what = "state_dict"
    if recognize(what, state_dict) != PLATEAU:
        raise ValueError(
            f"{what} must be of a ReduceLROnPlateau, but it was not. "
            "schedules.from_torch takes those of other schedulers."
        )
    source = Source(what, PLATEAU, state_dict, None)
    words = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown")
    arguments = {key: source.read(key) for key in (*words, "eps")}
    best = source.read("best")
    if not isinstance(best, int | float) or (
        isinstance(best, int) and abs(best) > sys.float_info.max
    ):
        raise ValueError(f"{what} must have a number as its 'best', but it was {best}.")
    counts = {
        "plateau_count": validate_integer(
            "num_bad_epochs", source.read("num_bad_epochs"), 0
        ),
        "cooldown_count": validate_integer(
            "cooldown_counter", source.read("cooldown_counter"), 0
        ),
    }
    plateau = reduce_lr_on_plateau(
        source.read_of_group("_last_lr", group),
        min_lr=source.read_of_group("min_lrs", group),
        **arguments,
    )

    def init(params: optax.Params) -> State:
        state: State = plateau.init(params)
        return state._replace(
            best_value=jnp.full_like(state.best_value, best),
            **{name: jnp.array(n, jnp.int32) for name, n in counts.items()},
        )

    return optax.GradientTransformationExtraArgs(init, plateau.update)


def _find_smallest_scale(
    learning_rate: float, factor: float, min_lr: float, eps: float
) -> float:
    """Return where PyTorch stops: at the bound, or before a change of at most eps."""
    reduced = learning_rate
    while reduced > 0:
        smaller = max(reduced * factor, min_lr)
        if not reduced - smaller > eps:
            break
        reduced = smaller
    return reduced / learning_rate if learning_rate else 1.0


def _maximize(
    plateau: optax.GradientTransformationExtraArgs, bound: float, *, is_relative: bool
) -> optax.GradientTransformationExtraArgs:
    """Compare as PyTorch does if a larger value is better, which optax can't.

    optax is given infinity as the value if the value is not better, and as the best
    value so far if it is. Its own comparison then gives PyTorch's result.
    """

    def init(params: optax.Params) -> State:
        state: State = plateau.init(params)
        return state._replace(best_value=-state.best_value)

    def update(
        updates: optax.Updates,
        state: State,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, State]:
        if "value" not in extra_args:
            raise TypeError(
                "value must be given to update, because reduce_lr_on_plateau compares "
                "this metric with the best one so far: call update(updates, state, "
                "params, value=metric)."
            )
        best = state.best_value
        value = jnp.asarray(extra_args["value"], best.dtype)
        limit = best * (1 + bound) if is_relative else best + bound
        is_better = value > limit
        made: tuple[optax.Updates, State] = plateau.update(
            updates,
            state._replace(best_value=jnp.full_like(best, jnp.inf)),
            params,
            **(extra_args | {"value": jnp.where(is_better, value, jnp.inf)}),
        )
        new_best = jax.lax.select(is_better, value, best)
        return made[0], made[1]._replace(best_value=new_best)

    return optax.GradientTransformationExtraArgs(init, update)
