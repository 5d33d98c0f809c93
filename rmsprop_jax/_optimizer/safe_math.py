"""Arithmetic that stays finite, with its derivatives. The figures are for float32.

Each function uses as few operations as possible, because every operation of a leaf adds
to the compile time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def clip_to_finite_square(g: jax.Array) -> jax.Array:
    """Clip g to ±2⁶², so that its square is finite.

    The difference of two clipped numbers has a finite square too.
    """
    return _clip_to_power(g, jnp.finfo(g.dtype).maxexp // 2 - 2)


@jax.custom_jvp
def safe_sqrt(z: jax.Array) -> jax.Array:
    """Return √z for z ≥ 0, with derivatives of 0 instead of ∞ at 0."""
    return jnp.sqrt(z)


@safe_sqrt.defjvp
def _(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    def guarded_sqrt(z: jax.Array) -> jax.Array:
        return jnp.where(z == 0, 0, jnp.sqrt(jnp.where(z == 0, 1, z)))

    return jax.jvp(guarded_sqrt, primals, tangents)


def safe_divide(g: jax.Array, d: jax.Array) -> jax.Array:
    """Return g/d clipped to ±2¹⁰⁰, and 0 where d is 0.

    The clip keeps a momentum buffer of such quotients finite too.
    """
    x = g / jnp.where(d == 0, 1, d)
    return jnp.where(d == 0, 0, _clip_to_power(x, jnp.finfo(x.dtype).maxexp - 28))


def _clip_to_power(x: jax.Array, exponent: int) -> jax.Array:
    largest = jnp.asarray(2.0**exponent, x.dtype)
    return lax.clamp(-largest, x, largest)
