"""Convert the state of ``optax.rmsprop`` to an `RMSPropState`.

For each leaf, where ĉ = 1 − decay^count with bias correction, and 1 without:

    nu of scale_by_rms       nu = ν/ĉ
    mu of scale_by_stddev    grad_mean = m/ĉ
    nu of scale_by_stddev    nu = ν/ĉ − (m/ĉ)², the variance, in float64
    trace                    mu = −trace: both include the learning rate, and optax's
                             includes its sign as well

With bias correction, optax stores the moments uncorrected; an `RMSPropState` holds them
corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from rmsprop_jax._error_text import Path, join_first, path_str
from rmsprop_jax._optimizer.state import LARGEST_COUNT, RMSPropState
from rmsprop_jax.checkpoints._convert.arrays import NumpyArray, to_numpy
from rmsprop_jax.checkpoints._convert.second_moment import to_variance

# optax's states have no common type, and not all of them are public.
State: TypeAlias = Any
# Recognized by their names, because Adam's state has the same fields.
_MOMENTS = {
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRStdDevState",
    "ScaleByRStdDevWithCountState",
}
_TRACE = "TraceState"
_SCHEDULE = "ScaleByScheduleState"
_INJECTED = "InjectStatefulHyperparamsState"


def from_optax(
    opt_state: optax.OptState,
    *,
    count: int | jax.Array | None = None,
    decay: ArrayLike | None = None,
) -> RMSPropState:
    """Convert the state of ``optax.rmsprop``, so that `dialects.optax` resumes the run.

    That dialect applies the learning rate inside the momentum buffer, as optax does. In
    `rmsprop` itself, which is PyTorch's rule, the buffer has another unit. Without
    momentum, the state fits `rmsprop` too, with optax's ``eps`` and ``eps_in_sqrt``.

    Args:
        opt_state: The state of ``optax.rmsprop``, or of a chain of it with
            transformations that have no state, such as ``optax.clip``. It may be inside
            the state of ``optax.inject_hyperparams``. It may also be the state of a
            whole population, whose leaves and count have an additional first axis. For
            other states (``MultiSteps``, ``partition``) the error says which part to
            give. Restore a checkpoint with a template,
            ``optax.rmsprop(...).init(params)``.
        count: The step count, if the state does not hold it; by default 0. The state
            holds it with a learning-rate schedule, with bias correction, or with
            injected hyperparameters. As in `RMSPropState`, it is at most 2³¹ − 1.
        decay: optax's ``decay``. It is needed with bias correction, and only then. An
            injected ``decay`` is in the state.

    Returns:
        The state as an `RMSPropState`. Leaves are float32, or float64 if optax's are,
        with optax's shardings. The count has the sharding of optax's count, or is on
        all devices of the moments' mesh if optax has none. The moments of integer
        parameters, which optax has too, become ``None``.

    Raises:
        ValueError: If the state is not that of ``optax.rmsprop``; if ``count`` or
            ``decay`` is missing or contradicts it; if a leaf is complex or traced.

    A run with injected hyperparameters keeps them, and the step counts of their
    schedules, in ``opt_state._replace(inner_state=from_optax(opt_state))``, which is
    the state of ``optax.inject_hyperparams(dialects.optax)`` with the same arguments.

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
    leaves = jax.tree.leaves((opt_state, count))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "opt_state must not be traced, because it is converted in float64 without "
            "JAX: call from_optax outside jax.jit and jax.vmap. It takes the state of "
            "a whole population at once."
        )
    found: dict[str, State] = {}
    _collect_states("opt_state", opt_state, found)
    moments = next((found[name] for name in _MOMENTS if name in found), None)
    if moments is None:
        raise ValueError(
            "opt_state must be the state of optax.rmsprop, with the moments of "
            f"scale_by_rms or scale_by_stddev in it, but it was {type(opt_state)}."
        )
    is_corrected = "count" in moments._fields
    injected = found.get(_INJECTED)
    if injected is not None and is_corrected and decay is None:
        decay = injected.hyperparams.get("decay")
    if is_corrected == (decay is None):
        raise ValueError(
            "decay must be given with bias correction, and only then, because optax "
            "stores the moments uncorrected and the correction depends on it, but it "
            f"was {decay}, and opt_state has a {type(moments).__name__}."
        )
    states = [moments] if is_corrected else []
    states += [found[name] for name in (_SCHEDULE, _INJECTED) if name in found]
    step_count = _agree_on_count([state.count for state in states], count)
    correction = _compute_correction(decay, step_count)

    def correct(x: NumpyArray) -> NumpyArray:
        # Each member of a population has its own correction, along the first axis.
        return x / correction.reshape(
            correction.shape + (1,) * (x.ndim - correction.ndim)
        )

    def correct_variance(x: NumpyArray, mean: NumpyArray) -> NumpyArray:
        return to_variance(correct(x), correct(mean))

    def negate(x: NumpyArray) -> NumpyArray:
        return 0 - x  # not −0 for 0

    means: State = getattr(moments, "mu", None)
    trace: State = found.get(_TRACE)
    mu: State = None if trace is None else _map_leaves(negate, trace.trace)
    grad_mean: State = None if means is None else _map_leaves(correct, means)
    return RMSPropState(
        count=_place_count(
            np.asarray(step_count, np.int32),
            [state.count for state in states],
            jax.tree.leaves(moments.nu),
        ),
        nu=_map_leaves(correct, moments.nu)
        if means is None
        else _map_leaves(correct_variance, moments.nu, means),
        mu=mu,
        grad_mean=grad_mean,
    )


