"""Trees held side by side."""

import jax
import numpy as np


def assert_same(a, b):
    """The same tree, kinds, dtypes and bits."""
    leaves, structure = jax.tree.flatten(a)
    others, other_structure = jax.tree.flatten(b)
    assert structure == other_structure
    for x, y in zip(leaves, others, strict=True):
        assert type(x) is type(y)
        if isinstance(x, np.ndarray | jax.Array):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x == y


def assert_near(a, b, tolerance):
    """Leaf by leaf, relative to the leaf."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x, float), np.asarray(y, float)
        error = np.linalg.norm(x - y) / np.linalg.norm(y)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)
