"""Runs that go on here with given gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def continued(
    moved: Mapping[str, tuple[Any, Any, Any]], gradients: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and states of several runs by name after more steps.

    Args:
        moved: The transformation, the state and the parameters of each.
        gradients: Of each step: a tree like the parameters of each run.
    """
    params = {name: run[2] for name, run in moved.items()}
    states = {name: run[1] for name, run in moved.items()}

    @jax.jit  # one program for all: it is compiled once
    def step(gradients, states, params):
        new_params, new_states = {}, {}
        for name, (tx, _, _) in moved.items():
            p = params[name]
            g = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), gradients[name], p)
            updates, new_states[name] = tx.update(g, states[name], p)
            new_params[name] = optax.apply_updates(p, updates)
        return new_params, new_states

    for of_step in gradients:
        params, states = step(of_step, states, params)
    return params, states


def far(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The largest difference, as a part of the largest parameter."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(w).max() for w in theirs.values())
    return max(np.abs(ours[n] - w).max() for n, w in theirs.items()) / largest
