"""timm's RMSpropTF, with its three kinds of decay and its caution."""

# Their arguments, in their order:
# ruff: noqa: FBT001, FBT002

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs

from rmsprop_jax import _checks
from rmsprop_jax._rule import Rule, transformation


def timm(
    lr: Any = 0.01,
    alpha: Any = 0.9,
    eps: Any = 1e-10,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    *,
    max_lr: Any = None,
) -> GradientTransformationExtraArgs:
    """``timm.optim.RMSpropTF``: TensorFlow 1's rule, with decay.

    The second moment begins at 1 and ε is inside the root. ``foreach`` has no
    counterpart. ``timm.optim.create_optimizer_v2`` names it ``rmsproptf``,
    ``rmsproptfw`` (``decoupled_decay``), ``rmsproptfc`` (and
    ``corrected_weight_decay``) and ``crmsproptf`` (``caution``), and leaves biases and
    norms out of the decay: ``optax.multi_transform`` does that here.

    For ``--clip-grad 1.0`` write ``optax.chain(optax.clip_by_global_norm(1.0),
    dialects.timm(...))``; for ``--model-ema`` see `keras`.

    Args:
        lr: The rate, or a schedule.
        alpha: How much of the second moment (and of the mean) a step keeps.
        eps: Added to the second moment, inside the root.
        weight_decay: Times the parameter, added to the gradient (coupled), unless
            ``decoupled_decay``.
        momentum: How much of the momentum buffer a step keeps.
        centered: Whether to divide by the gradient's deviation from its mean.
        decoupled_decay: Whether ``lr·weight_decay`` times the parameter is taken from
            the parameter instead.
        corrected_weight_decay: Whether that is ``lr²/max_lr·weight_decay``.
        lr_in_momentum: Whether the momentum buffer holds the rate, as in TensorFlow.
        caution: Whether the step is 0 where its sign is not the gradient's, and larger
            elsewhere by as much as this leaves out (Liang et al. 2024). The buffer is
            not touched. Real leaves only.
        max_lr: The largest rate, which timm reads from the ``lr`` it is made with. Only
            for ``corrected_weight_decay``, and only needed where ``lr`` is a schedule
            or an array (as under ``optax.inject_hyperparams``).

    Returns:
        A gradient transformation with an `RMSPropState`.

    Raises:
        ValueError: On an argument that would do nothing, though timm accepts it:
            ``corrected_weight_decay`` without ``decoupled_decay``, ``caution`` without
            momentum, ``max_lr`` without ``corrected_weight_decay``. If ``max_lr`` is
            missing or 0. As `rmsprop` does.

    References:
        timm 1.0.31, ``timm/optim/rmsprop_tf.py``; compared with it running.
        Liang et al., *Cautious Optimizers*, arXiv:2411.16085, 2024.
    """
    rule = Rule(
        learning_rate=lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
        eps_in_sqrt=True,
        initial_scale=1.0,
        decoupled_weight_decay=decoupled_decay,
        rate_in_momentum=lr_in_momentum,
    )
    if corrected_weight_decay and not decoupled_decay:
        raise ValueError("corrected_weight_decay must come with decoupled_decay=True.")
    if max_lr is not None and not corrected_weight_decay:
        raise ValueError("max_lr must come with corrected_weight_decay=True.")
    if caution and isinstance(momentum, int | float) and momentum == 0:
        raise ValueError(
            "caution must come with momentum: without it timm ignores it. Leave it out."
        )
    if not caution and not corrected_weight_decay:
        return transformation(rule)
    if corrected_weight_decay:
        max_lr = _max_lr(lr, max_lr)
    # What follows changes the step, and a decoupled decay is not part of the step.
    coupled = rule if not decoupled_decay else rule._replace(weight_decay=0.0)
    tx = transformation(coupled)
    if caution:
        tx = _cautious(tx, coupled)
    if decoupled_decay and rule.decays:
        tx = _decayed(tx, rule, max_lr)
    return tx


def _max_lr(lr: Any, max_lr: Any) -> Any:
    if max_lr is None and not isinstance(lr, int | float):
        # An injected rate is the present one, and its square over itself no correction.
        raise ValueError(
            "max_lr must be given with corrected_weight_decay where lr is a schedule "
            "or an array: the largest rate of the run."
        )
    max_lr = lr if max_lr is None else max_lr
    if isinstance(max_lr, int | float) and not max_lr > 0:
        raise ValueError(
            "max_lr (or else lr) must be greater than 0 with corrected_weight_decay, "
            f"but it was {max_lr}."
        )
    return max_lr


def _cautious(tx: Any, rule: Rule) -> GradientTransformationExtraArgs:
    """Steps only where the momentum buffer and the gradient have the same sign."""

    def update(updates, state, params=None, **extra_args):
        del extra_args  # unused here, and allowed, for others in a chain
        out, state = tx.update(updates, state, params)

        def cautious(g, u, mu, p):
            if g is None or mu is None:  # no news of it, or nothing to optimize
                return u
            g = g.astype(mu.dtype)
            if rule.decays:
                g = g + jnp.asarray(rule.weight_decay, g.dtype) * p.astype(g.dtype)
            agrees = jnp.sign(mu) * jnp.sign(g) > 0
            share = jnp.maximum(jnp.mean(agrees, dtype=g.dtype), 1e-3)
            return jnp.where(agrees, u.astype(g.dtype) / share, 0).astype(u.dtype)

        ps = params if rule.decays else updates
        return jax.tree.map(
            cautious, updates, out, state.mu, ps, is_leaf=_checks.is_none
        ), state

    return GradientTransformationExtraArgs(tx.init, update)


def _decayed(tx: Any, rule: Rule, max_lr: Any) -> GradientTransformationExtraArgs:
    """Takes η·λ·p from each parameter, or η²/max_lr·λ·p where there is a max_lr."""

    def update(updates, state, params=None, **extra_args):
        del extra_args  # unused here, and allowed, for others in a chain
        _checks.params_given("weight decay", params)
        rate = rule.learning_rate
        rate = rate(state.count) if callable(rate) else rate
        out, state = tx.update(updates, state, params)

        def decayed(u, p, nu):
            if u is None or nu is None:  # no news of it, or nothing to optimize
                return u
            eta = jnp.asarray(rate, nu.dtype)
            if max_lr is not None:
                eta = eta * eta / jnp.asarray(max_lr, nu.dtype)
            decay = eta * jnp.asarray(rule.weight_decay, nu.dtype) * p.astype(nu.dtype)
            return (u.astype(nu.dtype) - decay).astype(u.dtype)

        return jax.tree.map(
            decayed, out, params, state.nu, is_leaf=_checks.is_none
        ), state

    return GradientTransformationExtraArgs(tx.init, update)
