"""examples/population.py: 64 networks in one program, each as if it were alone."""

import importlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


# In float32 a sum in another order soon leads apart, where the rate is large.
@pytest.mark.usefixtures("x64")
def test_every_member_is_the_network_trained_alone(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("population")
    numbers = jnp.array(example.MEMBERS)
    assert numbers.shape == (64, 3)
    with jax.numpy_dtype_promotion("standard"):  # as the script itself has it
        images, _, labels, _ = example.load_data()
        batches = np.random.default_rng(0).integers(len(labels), size=(20, 8))
        data = images, labels, jnp.asarray(batches)
        together = example.train_all(*numbers.T, *data)
        train = jax.jit(example.train)
        alone = [jax.device_get(train(*row, *data)) for row in numbers]
    chex.assert_trees_all_equal_dtypes(alone[0]["out"], numbers)
    for name, members in together.items():
        expected = np.stack([params[name] for params in alone])
        largest = np.abs(expected).max(axis=(1, 2), keepdims=True)
        # Measured: 2.2e-13.
        assert np.all(np.abs(members - expected) <= 1e-11 * largest)
    # And all 64 differ.
    assert len(np.unique(together["out"], axis=0)) == len(numbers)
