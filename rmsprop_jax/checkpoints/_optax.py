"""The state of ``optax.rmsprop`` into ours.

Per leaf, where ĉ = 1 − decay^count with bias correction, and 1 without:

    nu of scale_by_rms       nu = ν/ĉ
    mu of scale_by_stddev    grad_mean = m/ĉ
    nu of scale_by_stddev    nu = ν/ĉ − (m/ĉ)², the variance, in float64
    trace                    mu = −trace: the rate is inside in both, and in optax its
                             sign as well

With bias correction optax keeps the moments uncorrected, and we keep them corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from rmsprop_jax._error_text import (
    join_first,
    path_str,
)
from rmsprop_jax._optimizer.state import RMSPropState
from rmsprop_jax.checkpoints._arrays import as_array
from rmsprop_jax.checkpoints._centered import variance

# optax's states, by name: not all of them are public, and Adam's has the same fields.
_MOMENTS = {
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
}
_TRACE = "TraceState"
_SCHEDULE = "ScaleByScheduleState"


def from_optax(
    opt_state: optax.OptState,
    *,
    count: int | jax.Array | None = None,
    decay: float | None = None,
) -> RMSPropState:
    """The state with which `dialects.optax` goes on where ``optax.rmsprop`` stopped.

    That dialect has the rate inside the momentum buffer, as optax has it. `rmsprop`
    itself, torch's rule, has another unit there. Without momentum the state is one for
    `rmsprop` too, with optax's ``eps`` and ``eps_in_sqrt``.

    Args:
        opt_state: The state of ``optax.rmsprop``, or of a chain of it with
            transformations that have no state, such as ``optax.clip``. From
            ``optax.inject_hyperparams`` give the ``inner_state``, and the ``count``.
            Of other states (``MultiSteps``, ``partition``) the error says which part.
            Restore a checkpoint with a template, ``optax.rmsprop(...).init(params)``.
        count: The number of updates so far, where the state does not hold it. It does
            with a learning-rate schedule or bias correction. 0 by default.
        decay: optax's ``decay``. Needed with bias correction, and only then.

    Returns:
        The same in our terms. Leaves are float32, or float64 where optax's are. They
        are sharded as optax's are. optax keeps moments of integer parameters too; ours
        are ``None``.

    Raises:
        ValueError: Where the state is not that of ``optax.rmsprop``; where ``count`` or
            ``decay`` are missing or contradict it; on complex leaves.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax.checkpoints import from_optax
        >>> tx = optax.rmsprop(0.5, decay=0.75, momentum=0.5, eps=0.0)
        >>> params = {"w": jnp.array([1.0, -4.0])}
        >>> _, opt_state = tx.update({"w": jnp.array([3.0, -5.0])}, tx.init(params))
        >>> state = from_optax(opt_state, count=1)
        >>> state.nu["w"], state.mu["w"]
        (Array([2.25, 6.25], dtype=float32), Array([ 1., -1.], dtype=float32))

    References:
        optax 0.2.8, ``optax/_src/alias.py``, ``rmsprop``.
    """
    found: dict[str, Any] = {}  # their classes are not public
    _collect("opt_state", opt_state, found)
    moments = next((found[name] for name in _MOMENTS if name in found), None)
    if moments is None:
        raise ValueError(
            "opt_state must be the state of optax.rmsprop, with the moments of "
            f"scale_by_rms or scale_by_stddev in it, but it was {type(opt_state)}."
        )
    corrected = "count" in moments._fields
    if corrected == (decay is None):
        raise ValueError(
            "decay must be given with bias correction, and only then, as optax keeps "
            "the moments uncorrected and the correction depends on it, but it was "
            f"{decay} where optax's state is {type(moments).__name__}."
        )
    schedule = found.get(_SCHEDULE)
    counts = [moments.count] if corrected else []
    counts += [] if schedule is None else [schedule.count]
    counts = {int(c) for c in (*counts, count) if c is not None} or {0}
    if len(counts) > 1:
        raise ValueError(
            "count must be the number of updates so far, which optax's state holds "
            f"itself, but they were {sorted(counts)}: leave it out."
        )
    steps = counts.pop()
    correction = 1.0
    if decay and steps:  # before the first step the moments are what they are
        correction = -math.expm1(steps * math.log(decay))

    def corrected_moment(x: np.ndarray) -> np.ndarray:
        return x / correction

    def corrected_variance(x: np.ndarray, m: np.ndarray) -> np.ndarray:
        return variance(x / correction, m / correction)

    def negated(x: np.ndarray) -> np.ndarray:
        return 0 - x  # not −0 for 0

    means = getattr(moments, "mu", None)
    trace = found.get(_TRACE)
    return RMSPropState(
        count=jnp.asarray(steps, jnp.int32),
        nu=_tree(corrected_moment, moments.nu)
        if means is None
        else _tree(corrected_variance, moments.nu, means),
        mu=None if trace is None else _tree(negated, trace.trace),
        grad_mean=None if means is None else _tree(corrected_moment, means),
    )


def _collect(where: str, state: optax.OptState, found: dict[str, Any]) -> None:
    """The states of optax.rmsprop's links by name; refuses what would be lost."""
    name = type(state).__name__
    if type(state) is tuple:
        for i, link in enumerate(state):
            _collect(f"{where}[{i}]", link, found)
    elif name in (*_MOMENTS, _TRACE, _SCHEDULE) and name not in found:
        found[name] = state
    elif isinstance(state, list | dict) and jax.tree.leaves(state):
        raise ValueError(
            f"opt_state must be as optax makes it, but {where} is a {name}, as in a "
            "checkpoint that was restored without a template. Restore it with one: "
            "optax.rmsprop(...).init(params)."
        )
    elif jax.tree.leaves(state):
        parts = [where + part for part in _parts_of_rmsprop(state)]
        raise ValueError(
            f"opt_state must be the state of one optax.rmsprop, but {where} is a "
            f"{name}, which would be lost. Give the part of optax.rmsprop alone"
            + (f": {join_first(parts)}." if parts else ".")
        )


def _parts_of_rmsprop(state: optax.OptState) -> list[str]:
    """Where in a state those of optax.rmsprop are: the chains with its moments."""

    def has_moments(x: object) -> bool:
        return type(x).__name__ in _MOMENTS

    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=has_moments)
    return [
        jax.tree_util.keystr(path[:-1]) for path, node in nodes if has_moments(node)
    ]


def _tree(
    formula: Callable[..., np.ndarray], tree: optax.Params, *others: optax.Params
) -> optax.Params:
    """The formula, in float64, of every leaf, which stays on its devices."""

    def leaf(path: KeyPath, *leaves: jax.Array) -> jax.Array | None:
        dtype = leaves[0].dtype
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"opt_state must be of real parameters, but leaf "
                f"{path_str(path)} is {dtype}: optax keeps one second "
                "moment of a complex number, and we keep one of each part."
            )
        if not jnp.issubdtype(dtype, jnp.inexact):
            return None  # an integer is not optimized
        wide = np.float64 if dtype == np.float64 else np.float32
        made = formula(*(as_array(x).astype(float) for x in leaves)).astype(wide)
        return jax.device_put(made, getattr(leaves[0], "sharding", None))

    return jax.tree_util.tree_map_with_path(leaf, tree, *others)
