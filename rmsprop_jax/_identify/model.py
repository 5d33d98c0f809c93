"""Predict the updates of a run: one simulation that every rule in the search shares.

Which equations apply is data here (`Variant`), so that one compiled program serves all
rules; in `rmsprop_jax._optimizer.rule` it is known before tracing. The tests compare
the two.

The learning rate of each step is not searched for. An update is linear in it, so
`predict` takes the value that explains most of the observed update, which is a quotient
of two sums.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array: TypeAlias = np.ndarray | jax.Array
Flag: TypeAlias = bool | Array

# Added to norms and under roots to avoid 0/0 for elements without any gradient.
_TINY = 1e-280


class Variant(NamedTuple):
    """Which equations apply: True or False, or arrays of them.

    The defaults are PyTorch's rule.
    """

    # The second moment
    centered: Flag = False
    bias_correction: Flag = False
    accumulates: Flag = False  # a sum of squares, which forgets nothing: Adagrad
    is_factored: Flag = False  # Adafactor's, which factors large matrices
    is_factored_always: Flag = False  # or all of them
    # The divisor
    eps_in_sqrt: Flag = False
    eps_is_floor: Flag = False  # max(√ν, ε)
    divides: Flag = True  # otherwise the divisor is 1: SGD
    # The step
    averages_gradient: Flag = False  # momentum of the gradient itself: Adam, fastai
    takes_sign: Flag = False  # Lion; its b1 is the momentum, its b2 is α
    nesterov: Flag = False
    learning_rate_in_momentum: Flag = False
    momentum_varies: Flag = False  # every step has its own momentum
    decay_varies: Flag = False  # every step has its own decoupled weight decay
    cautious: Flag = False
    # Around the rule
    clips_elements: Flag = False  # each element, not a norm
    clips_leaves: Flag = False  # the norm of each leaf, not of the whole gradient
    clips_after_decay: Flag = False
    learning_rate_by_leaf: Flag = False


class Theta(NamedTuple):
    """The hyperparameters of a run, in coordinates in which they are free."""

    logit_one_minus_alpha: Array  # log of (1 − α)/α
    log_eps: Array
    momentum: Array
    log_initial_scale: Array
    log_clip_norm: Array
    weight_decay: Array  # coupled
    decoupled_weight_decay: Array
    decay_factor: Array  # [leaves], what both are multiplied with; 1 where all decay
    learning_rate: Array  # [T], NaN where `predict` takes what explains most
    learning_rate_factor: (
        Array  # [groups], what a learning rate that is known is multiplied with
    )
    # [n], the state before the first step; size 0 if the recording starts with the run
    log_nu: Array
    mu: Array
    grad_mean: Array


class Sums(NamedTuple):
    """Sums of products over the elements whose gradients are clipped together."""

    gg: Array
    gp: Array
    pp: Array


class Steps(NamedTuple):
    """The observations of each step."""

    g: Array  # [T, n]
    p: Array  # [T, n], before the step
    u: Array  # [T, n]
    weight: Array  # [T, n], what a residual is multiplied with
    global_sums: Sums  # [T, 1]
    leaf_sums: Sums  # [T, leaves]
    caution: Array  # [T, n], 0 if it did not move, or 1 over the leaf's share that did
    adafactor_nu: Array  # [T, 2, n], for large matrices and for all


class Observations(NamedTuple):
    """A recording as the model needs it: T steps of n elements."""

    steps: Steps
    leaf: Array  # [n], the index of its leaf
    group: Array  # [n], the index of the leaf or leaves that decay and learn together
    columns: Array  # [n, 1 + groups], ones, and one-hot columns of `group`
    steps_before: Array


class Prediction(NamedTuple):
    """The updates that a rule makes of the gradients, compared with the observed.

    Attributes:
        residuals: [T, n], the updates less those observed, times their weights.
        learning_rate: [T, groups]; unless it is by leaf, all columns are the same.
        precision: [T, groups], the variance of the noise over the learning rate's.
        varying: [T], the momentum (as it multiplies the previous update) or the decay
            (times the learning rate) of each step, where it varies.
    """

    residuals: jax.Array
    learning_rate: jax.Array
    precision: jax.Array
    varying: jax.Array


class _State(NamedTuple):
    nu: jax.Array
    buffer: jax.Array
    grad_mean: jax.Array
    step_number: jax.Array


class _Terms(NamedTuple):
    """The terms of an update: −learning_rate·scaled − fixed − varying·other."""

    scaled: jax.Array
    fixed: jax.Array
    other: jax.Array


def predict(v: Variant, x: Theta, seen: Observations) -> Prediction:
    """Predict the updates of a rule, with the learning rates that explain most.

    Wherever possible, a difference between rules is a coefficient, which costs one
    operation per element and not one for each rule.
    """
    where = jnp.where
    alpha = jax.nn.sigmoid(-x.logit_one_minus_alpha)
    one_minus_alpha = jax.nn.sigmoid(x.logit_one_minus_alpha)
    log_alpha = -jax.nn.softplus(x.logit_one_minus_alpha)
    eps, clip_norm = jnp.exp(x.log_eps), jnp.exp(x.log_clip_norm)
    eps_inside = where(v.eps_in_sqrt, eps, 0.0) + _TINY
    eps_outside = where(v.eps_in_sqrt, 0.0, eps)
    decay_factor = jnp.asarray(x.decay_factor)[seen.group]
    weight_decay = decay_factor * x.weight_decay
    decoupled_weight_decay = decay_factor * x.decoupled_weight_decay
    decay_in_clip = where(v.clips_after_decay, x.weight_decay, 0.0)
    holds_learning_rate = v.learning_rate_in_momentum | v.momentum_varies
    # Averages of gradients, such as Lion's, are buffers that enter the direction.
    has_average = v.averages_gradient | v.takes_sign
    momentum = where(has_average, 0.0, x.momentum)
    step_share = where(v.nesterov, momentum, 1.0)
    direction_share = step_share + where(v.nesterov, 1.0, 0.0)
    buffer_share = step_share * momentum

    def step(state: _State, rows: tuple[Steps, jax.Array]) -> tuple[_State, Prediction]:
        now, known_rate = rows
        t = state.step_number

        # The gradient, clipped and decayed
        clipped = now.g + decay_in_clip * decay_factor * now.p
        both = zip(now.leaf_sums, now.global_sums, strict=True)
        gg, gp, pp = (where(v.clips_leaves, *sums) for sums in both)
        square = gg + decay_in_clip * (2 * gp + decay_in_clip * pp)
        factor = jnp.minimum(1.0, clip_norm / jnp.sqrt(square + _TINY))
        clipped = where(
            v.clips_elements,
            jnp.clip(clipped, -clip_norm, clip_norm),
            factor[seen.leaf] * clipped,
        )
        g = clipped + (weight_decay - decay_in_clip * decay_factor) * now.p

        # The second moment
        one_minus_power = -jnp.expm1((t + 1) * log_alpha)
        corrected = alpha * -jnp.expm1(t * log_alpha) / one_minus_power
        kept = where(v.bias_correction, corrected, alpha)
        added = one_minus_alpha / where(v.bias_correction, one_minus_power, 1.0)
        grad_mean = state.grad_mean + added * (g - state.grad_mean)
        deviation = g - where(v.centered, 1.0, 0.0) * grad_mean
        added = where(v.centered, added / where(kept > 0, kept, 1.0), added)
        kept, added = (where(v.accumulates, 1.0, share) for share in (kept, added))
        nu = kept * state.nu + added * jnp.square(deviation)
        adafactor_nu = now.adafactor_nu[where(v.is_factored_always, 1, 0)]
        nu = where(v.is_factored, adafactor_nu, nu)

        # The direction
        root = jnp.sqrt(nu + eps_inside)
        divisor = where(v.eps_is_floor, jnp.maximum(root, eps), root + eps_outside)
        divisor = where(v.divides, divisor, 1.0)
        new = where(v.bias_correction | v.takes_sign, 1 - x.momentum, 1.0)
        power = where(v.bias_correction, x.momentum ** (t + 1), 0.0)
        of_gradient = where(has_average, new / (1 - power), 1.0)
        of_average = where(has_average, x.momentum / (1 - power), 0.0)
        numerator = of_gradient * g + of_average * state.buffer
        direction = where(v.takes_sign, jnp.sign(numerator), numerator / divisor)

        # The update
        moves = where(v.cautious, now.caution, 1.0)
        torch_share = where(holds_learning_rate, 0.0, buffer_share)
        fixed_share = where(holds_learning_rate, buffer_share, 0.0)
        fixed_share = where(v.momentum_varies, 0.0, fixed_share)
        scaled = direction_share * direction + torch_share * state.buffer
        other = where(v.decay_varies, 1.0, 0.0) * now.p
        terms = _Terms(
            scaled=moves * scaled + decoupled_weight_decay * now.p,
            fixed=moves * fixed_share * state.buffer,
            other=where(v.momentum_varies, state.buffer, other),
        )
        known = known_rate * x.learning_rate_factor
        learning_rate, precision, varying = _solve(v, now, terms, known, seen)
        rate = learning_rate[seen.group]
        u = -rate * terms.scaled - terms.fixed - varying * terms.other

        # The buffer
        kept = where(v.momentum_varies, varying, momentum)
        kept = where(v.averages_gradient, x.momentum, where(v.takes_sign, alpha, kept))
        of_gradient = where(v.averages_gradient, new, 0.0)
        of_gradient = where(v.takes_sign, one_minus_alpha, of_gradient)
        of_direction = where(holds_learning_rate, rate, 1.0)
        of_direction = where(has_average, 0.0, of_direction)
        buffer = kept * state.buffer + of_gradient * g + of_direction * direction
        residuals = jnp.asarray(now.weight * (u - now.u))
        made = Prediction(residuals, learning_rate, precision, varying)
        return _State(nu, buffer, grad_mean, t + 1), made

    zero = jnp.zeros(seen.steps.g.shape[1])
    steps_before = jnp.asarray(seen.steps_before)
    state = _State(zero + jnp.exp(x.log_initial_scale), zero, zero, steps_before)
    if x.log_nu.size:
        mu, grad_mean = jnp.asarray(x.mu), jnp.asarray(x.grad_mean)
        state = _State(jnp.exp(x.log_nu), mu, grad_mean, steps_before)
    return lax.scan(step, state, (seen.steps, jnp.asarray(x.learning_rate)))[1]


def _solve(
    v: Variant,
    now: Steps,
    terms: _Terms,
    known_rate: jax.Array,
    seen: Observations,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fit a step's learning rates, and what else varies, by weighted least squares.

    Known learning rates ([groups], otherwise NaN) are kept.
    """
    where = jnp.where

    def divide(a: jax.Array, b: jax.Array) -> jax.Array:
        return where(b > 0, a / where(b > 0, b, 1.0), 0.0)

    goal = -now.weight * (now.u + terms.fixed)
    scaled, other = now.weight * terms.scaled, now.weight * terms.other
    # One matrix product, because XLA would take as long for each sum.
    products = [scaled * scaled, scaled * goal, scaled * other, other * other]
    sums = jnp.stack([*products, other * goal]) @ seen.columns
    whole, by_group = sums[:, :1], sums[:, 1:]
    num_groups = by_group.shape[1]
    scaled_scaled, scaled_goal, scaled_other = where(
        v.learning_rate_by_leaf, by_group, whole / num_groups
    )[:3]
    other_other, other_goal = whole[3:, 0]
    # All groups share what varies. Their learning rates are eliminated first: `left` is
    # `other` without its parts along `scaled`, and 0 if the two are parallel.
    share = divide(scaled_other, scaled_scaled)
    left = other_other - jnp.sum(share * scaled_other)
    left = where(left > 1e-12 * other_other, left, 0.0)
    varying = divide(other_goal - jnp.sum(share * scaled_goal), left)
    fitted = divide(scaled_goal, scaled_scaled) - varying * share
    learning_rate = where(jnp.isnan(known_rate), fitted, known_rate)
    known = divide(other_goal - jnp.sum(scaled_other * learning_rate), other_other)
    varying = where(jnp.isnan(known_rate[0]), varying, known)
    groups = where(v.learning_rate_by_leaf, 1.0, num_groups)
    precision = groups * scaled_scaled
    precision = precision * divide(left, left + groups * share * scaled_other)
    precision = where(other_other > 0, precision, groups * scaled_scaled)
    return learning_rate, precision, varying
