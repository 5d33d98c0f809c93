"""Named records and groups into a transformation and its state, and back.

This is the part that is the same for all formats. What reads a format makes a `Record`
of each parameter, with the moments as all other frameworks keep them, and a `Group` of
each set of settings: the dialect, and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax._error_text import (
    path_str,
)
from rmsprop_jax._optimizer.options import validate_number as number
from rmsprop_jax._optimizer.state import RMSPropState
from rmsprop_jax.checkpoints._arrays import as_array
from rmsprop_jax.checkpoints._centered import mean_square, variance
from rmsprop_jax.checkpoints._partitions import (
    masked,
    merged,
    partition,
    parts_of,
    wide,
)
from rmsprop_jax.checkpoints._rearranging import apply, check_alike, mark, marks_in

# The fields of RMSPropState that are trees like the parameters.
MOMENTS = ("nu", "mu", "grad_mean")

# A number or a schedule in place of a setting, or a list of one for each group.
InPlace: TypeAlias = optax.ScalarOrSchedule | Sequence[optax.ScalarOrSchedule]


class Record(NamedTuple):
    """One parameter. The arrays have its shape, and at least float32.

    Attributes:
        name: Its name in the other framework.
        group: The index of its group.
        steps: How many updates it has had.
        nu: E[g²], the second moment about the origin, centered too: all other
            frameworks keep it so. (Our state has the variance then.)
        mu: The momentum buffer, or None where there is none.
        grad_mean: The mean of the gradient, or None where there is none.
    """

    name: str
    group: int
    steps: int
    nu: np.ndarray
    mu: np.ndarray | None = None
    grad_mean: np.ndarray | None = None


class Group(NamedTuple):
    """The settings that some parameters share.

    Attributes:
        dialect: Of `rmsprop_jax.dialects`.
        settings: Its arguments by its own names, with the rate and the momentum.
    """

    dialect: Callable[..., optax.GradientTransformationExtraArgs]
    settings: Mapping[str, Any]

    @property
    def rate(self) -> str:
        """What the dialect calls the rate."""
        return "lr" if "lr" in self.settings else "learning_rate"


class Wording(NamedTuple):
    """How errors speak of a format.

    Attributes:
        keys: What the format calls each of `MOMENTS`.
        to_drop: How to take a parameter out of the checkpoint.
        to_join: How to put two groups together.
    """

    keys: Mapping[str, str]
    to_drop: str
    to_join: str


def from_records(
    records: Sequence[Record],
    groups: Sequence[Group],
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None,
    wording: Wording,
    learning_rate: InPlace | None = None,
    momentum: InPlace | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation, and the state that continues the records.

    With one group they are the group's own. With several they are those of an
    ``optax.partition``: ``"group_0"``, ``"group_1"`` and so on. The count is the most
    that any record has, as a parameter may join late. A moment that a record lacks is
    zeros, and one that its rule does not keep is dropped.

    Raises:
        ValueError: Where to_params does not only rearrange, leaves something out, or
            joins parameters of different groups; where the rates or the momenta do not
            fit the groups.
    """
    groups = _replaced("learning_rate", learning_rate, groups)
    groups = _replaced("momentum", momentum, groups)
    txs = [group.dialect(**group.settings) for group in groups]
    # The rule itself says which moments it keeps.
    kept = [jax.eval_shape(tx.init, jnp.zeros(1)) for tx in txs]

    keeps = [{m for m in MOMENTS if getattr(of, m) is not None} for of in kept]
    records = [_in_our_terms(record, keeps[record.group]) for record in records]

    def carried(arrays: Sequence[np.ndarray]) -> optax.Params:
        weights = {r.name: x for r, x in zip(records, arrays, strict=True)}
        return apply("to_params", to_params, weights)

    def tree(moment: str) -> optax.Params | None:
        if not any(moment in of for of in keeps):
            return None
        arrays = [getattr(record, moment) for record in records]
        made = carried(
            [
                np.zeros_like(record.nu) if array is None else array
                for record, array in zip(records, arrays, strict=True)
            ]
        )
        check_alike(marked, made, wording.keys[moment])
        # A copy: the other framework may go on with its own memory.
        return jax.tree.map(jnp.array, made)

    marked = carried([np.full_like(r.nu, mark(n)) for n, r in enumerate(records)])
    owners = _groups_of_leaves(marked, records, wording)
    trees = {moment: tree(moment) for moment in MOMENTS}
    count = max((record.steps for record in records), default=0)
    states = []
    for g, of in enumerate(keeps):
        kept = {m: t if m in of else None for m, t in trees.items()}
        if len(groups) > 1:
            kept = {m: masked(t, owners, g) for m, t in kept.items()}
        # Each has a count of its own, as all of the state may be donated.
        states.append(RMSPropState(jnp.array(count, jnp.int32), **kept))
    if len(groups) == 1:
        return txs[0], states[0]
    return partition(txs, states, marked, owners)


