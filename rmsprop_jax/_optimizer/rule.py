"""The RMSProp rule.

For one parameter p with gradient g, in PyTorch's order, where α is ``alpha``, μ
``momentum``, λ ``weight_decay`` and η ``learning_rate``:

    g   = −g                                    only if maximizing
    g   = g + λ·p                               only with coupled weight decay
    m'  = α·m + (1−α)·g                         only if centered
    ν'  = α·ν + ((1−α)/α)·(g − m')²             if centered (no second term if α = 0)
    ν'  = α·ν + (1−α)·g²                        otherwise
    d   = √ν' + eps      or      √(ν' + eps)
    x   = g / d                                 and 0 where d = 0
    b'  = μ·b + x                               only with momentum
    out = b'      or      μ·b' + x (Nesterov)      or      x (no momentum)
    p'  = p − η·out                             or p − η·(out + λ·p), decoupled

TensorFlow and its successors multiply by the learning rate before the momentum buffer
instead: x = η·g/d and p' = p − out.

timm's caution keeps only the elements of out whose sign is that of g, and divides them
by their share of the leaf (at least 1/1000).

Centered, ν is the variance itself. The usual form keeps E[g²] and subtracts m², which
cancels in float32; the recursion above is the same algebra and cannot cancel. With bias
correction, α is α_t = α(1−α^(t−1))/(1−α^t), and ν and m are the corrected moments.

A finite gradient gives finite numbers. In float32, g is clipped to ±2⁶² so that g² and
(g − m)² are finite, and x to ±2¹⁰⁰ where ε may be tiny.

*Store, then read*: each field of the state is computed once, in the order m, ν, b, and
whatever comes later reads the field as it was stored. XLA then makes one kernel per
output and no temporaries. `leaf_update` does this.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rmsprop_jax._optimizer.safe_math import (
    clip_to_finite_square,
    safe_divide,
    safe_sqrt,
)

Number: TypeAlias = float | jax.Array


class Rule(NamedTuple):
    """Which of the equations apply. Known before a program is traced."""

    has_learning_rate: bool  # otherwise the update is out itself, not −η·out
    learning_rate_in_momentum: bool  # TensorFlow's order
    has_momentum: bool
    nesterov: bool
    centered: bool
    bias_correction: bool
    maximize: bool
    has_weight_decay: bool
    decoupled_weight_decay: bool
    eps_in_sqrt: bool
    has_eps: bool  # ε is known and large enough that g/d cannot overflow
    cautious: bool


class StepNumbers(NamedTuple):
    """The hyperparameters at one step, scalars."""

    learning_rate: Number
    alpha: Number  # α, or α_t with bias correction
    one_minus_alpha: Number
    one_minus_alpha_over_alpha: Number  # 0 where α is 0
    eps: Number
    weight_decay: Number  # λ, or η·λ if decoupled
    momentum: Number


class Leaf(NamedTuple):
    """One leaf of the parameters with its gradient and state.

    The equations see real arrays of one dtype. `leaf_update` makes them from the stored
    arrays, which may be complex or of other dtypes.
    """

    g: jax.Array
    p: jax.Array | None  # None where the leaf does not decay
    nu: jax.Array
    mu: jax.Array | None  # b; None without momentum
    grad_mean: jax.Array | None  # m; None if not centered


def decayed_gradient(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    g = -leaf.g if rule.maximize else leaf.g
    if leaf.p is not None and not rule.decoupled_weight_decay:
        g = g + n.weight_decay * leaf.p
    # Clipping would hide an infinite gradient; g − g turns it into NaN.
    return clip_to_finite_square(g) + (leaf.g - leaf.g)


def next_grad_mean(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    assert leaf.grad_mean is not None
    # Written as m + w·(g − m) because in float32 α and 1 − α do not sum to exactly 1;
    # with a large mean that error would show up in the variance.
    g = decayed_gradient(rule, n, leaf)
    return leaf.grad_mean + n.one_minus_alpha * (g - leaf.grad_mean)


def next_nu(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    g = decayed_gradient(rule, n, leaf)
    if leaf.grad_mean is None:
        return n.alpha * leaf.nu + n.one_minus_alpha * jnp.square(g)
    deviation = jnp.square(g - leaf.grad_mean)
    return n.alpha * leaf.nu + n.one_minus_alpha_over_alpha * deviation


def direction(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    g = decayed_gradient(rule, n, leaf)
    nu, eps = leaf.nu, n.eps
    d = safe_sqrt(nu + eps) if rule.eps_in_sqrt else safe_sqrt(nu) + eps
    x = g / d if rule.has_eps else safe_divide(g, d)
    return n.learning_rate * x if rule.learning_rate_in_momentum else x


def next_mu(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    assert leaf.mu is not None
    return n.momentum * leaf.mu + direction(rule, n, leaf)


def final_update(rule: Rule, n: StepNumbers, leaf: Leaf) -> jax.Array:
    if leaf.mu is None:
        out = direction(rule, n, leaf)
    else:
        out = next_mu(rule, n, leaf) if rule.nesterov else leaf.mu
    if rule.cautious:
        assert leaf.mu is not None
        step_sign = jnp.sign(leaf.mu)
        gradient_sign = jnp.sign(decayed_gradient(rule, n, leaf))
        share = jnp.mean(step_sign * gradient_sign > 0, dtype=out.dtype)
        # Where both signs are 0, so is out. Do not write `step_sign * gradient_sign >
        # 0` again: XLA would reuse that value and keep it as a temporary.
        out = jnp.where(step_sign == gradient_sign, out / jnp.maximum(share, 1e-3), 0)
    if not rule.has_learning_rate:
        return out
    update = -out if rule.learning_rate_in_momentum else -n.learning_rate * out
    if leaf.p is not None and rule.decoupled_weight_decay:
        update = update - n.weight_decay * leaf.p
    return update
