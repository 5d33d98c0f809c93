"""Streams of gradients, and the state after them."""

import jax
import jax.numpy as jnp
import numpy as np
from support.untyped import rmsprop


def gradients(steps, n, sigma=0.0, drop=1.0, seed=0):
    """Noise of lognormal scales; in the second half of another size."""
    rng = np.random.default_rng(seed)
    scale = np.exp(sigma * rng.normal(size=n))
    half = np.where(np.arange(steps) < steps // 2, 1.0, drop)[:, None]
    return jnp.asarray(rng.normal(size=(steps, n)) * scale * half, jnp.float32)


def run(gs, **options):
    """The state after all gradients, and the mean of nu after each."""
    tx = rmsprop(**options)

    def step(state, g):
        _, state = tx.update(g, state)
        return state, jnp.mean(state.nu, dtype=jnp.float32)

    return jax.lax.scan(step, tx.init(gs[0]), gs)