def _place_count(
    step_count: NumpyArray, counts: Sequence[object], leaves: Sequence[object]
) -> jax.Array:
    """Put the step count where optax's is, or on all devices of the moments' mesh."""
    for count in counts:
        place = getattr(count, "sharding", None)
        if isinstance(place, NamedSharding):
            return jax.device_put(step_count, place)
    for leaf in leaves:
        place = getattr(leaf, "sharding", None)
        if isinstance(place, NamedSharding):
            replicated = NamedSharding(place.mesh, PartitionSpec())
            return jax.device_put(step_count, replicated)
    return jnp.asarray(step_count)


def _compute_correction(decay: ArrayLike | None, step_count: NumpyArray) -> NumpyArray:
    """Return what to divide the moments by: 1 − decay^count, or 1 before any step."""
    if decay is None:
        return np.ones(())
    rate = np.asarray(decay, np.float64)
    if not np.all((rate >= 0) & (rate < 1)):
        raise ValueError(
            f"decay must be at least 0 and less than 1, but it was {decay}."
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # log(0), and 0·log(0)
        correction = -np.expm1(step_count * np.log(rate))
    return np.where(step_count == 0, 1.0, correction)


def _agree_on_count(own: list[jax.Array], given: int | jax.Array | None) -> NumpyArray:
    """Return the step count, or the step counts [n] of a population."""
    counts = [np.asarray(count) for count in (*own, given) if count is not None]
    for count in counts:
        if count.dtype.kind not in "iu" or np.any(count < 0):
            raise ValueError(
                "count must be the number of updates so far, an integer that is not "
                f"negative, but it was {count}."
            )
    first, *others = counts or [np.zeros((), np.int32)]
    if any(not np.array_equal(first, other) for other in others):
        found = sorted({str(count) for count in counts})
        raise ValueError(
            "count must be the number of updates so far, but there were different "
            f"ones, {' and '.join(found)}. optax's state holds the count, so leave it "
            "out."
        )
    return np.minimum(first, LARGEST_COUNT)


def _collect_states(where: str, state: object, found: dict[str, State]) -> None:
    """Collect the states of optax.rmsprop by the names of their classes.

    Raises:
        ValueError: If another state would be lost.
    """
    name = type(state).__name__
    if type(state) is tuple:
        for i, part in enumerate(state):
            _collect_states(f"{where}[{i}]", part, found)
    elif name in (*_MOMENTS, _TRACE, _SCHEDULE) and name not in found:
        found[name] = state
    elif isinstance(state, optax.InjectStatefulHyperparamsState) and not found:
        found[name] = state
        _collect_states(f"{where}.inner_state", state.inner_state, found)
    elif isinstance(state, list | dict) and jax.tree.leaves(state):
        raise ValueError(
            f"opt_state must be as optax makes it, but {where} is a {name}, as in a "
            "checkpoint that was restored without a template. Restore it with one: "
            "optax.rmsprop(...).init(params)."
        )
    elif jax.tree.leaves(state):
        parts = [where + part for part in _find_states_of_rmsprop(state)]
        raise ValueError(
            f"opt_state must be the state of one optax.rmsprop, but {where} is a "
            f"{name}, which would be lost. Give only the part of optax.rmsprop"
            + (f": {join_first(parts)}." if parts else ".")
        )


def _find_states_of_rmsprop(state: object) -> list[str]:
    """Return the paths of the states of optax.rmsprop, the chains with its moments."""

    def has_moments(x: object) -> bool:
        return type(x).__name__ in _MOMENTS

    nodes = jax.tree.leaves_with_path(state, is_leaf=has_moments)
    return [path_str(path[:-1]) for path, node in nodes if has_moments(node)]


def _map_leaves(
    formula: Callable[..., NumpyArray], tree: optax.Params, *others: optax.Params
) -> optax.Params:
    """Apply a formula, in float64, to every leaf, which stays on its devices."""

    def map_leaf(path: Path, *leaves: jax.Array) -> jax.Array | None:
        dtype = leaves[0].dtype
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"opt_state must be of real parameters, but leaf {path_str(path)} is "
                f"{dtype}. It can't be converted, because optax has one second moment "
                "for a complex number, and RMSPropState has one for each part."
            )
        if not jnp.issubdtype(dtype, jnp.inexact):
            return None  # an integer is not optimized
        wide = np.float64 if dtype == np.float64 else np.float32
        made = formula(*(to_numpy(x).astype(float) for x in leaves)).astype(wide)
        return jax.device_put(made, getattr(leaves[0], "sharding", None))

    return jax.tree.map_with_path(map_leaf, tree, *others)
