"""Parameters and groups of another framework into ``(tx, opt_state)``, and back.

This part is the same for all formats. A format describes each parameter by a
`ParamState`, with the moments as the framework has them, and each set of settings by a
`Group`: the dialect and its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import Sharding

from rmsprop_jax._optimizer.options import Mask, validate_number
from rmsprop_jax._optimizer.state import RMSPropState
from rmsprop_jax._optimizer.transform import get_config, make_transformation_of_config
from rmsprop_jax.checkpoints._convert.arrays import (
    NumpyArray,
    Value,
    make_zeros_like,
    to_numpy,
    to_numpy_each,
)
from rmsprop_jax.checkpoints._convert.partitions import (
    decode_moment,
    make_partition,
    mask_leaves,
    merge_masked,
    split_partition,
)
from rmsprop_jax.checkpoints._convert.placement import (
    Finish,
    Part,
    Places,
    Shardings,
    Stored,
    keep_arrays,
    place_leaves,
    put_scalar,
    resolve_shardings,
)
from rmsprop_jax.checkpoints._convert.rearrangement import (
    TracedTree,
    apply_function,
    check_alike,
    count_marks,
    make_mark,
    trace_to_params,
)
from rmsprop_jax.checkpoints._convert.second_moment import to_mean_square, to_variance

Moment: TypeAlias = Literal["nu", "mu", "grad_mean"]
MOMENTS: tuple[Moment, ...] = ("nu", "mu", "grad_mean")
# A variance is made of the first two, so they are read together.
_READ_TOGETHER: tuple[tuple[Moment, ...], ...] = (("nu", "grad_mean"), ("mu",))

ToParams: TypeAlias = Callable[[dict[str, NumpyArray]], optax.Params]
FromParams: TypeAlias = Callable[[Any], Mapping[str, npt.ArrayLike]]
# Arguments by their names, or by a framework's names.
Settings: TypeAlias = dict[str, Any]
# A number or a schedule in place of a setting, or a list of one for each group.
Override: TypeAlias = optax.ScalarOrSchedule | Sequence[optax.ScalarOrSchedule]
Run: TypeAlias = tuple[optax.GradientTransformationExtraArgs, optax.OptState]


class ParamState(NamedTuple):
    """The state of one parameter.

    Attributes:
        name: Its name in the other framework.
        group: The index of its group.
        step_count: How many updates it has had.
        nu: E[g²], the second moment about the origin. If centered, all other frameworks
            still keep it, but `RMSPropState` holds the variance.
        mu: The momentum buffer, or None if there is none.
        grad_mean: The mean of the gradient, or None if there is none.
    """

    name: str
    group: int
    step_count: int
    nu: Value
    mu: Value | None = None
    grad_mean: Value | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """The settings that some parameters share.

    Attributes:
        dialect: One of `rmsprop_jax.dialects`, or `rmsprop`.
        learning_rate: The dialect's first argument, whose name differs among dialects.
        settings: Its other arguments by its own names.
        weight_decay_mask: Which leaves decay, by default all.
    """

    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    learning_rate: optax.ScalarOrSchedule
    settings: Settings
    weight_decay_mask: Mask | None = None

    @functools.cached_property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """The transformation."""
        tx = self.dialect(self.learning_rate, **self.settings)
        if self.weight_decay_mask is None:
            return tx
        # No dialect takes a mask, because no framework's optimizer does.
        config = get_config(tx)._replace(weight_decay_mask=self.weight_decay_mask)
        return make_transformation_of_config(config)

    @functools.cached_property
    def moments(self) -> tuple[Moment, ...]:
        """Which moments the rule keeps."""
        rule = get_config(self.tx).rule
        kept = {"nu": True, "mu": rule.has_momentum, "grad_mean": rule.centered}
        return tuple(moment for moment in MOMENTS if kept[moment])


class ErrorHints(NamedTuple):
    """The words of a format for errors.

    Attributes:
        keys: What the format calls each of `MOMENTS`.
        to_drop: How to take a parameter out of the checkpoint.
        to_join: How to put two groups together.
    """

    keys: Mapping[Moment, str]
    to_drop: str
    to_join: str


def make_run(
    what: str,
    params: Sequence[ParamState],
    groups: Sequence[Group],
    to_params: ToParams | None,
    hints: ErrorHints,
    learning_rate: Override | None = None,
    momentum: Override | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Return the transformation, and the state that resumes the parameters' runs.

    If all groups have the same settings, they are those of one group. Otherwise they
    are those of an ``optax.partition`` with a label for each distinct group:
    ``"group_0"``, ``"group_1"`` and so on. The step count is the largest of any
    parameter, because a parameter may join late. A moment that a parameter lacks is
    zeros, and one that its rule does not keep is dropped.

    Args:
        what: What errors call the checkpoint.
        params: The parameters.
        groups: The groups.
        to_params: The user's function.
        hints: The words of the format for errors.
        learning_rate: In place of that of the groups.
        momentum: In place of that of the groups.
        shardings: Where the leaves belong, as `resolve_shardings` takes it.

    Raises:
        ValueError: If to_params does not only rearrange, leaves something out, or joins
            parameters of different groups; if shardings do not fit what it makes; if
            the learning rates or the momenta do not fit the groups; if a second moment
            is negative or NaN.
    """
    _check_moments(what, params, hints)
    groups = override_learning_rate(learning_rate, groups)
    groups = override_momentum(momentum, groups)
    labels, groups, group_of = merge_equal_groups(groups)
    params = [p._replace(group=group_of[p.group]) for p in params]
    kept = [group.moments for group in groups]

    traced = trace_to_params(
        to_params, {param.name: param.nu for param in params}, hints.keys["nu"]
    )
    group_of_leaf = _find_groups_of_leaves(traced, params, hints)
    places = _find_places(shardings, traced)
    saved = _SavedMoments(what, params, kept, to_params, traced, hints)
    leaves = {
        moment: of_moment
        for moments in _READ_TOGETHER
        for moment, of_moment in _place_moments(
            saved, moments, group_of_leaf, places.leaves
        ).items()
    }
    step_count = max((p.step_count for p in params), default=0)

    def make_state(group: int) -> RMSPropState:
        def own(moment: Moment) -> Any:
            if moment not in kept[group]:
                return None
            own_leaves: Sequence[object] = leaves[moment]
            if len(groups) > 1:
                own_leaves = mask_leaves(own_leaves, group_of_leaf, group)
            return traced.structure.unflatten(own_leaves)

        return RMSPropState(
            # Each has a count of its own, because all of the state may be donated.
            count=put_scalar(step_count, places.scalar),
            nu=own("nu"),
            mu=own("mu"),
            grad_mean=own("grad_mean"),
        )

    states = [make_state(group) for group in range(len(groups))]
    txs = [group.tx for group in groups]
    if len(groups) == 1:
        return txs[0], states[0]
    leaf_labels = traced.structure.unflatten(labels[group] for group in group_of_leaf)
    return make_partition(labels, txs, states, leaf_labels)