def to_records(
    opt_state: optax.OptState,
    from_params: Callable[[Any], Mapping[str, npt.ArrayLike]] | None,
    group_of: Mapping[str, int],
) -> list[Record]:
    """A record of each parameter of a state: the inverse of `from_records`.

    Args:
        opt_state: An `RMSPropState`, or the state of an ``optax.partition`` of them.
        from_params: The inverse of ``to_params``.
        group_of: The names that from_params must make, each with its group in the other
            framework. The group counts only where an array has no elements; the others
            show theirs themselves.

    Returns:
        The records, in the order of the names. Their ``group`` is that of the state.

    Raises:
        ValueError: Where from_params makes other names, does not only rearrange, or
            makes a parameter of leaves of several groups.
        TypeError: Where the state is another one.
    """
    parts = parts_of(opt_state)

    def carried(trees: Sequence[optax.Params]) -> Mapping[str, npt.ArrayLike]:
        made: Any = apply("from_params", from_params, merged(trees))
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

    marked = carried(
        [
            jax.tree.map(partial(jnp.full_like, fill_value=mark(n)), wide(part, "nu"))
            for n, part in enumerate(parts)
        ]
    )
    arrays = {
        moment: carried([wide(part, moment) for part in parts])
        for moment in MOMENTS
        if any(getattr(part, moment) is not None for part in parts)
    }
    counts = [int(part.count) for part in parts]
    records = []
    for name, group in group_of.items():
        found = marks_in("from_params", repr(name), marked[name], len(parts))
        if len(found) > 1:
            raise ValueError(
                f"from_params must keep the groups apart, but it made {name!r} of "
                f"leaves of {len(found)} groups."
            )
        g = next(iter(found), min(group, len(parts) - 1))
        moments = {
            moment: as_array(made[name])
            for moment, made in arrays.items()
            if getattr(parts[g], moment) is not None
        }
        if "grad_mean" in moments:
            moments["nu"] = mean_square(moments["nu"], moments["grad_mean"])
        records.append(Record(name, g, counts[g], **moments))
    return records


def _replaced(name: str, given: InPlace | None, groups: Sequence[Group]) -> list[Group]:
    """The groups with what was given in place of their rate or their momentum."""
    if given is None:
        return [*groups]
    keys = [group.rate if name == "learning_rate" else name for group in groups]
    own = [group.settings[key] for group, key in zip(groups, keys, strict=True)]
    values = [*given] if isinstance(given, list | tuple) else [given] * len(groups)
    if not isinstance(given, list | tuple) and len(set(own)) > 1:
        raise ValueError(
            f"{name} must be a list of one number or schedule for each group, as the "
            f"groups have their own, {own}, which one for all would drop, but it was "
            f"{given!r}."
        )
    if len(values) != len(groups):
        raise ValueError(
            f"{name} must have one number or schedule for each of the {len(groups)} "
            f"groups, but it had {len(values)}."
        )
    values = [value if callable(value) else number(name, value) for value in values]
    return [
        group._replace(settings={**group.settings, key: value})
        for group, key, value in zip(groups, keys, values, strict=True)
    ]


def _moments_of(tx: optax.GradientTransformation) -> set[str]:
    """Which of `MOMENTS` a rule keeps, as it says itself."""
    state = jax.eval_shape(tx.init, jnp.zeros(1))
    return {moment for moment in MOMENTS if getattr(state, moment) is not None}


def _in_our_terms(record: Record, keeps: AbstractSet[str]) -> Record:
    """The record with the variance for E[g²], if its rule is centered."""
    if "grad_mean" in keeps and record.grad_mean is not None:
        return record._replace(nu=variance(record.nu, record.grad_mean))
    return record


def _groups_of_leaves(
    marked: optax.Params, records: Sequence[Record], wording: Wording
) -> list[int]:
    """The group that each leaf of to_params is of, by the marks of its parameters."""
    groups, used = [], [0] * len(records)
    for path, leaf in jax.tree_util.tree_leaves_with_path(marked):
        where = f"leaf {path_str(path)}"
        found = marks_in("to_params", where, leaf, len(records))
        owners = [records[n] for n in sorted(found)]
        mixed = sorted({record.group for record in owners})
        if len(mixed) > 1:
            raise ValueError(
                "to_params must keep parameters of different groups apart, but its "
                f"{where} is made of {_names(owners)}, of the groups {mixed}, which "
                f"may differ in their settings. {wording.to_join}"
            )
        for n, times in found.items():
            used[n] += times
        groups.append(mixed[0] if mixed else 0)
    lost = [r for r, times in zip(records, used, strict=True) if times < r.nu.size]
    if lost:
        raise ValueError(
            f"to_params must keep all of every parameter, but it left out (some of) "
            f"{_names(lost)}, whose state would be lost. If whole parameters are "
            f"meant to go, {wording.to_drop}"
        )
    return groups


def _names(records: Sequence[Record]) -> str:
    """For errors."""
    return ", ".join(repr(record.name) for record in records)
