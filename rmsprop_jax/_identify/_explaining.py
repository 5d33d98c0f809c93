"""What a rule explains of a recording: our own rule, with every rate projected out.

Which equations hold is an array here, so that one compiled program serves every rule.
At each step the update is linear in the rate, so that the best rate is a quotient. All
is differentiable with respect to the unknown numbers.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rmsprop_jax._optimizer import rule as equations
from rmsprop_jax._optimizer.leaf_update import Formula
from rmsprop_jax._optimizer.options import Hyperparams
from rmsprop_jax._optimizer.rule import Leaf, Rule, StepNumbers
from rmsprop_jax._optimizer.step_numbers import compute_step_numbers


class Structure(NamedTuple):
    """Which of the equations hold; booleans."""

    centered: Any
    eps_in_sqrt: Any
    rate_in_momentum: Any
    nesterov: Any
    decoupled: Any
    corrected: Any
    started: Any  # the second moment begins above 0


class Unknowns(NamedTuple):
    """The numbers of a run, in coordinates in which they are free."""

    forgetting: Any  # log of (1 − α)/α
    eps: Any  # log ε
    momentum: Any  # μ
    start: Any  # log of what the second moment begins with
    clip: Any  # log of the largest global norm of a gradient
    decay: Any  # [groups], λ of each group of leaves
    nu: Any  # [n], log of the second moment before a run whose beginning is not there,
    mu: Any  # [n], its momentum buffer,
    grad_mean: Any  # [n], and its mean; of size 0 where the run is there from the start


class Seen(NamedTuple):
    """What of a recording is explained; arrays of T steps and n elements."""

    g: Any
    p: Any
    u: Any
    weight: Any
    norm: Any  # [T]
    group: Any  # [n], whose decay an element has
    rate: Any  # [T], or NaN where it is unknown
    count: Any  # the steps before the first


# The rules that differ in the equations behind the second moment. Which others apply is
# an array in `Structure`.
_FLAGS = ("eps_in_sqrt", "learning_rate_in_momentum", "nesterov")
_RULE = Rule(
    has_learning_rate=True,
    learning_rate_in_momentum=False,
    has_momentum=True,
    nesterov=False,
    centered=True,
    bias_correction=False,
    maximize=False,
    has_weight_decay=True,
    decoupled_weight_decay=True,
    eps_in_sqrt=False,
    has_eps=False,
    cautious=False,
)
_RULES = [
    _RULE._replace(**dict(zip(_FLAGS, flags, strict=True)))
    for flags in itertools.product([False, True], repeat=len(_FLAGS))
]


def _one_step(
    s: Structure, hyperparams: Hyperparams, count: jax.Array, leaf: Leaf
) -> tuple[jax.Array, Leaf]:
    """The update, and the leaf with its new state."""
    coupled = _RULE._replace(decoupled_weight_decay=False)
    plain, corrected = (
        compute_step_numbers(
            coupled._replace(bias_correction=flag), hyperparams, count, {}
        )
        for flag in (False, True)
    )
    n = StepNumbers(*jnp.where(s.corrected, corrected, plain))
    # A moment about the origin is one about a mean of 0, with another weight.
    n = n._replace(
        one_minus_alpha_over_alpha=jnp.where(
            s.centered, n.one_minus_alpha_over_alpha, n.one_minus_alpha
        )
    )
    # A decay is of the gradient beforehand, or of the parameter.
    g, p = equations.decayed_gradient(coupled, n, leaf), jnp.asarray(leaf.p)
    g, p = jnp.where(s.decoupled, leaf.g, g), jnp.where(s.decoupled, p, 0)
    leaf = leaf._replace(g=g, p=p)
    n = n._replace(weight_decay=n.weight_decay * n.learning_rate)
    index = 4 * s.eps_in_sqrt + 2 * s.rate_in_momentum + s.nesterov

    def select(formula: Formula, leaf: Leaf) -> jax.Array:
        return lax.select_n(index, *(formula(rule, n, leaf) for rule in _RULES))

    mean = equations.next_grad_mean(_RULE, n, leaf)
    leaf = leaf._replace(grad_mean=jnp.where(s.centered, mean, 0))
    leaf = leaf._replace(nu=equations.next_nu(_RULE, n, leaf))
    leaf = leaf._replace(mu=select(equations.next_mu, leaf))
    return select(equations.final_update, leaf), leaf


def explained(s: Structure, x: Unknowns, seen: Seen) -> tuple[jax.Array, jax.Array]:
    """The updates that the rule makes [T, n], and the rates [T]."""
    hyperparams = Hyperparams(
        learning_rate=1.0,
        alpha=jax.nn.sigmoid(-x.forgetting),
        eps=jnp.exp(x.eps),
        momentum=x.momentum,
        weight_decay=jnp.ones(()),
    )
    clipped = jnp.minimum(1.0, jnp.exp(x.clip) / seen.norm)
    zero = jnp.zeros(seen.g.shape[1])
    if x.nu.size:
        mean = jnp.where(s.centered, x.grad_mean, 0)
        leaf = Leaf(zero, zero, jnp.exp(x.nu), x.mu, mean)
    else:
        start = zero + jnp.where(s.started, jnp.exp(x.start), 0)
        leaf = Leaf(zero, zero, start, zero, zero)

    def step(carry: Any, now: Any) -> Any:
        leaf, rate, count = carry
        g, p, u, weight, factor, known = now
        leaf = leaf._replace(g=factor * g, p=x.decay[seen.group] * p)

        def at(rate: jax.Array) -> tuple[jax.Array, Leaf]:
            return _one_step(s, hyperparams._replace(learning_rate=rate), count, leaf)

        (made, new), (slope, moved) = jax.jvp(at, (rate,), (jnp.ones(()),))
        curvature = jnp.sum(jnp.square(weight * slope))
        change = jnp.sum(jnp.square(weight) * (u - made) * slope)
        change = change / jnp.where(curvature == 0, 1, curvature)
        change = jnp.where(jnp.isnan(known), change, known - rate)
        new = jax.tree.map(lambda a, b: a + change * b, new, moved)
        rate = rate + change
        new = new._replace(g=zero, p=zero)
        made = made + change * slope
        return (new, rate, count + 1), (made, rate)

    carry = (leaf, jnp.ones(()), seen.count)
    rows = (seen.g, seen.p, seen.u, seen.weight, clipped, seen.rate)
    return lax.scan(step, carry, rows)[1]
