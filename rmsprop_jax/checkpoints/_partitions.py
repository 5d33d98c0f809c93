"""The states of several groups in one, as ``optax.partition`` has them, and apart."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer import storage
from rmsprop_jax._optimizer.state import RMSPropState


def partition(
    rules: Sequence[optax.GradientTransformationExtraArgs],
    states: Sequence[RMSPropState],
    params: optax.Params,
    owners: Sequence[int],
) -> tuple[optax.GradientTransformationExtraArgs, optax.PartitionState]:
    """One transformation of each group's, and one state of their `masked` ones.

    Args:
        rules: The transformation of each group.
        states: The state of each group.
        params: A tree like the parameters.
        owners: The group of each of its leaves.
    """
    labels = [f"group_{g}" for g in range(len(rules))]
    labels_of_leaves = jax.tree.structure(params).unflatten(labels[g] for g in owners)
    # A tree that can be called, such as a module, would be called for the labels.
    tx = optax.partition(
        dict(zip(labels, rules, strict=True)), lambda _: labels_of_leaves
    )
    # `partition` has each group's transformation under `masked`.
    inner = [optax.MaskedState(state) for state in states]
    return tx, optax.PartitionState(dict(zip(labels, inner, strict=True)))


def parts_of(opt_state: optax.OptState) -> list[RMSPropState]:
    """The inverse: the state of each group."""
    inner = [opt_state]
    if isinstance(opt_state, optax.PartitionState):
        groups = opt_state.inner_states.values()
        inner = [getattr(state, "inner_state", state) for state in groups]
    parts = [state for state in inner if isinstance(state, RMSPropState)]
    if len(parts) < len(inner):
        raise TypeError(
            "opt_state must be an RMSPropState, or the state of an optax.partition of "
            f"rmsprop, but it was {type(opt_state).__name__}. Of a chain, give the "
            "part that is."
        )
    return parts


def masked(
    tree: optax.Params | None, owners: Sequence[int], owner: int
) -> optax.Params | None:
    """The tree with the leaves of one group, as ``optax.partition`` hides the rest."""
    if tree is None:
        return None
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        leaf if of == owner else optax.MaskedNode()
        for leaf, of in zip(leaves, owners, strict=True)
    )


def merged(trees: Sequence[optax.Params]) -> optax.Params:
    """The inverse: one tree of those that `masked` made for each group."""

    def is_masked(x: object) -> bool:
        return isinstance(x, optax.MaskedNode)

    def unmasked(*leaves: jax.Array | optax.MaskedNode) -> jax.Array | optax.MaskedNode:
        return next((x for x in leaves if not is_masked(x)), leaves[0])

    return jax.tree.map(unmasked, *trees, is_leaf=is_masked)


def wide(part: RMSPropState, moment: str) -> optax.Params:
    """One tree of a state, at least float32; zeros where the state has none."""
    tree = getattr(part, moment)
    if tree is None:
        return jax.tree.map(jnp.zeros_like, wide(part, "nu"))
    return jax.tree.map(storage.decode, tree)