def split_run(
    opt_state: optax.OptState,
    from_params: FromParams | None,
    group_of: Mapping[str, int],
) -> Iterator[ParamState]:
    """Return the state of each parameter: the inverse of `make_run`.

    Args:
        opt_state: An `RMSPropState`, or the state of an ``optax.partition`` of them.
        from_params: The inverse of ``to_params``.
        group_of: The names that from_params must make, each with its group in the other
            framework. The group only matters if an array has no elements; the others
            show theirs themselves.

    Returns:
        The states one by one, so that the caller need not hold all of them, in the
        order of the names. Their ``group`` is that of ``opt_state``.

    Raises:
        ValueError: If from_params makes other names, does not only rearrange, or makes
            a parameter from leaves of several groups.
        TypeError: If the state is another one.
    """
    states = split_partition(opt_state)

    def map_from_params(trees: Sequence[optax.Params]) -> Mapping[str, npt.ArrayLike]:
        made: Any = apply_function("from_params", from_params, merge_masked(trees))
        if not isinstance(made, Mapping) or set(made) != set(group_of):
            given = list(made) if isinstance(made, Mapping) else []
            odd = [f"{name!r} was missing" for name in group_of if name not in given]
            odd += [f"{n!r} was unexpected" for n in given if n not in group_of]
            raise ValueError(
                "from_params must return a dictionary by the names of the parameters "
                f"of like, but {'; '.join(odd[:4])}. (Without it, the parameters must "
                "be such a dictionary.)"
            )
        return made

    def mark(state: RMSPropState, number: int) -> optax.Params:
        fill = functools.partial(jnp.full_like, fill_value=make_mark(number))
        return jax.tree.map(fill, decode_moment(state, "nu"))

    # The marks take as much memory as a moment, so they are freed first.
    marked = map_from_params([mark(state, n) for n, state in enumerate(states)])
    leaves = [(repr(name), marked[name]) for name in group_of]
    found = count_marks("from_params", leaves, len(states))
    del marked, leaves
    owners: dict[str, int] = {}
    for (name, group), counts in zip(group_of.items(), found, strict=True):
        if len(counts) > 1:
            raise ValueError(
                f"from_params must keep the groups apart, but it made {name!r} "
                f"from leaves of {len(counts)} groups."
            )
        owners[name] = next(iter(counts), min(group, len(states) - 1))
    arrays: dict[Moment, Mapping[str, npt.ArrayLike]] = {
        moment: map_from_params([decode_moment(state, moment) for state in states])
        for moment in MOMENTS
        if any(getattr(state, moment) is not None for state in states)
    }
    return _split_params(states, owners, arrays)


