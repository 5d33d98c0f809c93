"""Every way to store a leaf; and that a new one is one more `Format`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.encoding import encoded, init

import rmsprop_jax
from rmsprop_jax._optimizer import storage

pytestmark = pytest.mark.numerics

# In 16 bits of a fixed point: a format that nobody needs.
FIXED_POINT = storage.Format(
    state_dtypes=("int16",),
    stored_dtypes=("int16",),
    is_rounded=True,
    initial_dtype=lambda field, state_dtype: state_dtype,
    encode=lambda x, dtype, make_bits: jnp.floor(
        x.astype(jnp.float32) * 1024 + make_bits().astype(jnp.float32) * 2.0**-16
    ).astype(dtype),
    decode=lambda x: x.astype(jnp.float32) / 1024,
)


def test_a_new_format_is_one_more_in_the_tuple(monkeypatch):
    monkeypatch.setattr(storage, "FORMATS", (*storage.FORMATS, FIXED_POINT))
    tx: Any = rmsprop_jax.rmsprop(0.1, momentum=0.9, state_dtype="int16")
    p = {"w": jnp.linspace(0.5, 2.0, 4096).reshape(64, 64), "b": jnp.ones(3)}
    exact: Any = rmsprop_jax.rmsprop(0.1, momentum=0.9)

    def after_twenty(tx):
        state, updates = tx.init(p), p
        for _ in range(20):
            updates, state = jax.jit(tx.update)(p, state, p)
        return np.asarray(updates["w"]).mean(), state

    mean, state = after_twenty(tx)
    assert state.nu["w"].dtype == state.mu["b"].dtype == jnp.int16
    np.testing.assert_allclose(mean, after_twenty(exact)[0], rtol=0.05)


def test_every_format_is_offered():
    for name in ("float64", "float32", "bfloat16"):
        with pytest.raises(ValueError, match=f"must be .*'{name}'.* but it was 'int4'"):
            rmsprop_jax.rmsprop(state_dtype="int4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("field", ["nu", "mu", "grad_mean"])
def test_every_leaf_has_the_shape_of_its_parameter(dtype, field):
    for shape in ((), (3,), (64, 64), (0, 4)):
        x = jnp.full(shape, 0.5, jnp.float32)
        assert init(x, dtype, field).shape == shape
        decoded = storage.decode(encoded(x, dtype, field))
        assert decoded.shape == shape
        assert decoded.dtype == jnp.float32
        np.testing.assert_array_equal(decoded, x)


def test_what_no_format_stores_is_refused():
    tx: Any = rmsprop_jax.rmsprop()
    p = jnp.ones(3)
    state = tx.init(p)._replace(nu=jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match=r"of the state must have .* but it was int32"):
        tx.update(p, state)


@jax.tree_util.register_pytree_with_keys_class
class Boxed:
    """A node of a tree that looks like its array, as nnx.Param does."""

    def __init__(self, value):
        self.value = value

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaves_may_be_boxed(dtype, state_dtype):
    p = {"w": Boxed(jnp.ones((64, 64), dtype))}
    tx: Any = rmsprop_jax.rmsprop(
        0.1, momentum=0.9, weight_decay=0.1, state_dtype=state_dtype
    )
    updates, state = tx.update(p, tx.init(p), p)
    assert jax.tree.structure(updates) == jax.tree.structure(p)
    assert isinstance(state.nu["w"], Boxed)
