"""One leaf's update: evaluate each equation, and store its result.

A leaf is compiled separately, so that leaves of one shape are traced once, and an
update outside ``jit`` is one call per leaf. Whatever differs between leaves or steps is
an array: with a Python number or a leaf's index, each leaf would need its own program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rmsprop_jax._optimizer import rule as equations
from rmsprop_jax._optimizer.barriers import barrier_on_cpu
from rmsprop_jax._optimizer.random_bits import Salt
from rmsprop_jax._optimizer.rule import Leaf, Rule, StepNumbers
from rmsprop_jax._optimizer.storage import Field, decode_state, encode

Formula: TypeAlias = Callable[[Rule, StepNumbers, Leaf], jax.Array]


@partial(jax.jit, static_argnames="rule")
def update_leaf(
    rule: Rule, numbers: jax.Array, salt: Salt | None, leaf: Leaf
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Compute a leaf's update, in its gradient's dtype, and its new nu, mu, grad_mean.

    Args:
        rule: Which equations apply.
        numbers: `StepNumbers` as one vector.
        salt: The leaf's salt, if its state is rounded.
        leaf: The leaf before the step, as it is stored.
    """
    n = StepNumbers(*numbers.astype(arithmetic_dtype(leaf)))
    if leaf.grad_mean is not None:
        grad_mean = evaluate(equations.next_grad_mean, rule, n, leaf)
        leaf = store("grad_mean", grad_mean, leaf, salt)
    leaf = store("nu", evaluate(equations.next_nu, rule, n, leaf), leaf, salt)
    if leaf.mu is not None:
        leaf = store("mu", evaluate(equations.next_mu, rule, n, leaf), leaf, salt)
    update = evaluate(equations.final_update, rule, n, leaf).astype(leaf.g.dtype)
    # Not the whole leaf, because without an outer jit every result is written to
    # memory.
    return update, leaf.nu, leaf.mu, leaf.grad_mean


def arithmetic_dtype(leaf: Leaf) -> np.dtype[np.floating]:
    """Return float64 if the gradient or the state is that wide, else float32."""
    wide = (jnp.float64, jnp.complex128)
    is_wide = leaf.g.dtype in wide or leaf.nu.dtype in wide
    return np.dtype(np.float64 if is_wide else np.float32)


def evaluate(formula: Formula, rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    """Evaluate a formula on a stored leaf, separately on the parts of a complex one."""
    dtype = arithmetic_dtype(leaf)
    decoded = decode_state(leaf)
    if jnp.iscomplexobj(leaf.g):
        real = jax.tree.map(lambda x: jnp.real(x).astype(dtype), decoded)
        imag = jax.tree.map(lambda x: jnp.imag(x).astype(dtype), decoded)
        return lax.complex(formula(rule, n, real), formula(rule, n, imag))
    return formula(rule, n, jax.tree.map(lambda x: x.astype(dtype), decoded))


def store(field: Field, value: jax.Array, leaf: Leaf, salt: Salt | None) -> Leaf:
    """Return the leaf with a new value of one field, encoded as in memory."""
    encoded = encode(value, getattr(leaf, field), field, salt)
    return barrier_on_cpu(leaf._replace(**{field: encoded}))
