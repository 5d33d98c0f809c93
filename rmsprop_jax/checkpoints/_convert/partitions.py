"""Join the states of several groups as ``optax.partition`` does, and split them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer.state import RMSPropState
from rmsprop_jax._optimizer.storage import decode


def make_partition(
    labels: Sequence[str],
    transformations: Sequence[optax.GradientTransformationExtraArgs],
    states: Sequence[RMSPropState],
    labels_of_leaves: optax.Params,
) -> tuple[optax.GradientTransformationExtraArgs, optax.PartitionState]:
    """Join the transformations of several groups, and their masked states.

    Args:
        labels: One for each group.
        transformations: One for each group.
        states: One for each group, masked by `mask_leaves`.
        labels_of_leaves: A pytree like the parameters, with a label for each leaf.
    """
    # Wrapped in a function, because optax would call a callable tree such as a module.
    tx = optax.partition(
        dict(zip(labels, transformations, strict=True)), lambda _: labels_of_leaves
    )
    # `partition` has each group's transformation under `masked`.
    inner = [optax.MaskedState(state) for state in states]
    return tx, optax.PartitionState(dict(zip(labels, inner, strict=True)))


def split_partition(opt_state: object) -> list[RMSPropState]:
    """Return the state of each group, or the one state if there are no groups."""
    opt_state = _strip_flax_variables(opt_state)
    inner: list[object] = [opt_state]
    if isinstance(opt_state, optax.PartitionState):
        groups = opt_state.inner_states.values()
        inner = [getattr(state, "inner_state", state) for state in groups]
    states = [state for state in inner if isinstance(state, RMSPropState)]
    if len(states) < len(inner):
        raise TypeError(
            "opt_state must be an RMSPropState, or the state of an optax.partition of "
            f"rmsprop, but it was {type(opt_state).__name__}. If you have the state of "
            "a chain, give the part that is one of these."
        )
    return states


def _strip_flax_variables(opt_state: object) -> object:
    """Return the state without the variables that ``nnx.Optimizer`` wraps leaves in."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return opt_state  # there are no variables without nnx

    def is_variable(x: object) -> bool:
        return isinstance(x, nnx.Variable)

    def strip(x: object) -> object:
        if not is_variable(x):
            return x
        (value,) = jax.tree.leaves(x, is_leaf=lambda y: y is not x)
        return value

    return jax.tree.map(strip, opt_state, is_leaf=is_variable)


def mask_leaves(
    leaves: Sequence[object], groups: Sequence[int], group: int
) -> list[object]:
    """Return the leaves of one group, and masks in place of the others."""
    return [
        leaf if its_group == group else optax.MaskedNode()
        for leaf, its_group in zip(leaves, groups, strict=True)
    ]


def merge_masked(trees: Sequence[optax.Params]) -> optax.Params:
    """Return one tree from those that `mask_leaves` made of each group."""

    def first_unmasked(*leaves: object) -> object:
        return next((x for x in leaves if not _is_masked(x)), leaves[0])

    return jax.tree.map(first_unmasked, *trees, is_leaf=_is_masked)


def _is_masked(x: object) -> bool:
    return isinstance(x, optax.MaskedNode)


def decode_moment(state: RMSPropState, moment: str) -> optax.Params:
    """Return one moment, at least float32; zeros if the state does not have it."""
    tree = getattr(state, moment)
    if tree is None:
        return jax.tree.map(jnp.zeros_like, decode_moment(state, "nu"))
    return jax.tree.map(decode, tree)