def _split_params(
    states: Sequence[RMSPropState],
    owners: Mapping[str, int],
    arrays: Mapping[Moment, Mapping[str, npt.ArrayLike]],
) -> Iterator[ParamState]:
    """Yield the state of each parameter, whose second moment may be a new array."""
    for name, group in owners.items():
        state = states[group]
        moments = {
            moment: to_numpy(made[name])
            for moment, made in arrays.items()
            if getattr(state, moment) is not None
        }
        if "grad_mean" in moments:
            moments["nu"] = to_mean_square(moments["nu"], moments["grad_mean"])
        yield ParamState(name, group, int(state.count), **moments)


def override_learning_rate(
    override: Override | None, groups: Sequence[Group]
) -> Sequence[Group]:
    """Return the groups with other learning rates, if any are given."""
    if override is None:
        return groups
    own = [group.learning_rate for group in groups]
    values = _spread_override("learning_rate", override, own)
    return [
        dataclasses.replace(group, learning_rate=value)
        for group, value in zip(groups, values, strict=True)
    ]


def override_momentum(
    override: Override | None, groups: Sequence[Group]
) -> Sequence[Group]:
    """Return the groups with other momenta, if any are given."""
    if override is None:
        return groups
    own = [group.settings["momentum"] for group in groups]
    values = _spread_override("momentum", override, own)
    return [
        dataclasses.replace(group, settings={**group.settings, "momentum": value})
        for group, value in zip(groups, values, strict=True)
    ]


def _spread_override(
    name: str, override: Override, own: Sequence[optax.ScalarOrSchedule]
) -> Sequence[optax.ScalarOrSchedule]:
    """Return one value for each group."""
    if isinstance(override, tuple) and hasattr(override, "learning_rate"):
        raise TypeError(
            f"{name} must be a number, a schedule, or a list of one for each group, "
            "but it was what schedules.from_torch returned, with the momentum. Unpack "
            "it: learning_rate, momentum = schedules.from_torch(...), and give both."
        )
    if isinstance(override, Sequence):
        values: list[Any] = [*override]
    elif len(set(own)) > 1:
        raise ValueError(
            f"{name} must be a list of one number or schedule for each group, because "
            f"the groups have their own, {[*own]}, which one for all would drop, but "
            f"it was {override!r}."
        )
    else:
        values = [override] * len(own)
    if len(values) != len(own):
        raise ValueError(
            f"{name} must have one number or schedule for each of the {len(own)} "
            f"groups, but it had {len(values)}."
        )
    spread: list[Any] = [x if callable(x) else validate_number(name, x) for x in values]
    return spread


