"""One leaf's update: the rule between what is stored and what is computed with.

It is compiled by itself, so that leaves of one shape are traced once, and outside of
``jit`` an update is one call for each leaf. All that differs from leaf to leaf or from
step to step is an array: a Python number or a leaf's own number in it would make each
leaf a program of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rmsprop_jax import _rule, _storage
from rmsprop_jax._rule import Formula, Leaf, Numbers, Rule
from rmsprop_jax._storage import Salt, settled


@partial(jax.jit, static_argnames="rule")
def updated(
    rule: Rule, numbers: jax.Array, salt: Salt | None, leaf: Leaf
) -> tuple[Any, ...]:
    """A leaf's update, in its gradient's dtype, and its new nu, mu and grad_mean.

    Args:
        rule: The equations.
        numbers: `Numbers` as one vector.
        salt: The leaf's, if its state is rounded.
        leaf: The gradient and the parameter, and the state as it is kept.
    """
    g = leaf.g
    both = (g, jax.eval_shape(_storage.read, leaf.nu))
    # The bits are those of a real part.
    is_wide = any(jnp.finfo(x.dtype).bits == 64 for x in both)
    dtype = jnp.dtype(jnp.float64 if is_wide else jnp.float32)
    n = Numbers(*numbers.astype(dtype))

    def compute(formula: Formula, leaf: Leaf) -> jax.Array:
        """The formula in the arithmetic's dtype, of each real part."""

        def of(part: Callable[[jax.Array], jax.Array]) -> jax.Array:
            state = (x if x is None else _storage.read(x) for x in leaf[2:])
            arrays = (leaf.g, leaf.p, *state)
            parts: Any = (x if x is None else part(x).astype(dtype) for x in arrays)
            return formula(rule, n, Leaf(*parts))

        if jnp.iscomplexobj(g):
            return lax.complex(of(jnp.real), of(jnp.imag))
        return of(lambda x: x)

    def keep(field: str, formula: Formula, leaf: Leaf) -> Leaf:
        old = getattr(leaf, field)
        new = _storage.keep(compute(formula, leaf), old, field, salt)
        return settled(leaf._replace(**{field: new}))

    leaf = _rule.update(rule, leaf, keep)
    u = compute(_rule.step, leaf).astype(g.dtype)
    # Outside of an outer jit, what is returned is written to memory.
    return u, *leaf[2:]
