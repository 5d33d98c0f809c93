"""The RMSProp rule. This is the only file that holds the equations.

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

TensorFlow and those after it put the rate into the momentum buffer instead: there
x = η·g/d and p' = p − out.

Centered, ν is the variance itself, which is the same algebra as the usual
E[g²] − m² and cannot cancel. With bias correction α is α_t = α(1−α^(t−1))/(1−α^t),
with which ν and m are the corrected moments.

*Store, then read*: every leaf of the state is computed once, and what follows reads
what was stored. XLA then makes one kernel per output and no temporary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rmsprop_jax import _checks, _codes
from rmsprop_jax._codes import decoded
from rmsprop_jax._state import RMSPropState, moment, no_steps
from rmsprop_jax.precision import narrowed, random_bits


class Rule(NamedTuple):
    """A rule's options; `rmsprop` says what each means."""

    learning_rate: Any = 0.01
    alpha: Any = 0.99
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    momentum: Any = 0.0
    centered: bool = False
    maximize: bool = False
    nesterov: bool = False
    eps_in_sqrt: bool = False
    initial_scale: Any = 0.0
    bias_correction: bool = False
    decoupled_weight_decay: bool = False
    weight_decay_mask: Any = None
    rate_in_momentum: bool = False
    has_rate: bool = True  # or else hand out the direction, neither scaled nor negated
    state_dtype: Any = "float32"
    seed: Any = 0

    @property
    def decays(self) -> bool:
        return not _known_zero(self.weight_decay)

    @property
    def has_momentum(self) -> bool:
        return not _known_zero(self.momentum)


class Step(NamedTuple):
    """The numbers of one step: Python floats where they are known, else scalars."""

    alpha: Any  # α, or α_t with bias correction
    weight: Any  # 1 − α
    ratio: Any  # (1 − α)/α, and 0 where α is 0
    rate: Any  # η
    count: Any  # the steps before this one


def _known_zero(number: Any) -> bool:
    # Only a Python zero may drop a leaf of the state: a traced one has no value yet.
    return isinstance(number, float) and number == 0.0


def _step(rule: Rule, count: jax.Array) -> Step:
    """The numbers of the step after `count` steps."""
    alpha, weight = rule.alpha, 1 - rule.alpha
    least = float(jnp.finfo(jnp.float32).eps)
    if rule.bias_correction:
        # 1 − α^t by expm1, as α^t is close to 1 while t is small. A traced α is kept
        # off 1 and out of the logarithm's pole at 0; the products stay right.
        dtype = jnp.result_type(float)
        tiny = float(jnp.finfo(jnp.float32).tiny)
        if isinstance(alpha, float):
            log_alpha = math.log(max(alpha, tiny))
        else:
            alpha = jnp.minimum(jnp.asarray(alpha, dtype), 1 - least)
            weight = 1 - alpha
            log_alpha = jnp.log(jnp.maximum(alpha, tiny))
        t = count.astype(dtype)
        corrected = -jnp.expm1((t + 1) * log_alpha)
        alpha = alpha * -jnp.expm1(t * log_alpha) / corrected
        weight = weight / corrected
    # Where α is below the arithmetic's precision, α·(g − m)² is nothing beside g².
    if isinstance(alpha, float):
        ratio = weight / alpha if alpha > least else 0.0
    else:
        counts = alpha > least
        ratio = jnp.where(counts, weight / jnp.where(counts, alpha, 1), 0)
    rate = rule.learning_rate
    if callable(rate):
        rate = _checks.rate_of_schedule(rate(count))
    return Step(alpha, weight, ratio, rate, count)


def _root(z: jax.Array) -> jax.Array:
    """√z for z ≥ 0, with a derivative of 0 instead of ∞ at 0."""
    return jnp.where(z == 0, 0, jnp.sqrt(jnp.where(z == 0, 1, z)))


def _stored(*leaves: Any) -> tuple[Any, ...]:
    """The leaves as they are in memory; what follows computes from these.

    XLA on CPU keeps in memory whatever has several readers, such as g + λ·p, x with
    Nesterov, or the parts of a complex leaf: more words moved, and up to twice the
    time. Behind a barrier together with the leaf just stored, each reader computes
    such a thing for itself. (Identical barriers are merged again, so that leaf must be
    in each.) Elsewhere there is none, as a barrier can keep a compiler from fusing.
    """
    return lax.platform_dependent(leaves, cpu=lax.optimization_barrier, default=_same)


