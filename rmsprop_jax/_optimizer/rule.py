"""The RMSProp rule: its equations, and the order in which they are stored.

For one parameter p with gradient g, where α is ``alpha``, μ ``momentum``, λ
``weight_decay`` and η ``learning_rate``, in torch's order:

    g   = −g                                    only when maximizing
    g   = g + λ·p                               only with coupled decay
    m'  = α·m + (1−α)·g                         only if centered
    ν'  = α·ν + ((1−α)/α)·(g − m')²             centered (no second term if α = 0)
    ν'  = α·ν + (1−α)·g²                        otherwise
    d   = √ν' + eps      or      √(ν' + eps)
    x   = g / d                                 and 0 where d = 0
    b'  = μ·b + x                               only with momentum
    out = b'      or      μ·b' + x (Nesterov)      or      x (no momentum)
    p'  = p − η·out                             or p − η·(out + λ·p), decoupled

timm's caution takes of out only what goes the way of g, and that larger by the share
of all elements which do (at least 1/1000).

TensorFlow and those after it put the rate into the momentum buffer instead: there
x = η·g/d and p' = p − out.

Centered, ν is the variance itself. That is the same algebra as the usual E[g²] − m²,
and it can't cancel. With bias correction α is α_t = α(1−α^(t−1))/(1−α^t), and ν and m
are the corrected moments.

A finite gradient gives finite numbers. In float32, g beyond ±2⁶² counts as that: the
square of more would be infinite. Where ε may be next to 0, x stays within ±2¹⁰⁰.

*Store, then read*: every leaf of the state is computed once, and what follows reads
what was stored. XLA then makes one kernel per output and no temporary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rmsprop_jax._finite import quotient, root, with_finite_square


class Rule(NamedTuple):
    """Which of the equations hold: what is known before a program is traced."""

    centered: bool
    momentum: bool
    nesterov: bool
    maximize: bool
    eps_in_sqrt: bool
    decoupled: bool
    rate_in_momentum: bool
    has_rate: bool  # or else hand out x or b', neither scaled nor negated
    cautious: bool
    has_eps: bool  # ε is known, and g/d can't overflow


class Numbers(NamedTuple):
    """The numbers of one step."""

    rate: jax.Array  # η
    alpha: jax.Array  # α, or α_t with bias correction
    weight: jax.Array  # 1 − α
    ratio: jax.Array  # (1 − α)/α, and 0 where α is 0
    eps: jax.Array
    decay: jax.Array  # λ, or η·λ if decoupled
    momentum: jax.Array  # μ


class Leaf(NamedTuple):
    """One leaf: a parameter and what belongs to it."""

    g: jax.Array
    p: jax.Array | None  # only where the leaf decays
    nu: jax.Array
    mu: jax.Array  # b; None without momentum
    grad_mean: jax.Array  # m; None if not centered


Formula = Callable[[Rule, Numbers, Leaf], jax.Array]


def gradient(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    g = -leaf.g if rule.maximize else leaf.g
    g = g if leaf.p is None or rule.decoupled else g + n.decay * leaf.p
    # An infinite gradient is no large one: it becomes NaN.
    return with_finite_square(g) + (leaf.g - leaf.g)


def mean(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    # As a step towards g: the two weights, once rounded, do not add up to 1, and where
    # the mean is large the variance would see it.
    return leaf.grad_mean + n.weight * (gradient(rule, n, leaf) - leaf.grad_mean)


def second_moment(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    g = gradient(rule, n, leaf)
    about, weight = (leaf.grad_mean, n.ratio) if rule.centered else (0, n.weight)
    return n.alpha * leaf.nu + weight * jnp.square(g - about)


def direction(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    d = root(leaf.nu + n.eps) if rule.eps_in_sqrt else root(leaf.nu) + n.eps
    g = gradient(rule, n, leaf)
    x = g / d if rule.has_eps else quotient(g, d)
    return n.rate * x if rule.rate_in_momentum else x


def buffer(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    return n.momentum * leaf.mu + direction(rule, n, leaf)


def step(rule: Rule, n: Numbers, leaf: Leaf) -> jax.Array:
    if not rule.momentum:
        out = direction(rule, n, leaf)
    else:
        out = buffer(rule, n, leaf) if rule.nesterov else leaf.mu
    if rule.cautious:
        to, way = jnp.sign(leaf.mu), jnp.sign(gradient(rule, n, leaf))
        share = jnp.maximum(jnp.mean(to * way > 0, dtype=out.dtype), 1e-3)
        # Where both are 0, so is out. In the same words as above, XLA would keep it.
        out = jnp.where(to == way, out / share, 0)
    if not rule.has_rate:
        return out
    out = -out if rule.rate_in_momentum else -n.rate * out
    return out - n.decay * leaf.p if leaf.p is not None and rule.decoupled else out


def update(rule: Rule, leaf: Leaf, keep: Callable[[str, Formula, Leaf], Leaf]) -> Leaf:
    """The leaf with its new state; `step` of that is p's update.

    ``keep`` stores what a formula makes of a leaf in the field of that name.
    """
    if rule.centered:
        leaf = keep("grad_mean", mean, leaf)
    leaf = keep("nu", second_moment, leaf)
    return keep("mu", buffer, leaf) if rule.momentum else leaf
