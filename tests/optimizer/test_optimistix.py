"""A new value does not compile again, because equinox finds options that are arrays."""

import importlib

import jax.numpy as jnp
import pytest

from rmsprop_jax import precision, rmsprop

TRANSFORMATIONS = {
    "learning_rate": lambda x: rmsprop(x, momentum=0.9),
    "alpha": lambda x: rmsprop(0.1, alpha=x, centered=True),
    "bfloat16": lambda x: rmsprop(x, state_dtype="bfloat16"),
    "master_weights": lambda x: precision.master_weights(rmsprop(x)),
}


@pytest.mark.live
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_optimistix_compiles_once_for_all_values(name):
    optimistix = importlib.import_module("optimistix")
    traced = []

    def loss(params, target):
        traced.append(name)
        return jnp.sum((params - target) ** 2)

    ends = []
    for value in [0.25, 0.5]:
        solver = optimistix.OptaxMinimiser(
            TRANSFORMATIONS[name](jnp.array(value)), rtol=1e-3, atol=1e-3
        )
        ends.append(
            optimistix.minimise(
                loss, solver, jnp.ones(3), jnp.arange(3.0), max_steps=5, throw=False
            ).value
        )
    assert len(traced) == 1
    assert not jnp.allclose(*ends)