def _same(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
    return leaves


def _arithmetic_dtype(*leaves: Any) -> Any:
    """float32, or float64 where one of the leaves (or its real part) is."""
    wide = any(jnp.finfo(x.dtype).bits == 64 for x in leaves)
    return jnp.float64 if wide else jnp.float32


def _update_leaf(rule: Rule, step: Step, leaf: int, g, p, nu, mu, m):
    """One leaf: its update in the gradient's dtype, and the new nu, mu and m.

    p is there where the leaf decays, mu and m where the rule has them. `leaf`
    is its number in the tree.
    """
    if g is None or nu is None:  # no news of it, or nothing to optimize
        return _no_update(g, p), nu, mu, m
    g = jnp.asarray(g)
    wide = _arithmetic_dtype(g, nu)
    coupled = p is not None and not rule.decoupled_weight_decay
    decoupled = p is not None and rule.decoupled_weight_decay

    def number(x):
        return x if isinstance(x, float) else jnp.asarray(x, wide)

    def compute(formula, *leaves):
        """The formula in the arithmetic's dtype, of each real part."""

        def of(part):
            read = (None if x is None else part(decoded(x)) for x in leaves)
            return formula(*(x if x is None else jnp.asarray(x, wide) for x in read))

        if jnp.iscomplexobj(g):
            return lax.complex(of(jnp.real), of(jnp.imag))
        return of(lambda x: x)

    def kept(slot, old, formula, *leaves):
        """What the formula makes of them, as the new value of a leaf of the state."""
        place = (rule.seed, step.count, leaf, slot)
        if not _codes.is_codes(old):
            return narrowed(compute(formula, *leaves), old.dtype, *place)

        def wanted(*leaves):
            return compute(formula, *leaves).astype(jnp.float32)

        scales = _codes.scales(wanted(*leaves), has_low=old.low is not None)
        scales, *leaves = _stored(scales, *leaves)
        return _codes.coded(wanted(*leaves), *scales, random_bits(old.shape, *place))

    alpha, weight, ratio = number(step.alpha), number(step.weight), number(step.ratio)
    eps, decay, momentum = map(number, (rule.eps, rule.weight_decay, rule.momentum))

    def gradient(g, p):
        g = -g if rule.maximize else g
        return g + decay * p if coupled else g

    def mean(g, p, m):
        # α·m + (1−α)·g as a step towards g: the two weights, once rounded, do not add
        # up to 1, and where the mean is large the variance would see it.
        return m + weight * (gradient(g, p) - m)

    def decayed(nu):
        # With α = 0 nothing is left, not even of an infinity.
        return jnp.zeros_like(nu) if _known_zero(alpha) else alpha * nu

    def variance(g, p, nu, m):
        return decayed(nu) + ratio * jnp.square(gradient(g, p) - m)

    def second_moment(g, p, nu):
        return decayed(nu) + weight * jnp.square(gradient(g, p))

    def normalized(g, p, nu):
        d = _root(nu + eps) if rule.eps_in_sqrt else _root(nu) + eps
        x = gradient(g, p) / jnp.where(d == 0, jnp.inf, d)
        return number(step.rate) * x if rule.rate_in_momentum else x

    def buffer(g, p, nu, mu):
        return momentum * mu + normalized(g, p, nu)

    def output(g, p, nu, mu):
        if not rule.has_momentum:
            out = normalized(g, p, nu)
        elif rule.nesterov:
            out = momentum * mu + normalized(g, p, nu)
        else:
            out = mu
        if not rule.has_rate:
            return out
        if not rule.rate_in_momentum:
            out = number(step.rate) * out
        if decoupled:
            out = out + number(step.rate) * (decay * p)
        return -out

    if rule.centered:
        m = kept(0, m, mean, g, p, m)
        g, p, m = _stored(g, p, m)
        nu = kept(1, nu, variance, g, p, nu, m)
    else:
        nu = kept(1, nu, second_moment, g, p, nu)
    g, p, nu = _stored(g, p, nu)
    if rule.has_momentum:
        mu = kept(2, mu, buffer, g, p, nu, mu)
        g, p, nu, mu = _stored(g, p, nu, mu)
    return compute(output, g, p, nu, mu).astype(g.dtype), nu, mu, m


def _no_update(g: Any, p: Any) -> Any:
    """The update of a leaf that has none: zeros for an integer, None for None."""
    if g is None:
        return None
    like = g if p is None else p
    if getattr(like, "dtype", None) == jax.dtypes.float0:
        return jnp.zeros(like.shape, bool)
    return jnp.zeros_like(like)


def transformation(rule: Rule) -> optax.GradientTransformationExtraArgs:
    """The gradient transformation of a rule, whose options it checks."""
    rule = _checks.options(rule)
    wide = jnp.float64 if rule.state_dtype == jnp.float64 else jnp.float32

    def init(params):
        def tree(value=0.0, dtype=rule.state_dtype, *, has_low=False):
            made = jax.tree.map(
                lambda p: moment(p, value, dtype, has_low=has_low),
                params,
                is_leaf=_checks.is_none,
            )
            return _codes.together(made)

        return RMSPropState(
            count=no_steps(params),
            nu=tree(rule.initial_scale, has_low=True),
            mu=tree() if rule.has_momentum else None,
            # The variance is about this very mean: what rounds it to fewer bits would
            # add the variance of that rounding, 20 % at a mean of 100 deviations.
            grad_mean=tree(dtype=wide) if rule.centered else None,
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args  # unused here, and allowed, for others in a chain
        old = RMSPropState(state.count, *map(_codes.apart, state[1:]))
        leaves, structure = _checks.matched(rule, updates, old, params)
        step = _step(rule, state.count)
        results = [_update_leaf(rule, step, i, *leaf) for i, leaf in enumerate(leaves)]
        out, nu, mu, m = (
            _codes.together(structure.unflatten(column))
            for column in (zip(*results, strict=True) if results else [()] * 4)
        )
        return out, RMSPropState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            nu=nu,
            mu=mu if rule.has_momentum else None,
            grad_mean=m if rule.centered else None,
        )

    return optax.GradientTransformationExtraArgs(init, update)
