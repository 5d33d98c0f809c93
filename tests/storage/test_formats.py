"""Every way to keep a leaf; and that a new one is one file."""

import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax
from rmsprop_jax import _storage

# In 16 bits of a fixed point: a format that nobody needs.
FIXED_POINT = """
import jax
import jax.numpy as jnp

DTYPES = HELD = ("int16",)
ROUNDS = True

def start(full, field, dtype):
    return jnp.round(full * 1024).astype(dtype)

def keep(x, dtype, bits):
    up = bits().astype(jnp.float32) * 2.0**-16
    return jnp.floor(x.astype(jnp.float32) * 1024 + up).astype(dtype)

def read(kept):
    return kept.astype(jnp.float32) / 1024
"""


@pytest.fixture
def with_fixed_point(tmp_path, monkeypatch):
    """The package with one more file in `formats`."""
    (tmp_path / "fixed_point.py").write_text(FIXED_POINT)
    paths = [*_storage.formats.__path__, str(tmp_path)]
    monkeypatch.setattr(_storage.formats, "__path__", paths)
    importlib.reload(_storage)
    yield
    monkeypatch.undo()
    sys.modules.pop("rmsprop_jax._storage.formats.fixed_point")
    importlib.reload(_storage)


@pytest.mark.usefixtures("with_fixed_point")
def test_a_new_format_is_one_file():
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
    assert _storage.dtypes() == ["float64", "float32", "bfloat16"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("field", ["nu", "mu", "grad_mean"])
def test_every_leaf_has_the_shape_of_its_parameter(dtype, field):
    for shape in ((), (3,), (64, 64), (0, 4)):
        full = jnp.full(shape, 0.5, jnp.float32)
        kept = _storage.started(full, field, dtype)
        assert kept.shape == shape
        read = _storage.read(kept)
        assert read.dtype == jnp.float32
        np.testing.assert_allclose(read, full, rtol=1e-6)


def test_what_no_format_holds_is_refused():
    tx: Any = rmsprop_jax.rmsprop()
    p = jnp.ones(3)
    state = tx.init(p)._replace(nu=jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match=r"of the state must be of .* but it was int32"):
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
