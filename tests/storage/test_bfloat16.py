"""bfloat16: what it holds exactly, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from support.keeping import kept

from rmsprop_jax._storage.formats import bfloat16

TINY = float(jnp.finfo(jnp.bfloat16).smallest_subnormal)
LARGEST = float(jnp.finfo(jnp.bfloat16).max)


def test_what_bfloat16_holds_stays():
    exact = [0.0, -0.0, 1.0, -1.0078125, TINY, -TINY, 5 * TINY, LARGEST, -LARGEST]
    x = np.repeat(np.array([*exact, np.inf, -np.inf, np.nan], np.float32), 100)
    r = kept(x, "bfloat16", "mu", step=3).astype(np.float32)
    np.testing.assert_array_equal(r.view(np.uint32)[:-100], x.view(np.uint32)[:-100])
    assert np.all(np.isnan(r[-100:]))


def test_beyond_the_largest_it_is_the_largest():
    beyond = np.array([3.4e38, -3.4e38], np.float32)
    r = kept(np.repeat(beyond, 1000), "bfloat16", "mu", step=1)
    assert set(r) == {LARGEST, -LARGEST}


def test_derivatives_pass_as_if_not_rounded():
    def value(x):
        return bfloat16.rounded(x, jnp.uint32(77)).astype(jnp.float32)

    assert jax.grad(value)(1.001) == 1.0