def merge_equal_groups(
    groups: Sequence[Group],
) -> tuple[list[str], list[Group], list[int]]:
    """Merge groups with the same settings, whose parameters may share a leaf.

    Returns:
        A label for each distinct group, the distinct groups, and for each group the
        index of the distinct one that it became.
    """
    indices: dict[object, int] = {}
    labels: list[str] = []
    distinct: list[Group] = []
    group_of: list[int] = []
    for g, group in enumerate(groups):
        settings = {"learning_rate": group.learning_rate, **group.settings}
        # A schedule, an array or a mask is the same only if it is the same object.
        plain = (bool, int, float, str)
        key = (
            group.dialect,
            id(group.weight_decay_mask),
            *((k, v if isinstance(v, plain) else id(v)) for k, v in settings.items()),
        )
        if key not in indices:
            indices[key] = len(distinct)
            labels.append(f"group_{g}")
            distinct.append(group)
        group_of.append(indices[key])
    return labels, distinct, group_of


def _check_moments(what: str, params: Sequence[ParamState], hints: ErrorHints) -> None:
    """Raise if a moment does not hold numbers, or has another shape than the second."""
    for param in params:
        for moment in MOMENTS:
            value = getattr(param, moment)
            if value is None:
                continue
            dtype = getattr(value, "dtype", type(value).__name__)
            dtype = str(getattr(dtype, "name", dtype))
            if "float" not in dtype and "complex" not in dtype:
                raise ValueError(
                    f"{what}: {hints.keys[moment]!r} of parameter {param.name!r} must "
                    f"hold floating-point numbers, but it was of {dtype}."
                )
            if np.shape(value) != np.shape(param.nu):
                raise ValueError(
                    f"{what}: {hints.keys[moment]!r} of parameter {param.name!r} must "
                    f"have shape {np.shape(param.nu)}, as {hints.keys['nu']!r} has, "
                    f"but it had {np.shape(value)}."
                )


class _SavedMoments(NamedTuple):
    """The moments of all parameters, and what to_params makes of them.

    Attributes:
        what: What errors call the checkpoint.
        params: The parameters.
        kept: Which moments the rule of each group keeps.
        to_params: The user's function.
        traced: What it makes of parameters like these.
        hints: The words of the format for errors.
    """

    what: str
    params: Sequence[ParamState]
    kept: Sequence[Sequence[Moment]]
    to_params: ToParams | None
    traced: TracedTree
    hints: ErrorHints

    def find(self, moment: Moment) -> Stored:
        """Return what the leaves of a moment are made of."""
        values = {param.name: getattr(param, moment) for param in self.params}
        for param in self.params:
            if values[param.name] is None:
                values[param.name] = make_zeros_like(param.nu)
        check = self.check_second_moment if moment == "nu" else None
        key = self.hints.keys[moment]
        copied = _copy_leaves(self.to_params, self.traced, values, key, check)
        return Stored([*values.values()], copied)

    def check_second_moment(self, number: int, array: NumpyArray) -> None:
        """Raise if the second moment of a parameter, or a part of it, cannot be."""
        parts = (np.real(array), np.imag(array)) if np.iscomplexobj(array) else (array,)
        if not all(part.min(initial=0) >= 0 for part in parts):
            raise ValueError(
                f"{self.what}: {self.hints.keys['nu']!r} of parameter "
                f"{self.params[number].name!r} must not be negative or NaN, as the "
                "mean of squares never is, but some of it is. That run can't be "
                "resumed."
            )


def _copy_leaves(
    to_params: ToParams | None,
    traced: TracedTree,
    values: Mapping[str, Value],
    key: str,
    check: Callable[[int, NumpyArray], None] | None = None,
    *,
    exact: bool = False,
) -> dict[int, npt.ArrayLike]:
    """Return the leaves that to_params copies, for which it must be called."""
    copied = [i for i, view in enumerate(traced.views) if view is None]
    if not copied:
        return {}
    owners = sorted({n for i in copied for n in traced.counts[i]})
    each = [*values.values()]
    arrays: list[NumpyArray] = [make_zeros_like(value) for value in each]
    read = to_numpy_each([each[n] for n in owners], exact=exact)
    for n, array in zip(owners, read, strict=True):
        arrays[n] = array
        if check is not None:
            check(n, array)
    by_name = dict(zip(values, arrays, strict=True))
    made = apply_function("to_params", to_params, by_name)
    check_alike(traced, made, key)
    leaves: list[npt.ArrayLike] = jax.tree.leaves(made)
    return {i: leaves[i] for i in copied}


