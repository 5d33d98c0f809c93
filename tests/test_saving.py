"""Our state saved by orbax and by flax, and loaded as it was, to the bit.

The layout of a saved state is the names of its fields.
"""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rmsprop_jax import RMSPropState, rmsprop
from rmsprop_jax.checkpoints import from_torch

CONFIGURATIONS = {
    "plain": {},
    "all": {"momentum": 0.9, "centered": True},
    "bfloat16": {"momentum": 0.9, "state_dtype": "bfloat16"},
}


def test_fields_are_the_layout_of_saved_states():
    """Renaming one makes every saved state unreadable: then also say how to read it."""
    assert RMSPropState._fields == ("count", "nu", "mu", "grad_mean")


def params():
    return {
        "dense": {"kernel": jnp.arange(32.0).reshape(16, 2), "bias": jnp.ones(8)},
        "embedding": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64),
        "fourier": jnp.full(8, 1 + 2j, jnp.complex64),
        "steps": jnp.arange(8),
    }


def trained(tx, p):
    """A state after two steps, with numbers that decimal notation would round."""
    state = tx.init(p)
    for scale in (1 / 3, 1e-20):
        gradients = jax.tree.map(
            lambda x, scale=scale: (
                jnp.sin(x) * scale
                if jnp.issubdtype(x.dtype, jnp.inexact)
                else jnp.zeros(x.shape, jax.dtypes.float0)
            ),
            {k: v for k, v in p.items() if k != "steps"},
        )
        gradients["steps"] = np.zeros(8, jax.dtypes.float0)
        _, state = tx.update(gradients, state, p)
    return state


def sharded(tree):
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
    return jax.tree.map(
        lambda x: jax.device_put(x, sharding) if x.ndim else x,
        tree,
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("place", [lambda x: x, sharded], ids=["one", "sharded"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_orbax(name, place, tmp_path):
    tx = rmsprop(**CONFIGURATIONS[name])
    p = params()
    state = place(trained(tx, p))
    template = jax.tree.map(
        lambda like, x: jax.ShapeDtypeStruct(
            like.shape, like.dtype, sharding=x.sharding
        ),
        jax.eval_shape(tx.init, p),
        state,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", template)
    assert_same(restored, state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.parametrize("place", [lambda x: x, sharded], ids=["one", "sharded"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_flax(name, place):
    tx = rmsprop(**CONFIGURATIONS[name])
    p = params()
    state = place(trained(tx, p))
    data = flax.serialization.to_bytes(state)
    assert_same(flax.serialization.from_bytes(jax.eval_shape(tx.init, p), data), state)


def test_state_of_several_groups(tmp_path):
    """That of optax.partition, as checkpoints.from_torch makes it."""
    settings = {"lr": 0.1, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0}
    state_dict = {
        "state": {
            i: {"step": 3, "square_avg": np.full(4, i + 1 / 3, np.float32)}
            for i in range(2)
        },
        "param_groups": [{**settings, "params": [i]} for i in range(2)],
    }
    tx, state = from_torch(state_dict, names=["a", "b"])
    p = {"a": jnp.ones(4), "b": jnp.ones(4)}
    template = jax.eval_shape(tx.init, p)
    data = flax.serialization.to_bytes(state)
    assert_same(flax.serialization.from_bytes(template, data), state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        assert_same(checkpointer.restore(tmp_path / "state", template), state)
