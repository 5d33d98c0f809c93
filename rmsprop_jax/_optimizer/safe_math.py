"""Arithmetic that stays finite, with its derivatives. The figures are those of float32.

They are of as few operations as it takes: each one more takes longer to compile.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def with_finite_square(g: jax.Array) -> jax.Array:
    """g, but no farther from 0 than 2⁶².

    The difference of two such numbers has a finite square too.
    """
    return _within(g, jnp.finfo(g.dtype).maxexp // 2 - 2)


@jax.custom_jvp
def root(z: jax.Array) -> jax.Array:
    """√z for z ≥ 0, with derivatives of 0 instead of ∞ at 0."""
    return jnp.sqrt(z)


@root.defjvp
def _(z: tuple[jax.Array], change: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    def guarded(z: jax.Array) -> jax.Array:
        return jnp.where(z == 0, 0, jnp.sqrt(jnp.where(z == 0, 1, z)))

    return jax.jvp(guarded, z, change)


def quotient(g: jax.Array, d: jax.Array) -> jax.Array:
    """g/d, but no farther from 0 than 2¹⁰⁰, and 0 where d is 0.

    A momentum of such quotients is finite too.
    """
    x = g / jnp.where(d == 0, 1, d)
    return jnp.where(d == 0, 0, _within(x, jnp.finfo(x.dtype).maxexp - 28))


def _within(x: jax.Array, exponent: int) -> jax.Array:
    most = jnp.asarray(2.0**exponent, x.dtype)
    return lax.clamp(-most, x, most)