def _place_moments(
    saved: _SavedMoments,
    moments: Sequence[Moment],
    group_of_leaf: Sequence[int],
    shardings: Sequence[Sharding | None],
) -> dict[Moment, list[jax.Array | None]]:
    """Return the leaves of some moments; None where a group does not keep one."""
    views = saved.traced.views
    kept = [saved.kept[group] for group in group_of_leaf]
    moments = [m for m in moments if any(m in of_group for of_group in saved.kept)]
    if not moments:
        return {}
    wanted = [i for i, own in enumerate(kept) if {*own} & {*moments}]

    def finish(
        parts: Sequence[Part], arrays: Sequence[Sequence[NumpyArray]]
    ) -> list[list[NumpyArray | None]]:
        """Check second moments, and make variances of them."""
        finished: list[list[NumpyArray | None]] = [[] for _ in moments]
        for part, *own in zip(parts, *arrays, strict=True):
            found = dict(zip(moments, own, strict=True))
            view, moments_kept = views[part.leaf], kept[part.leaf]
            if view is not None:
                saved.check_second_moment(view.number, found["nu"])
            if "grad_mean" in moments_kept:
                found["nu"] = to_variance(found["nu"], found["grad_mean"])
            for of_moment, moment in zip(finished, moments, strict=True):
                of_moment.append(found[moment] if moment in moments_kept else None)
        return finished

    placed = place_leaves(
        wanted,
        saved.traced.shapes,
        shardings,
        views,
        [saved.find(moment) for moment in moments],
        finish if "nu" in moments else keep_arrays,
    )
    return dict(zip(moments, placed, strict=True))


def place_tree(
    to_params: ToParams | None,
    values: Mapping[str, Value],
    key: str,
    shardings: Shardings | None,
    finish: Finish = keep_arrays,
    *,
    exact: bool = False,
) -> optax.Params:
    """Return what to_params makes of values, where its leaves belong.

    Args:
        to_params: The user's function.
        values: The values, by the names of the parameters.
        key: What errors call the values.
        shardings: Where the leaves belong.
        finish: Maps what was read to what is put.
        exact: Whether the dtype is that of the value, or at least float32.
    """
    traced = trace_to_params(to_params, values, key)
    copied = _copy_leaves(to_params, traced, values, key, exact=exact)
    (leaves,) = place_leaves(
        range(len(traced.views)),
        traced.shapes,
        _find_places(shardings, traced).leaves,
        traced.views,
        [Stored([*values.values()], copied)],
        finish,
        exact=exact,
    )
    return traced.structure.unflatten(leaves)


def _find_places(shardings: Shardings | None, traced: TracedTree) -> Places:
    if shardings is None:
        return Places([None] * len(traced.paths), None)
    return resolve_shardings(shardings, traced.paths, traced.shapes)


def _find_groups_of_leaves(
    traced: TracedTree, params: Sequence[ParamState], hints: ErrorHints
) -> list[int]:
    """Return the group of each leaf of to_params.

    Raises:
        ValueError: If a leaf is made of parameters of several groups, or a parameter is
            left out.
    """
    groups: list[int] = []
    used = [0] * len(params)
    for name, counts in zip(traced.names, traced.counts, strict=True):
        owners = [params[n] for n in sorted(counts)]
        mixed = sorted({param.group for param in owners})
        if len(mixed) > 1:
            raise ValueError(
                "to_params must keep parameters of different groups apart, but its "
                f"leaf {name} is made of {_join_names(owners)}, whose groups differ in "
                f"their settings. {hints.to_join}"
            )
        for n, count in counts.items():
            used[n] += count
        groups.append(mixed[0] if mixed else 0)
    sizes = [np.prod(np.shape(param.nu), dtype=int) for param in params]
    lost = [p for p, n, size in zip(params, used, sizes, strict=True) if n < size]
    if lost:
        raise ValueError(
            f"to_params must keep all of every parameter, but it left out (some of) "
            f"{_join_names(lost)}, whose state would be lost. To drop whole "
            f"parameters, {hints.to_drop}"
        )
    return groups


def _join_names(params: Sequence[ParamState]) -> str:
    return ", ".join(repr(param.name) for param in params)
