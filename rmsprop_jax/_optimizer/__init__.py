"""The optimizer: torch.optim.RMSprop's arguments, in its order, with its defaults."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._options import Mask, Options, Seed
from rmsprop_jax._transform import transformation


def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 0.01,
    alpha: optax.ScalarOrSchedule = 0.99,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    momentum: optax.ScalarOrSchedule = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
    nesterov: bool = False,
    eps_in_sqrt: bool = False,
    initial_scale: ArrayLike = 0.0,
    bias_correction: bool = False,
    decoupled_weight_decay: bool = False,
    weight_decay_mask: Mask | None = None,
    state_dtype: DTypeLike = "float32",
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp as ``torch.optim.RMSprop`` has it, number for number.

    With gradient g, parameter p, rate η, decay λ, and the state's ``nu`` (ν) and ``mu``
    (b):

    $$
    g ← g + λ·p
    ν ← α·ν + (1 − α)·g²
    b ← μ·b + g / (√ν + ε)
    p ← p − η·b
    $$

    With ``centered``, ν is the variance of the gradient about its mean (``grad_mean``,
    m) and is kept as such, so that it is never negative:

    $$
    m ← α·m + (1 − α)·g
    ν ← α·ν + (1 − α)/α · (g − m)²
    $$

    The surprising thing: momentum comes *before* the rate, as in torch and MLX and
    unlike optax, TensorFlow and Keras. The two differ as soon as the rate changes.

    A complex leaf is two reals, as in torch. ``jax.grad`` returns the conjugate of its
    gradient. Turn it before ``update``, or the loss rises:
    ``gradients = jax.tree.map(jnp.conj, gradients)``.

    The arithmetic is in float32, or in float64 where a gradient or a parameter is.
    Finite gradients give finite updates: in float32 those beyond ±2⁶² count as ±2⁶²
    (in float64 ±2⁵¹⁰), as the square of more would be infinite. An infinite gradient
    gives NaN.

    The rate, α, ε, the decay and the momentum may each be a Python number, a traced
    scalar (a jit argument, under ``jax.vmap``, ``jax.grad`` or
    ``optax.inject_hyperparams``), or a schedule: a function from the count of updates
    (from 0) to a scalar.

    Args:
        learning_rate: η, torch's ``lr``.
        alpha: α, how much of the second moment (and of the mean) a step keeps. With
            bias correction it can't be a schedule.
        eps: ε, added to the root of the second moment, in units of the gradient.
        weight_decay: λ, added to the gradient as λ·p (coupled, L2); then ``update``
            needs ``params``.
        momentum: μ, how much of the momentum buffer a step keeps. A Python 0 means no
            buffer; a traced one and a schedule keep it.
        centered: Whether to divide by the deviation of the gradient from its mean
            rather than from 0 (Graves 2013).
        maximize: Whether to go up the gradient: its sign is turned before the decay.
        nesterov: Whether the step is μ·b + x rather than b, x being the gradient
            divided by its root mean square. Changes nothing without momentum.
        eps_in_sqrt: Whether the divisor is √(ν + ε), as in TensorFlow and Keras,
            rather than √ν + ε. Then ε is in units of the gradient squared.
        initial_scale: The second moment before the first step: 0, or 1 in TensorFlow 1.
            A number or a scalar array. With bias correction it must be 0.
        bias_correction: Whether the moments are weighted means from the first step
            on, as in Adam, rather than leaning towards where they began. If centered,
            the variance of the first gradient alone is 0, and the first step g/ε.
        decoupled_weight_decay: Whether the decay goes to the parameter instead, as
            p − η·λ·p (as in AdamW), past the rule.
        weight_decay_mask: Which leaves decay: a tree of booleans like the parameters,
            or a prefix of it, or a function from the parameters to one. All by default.
        state_dtype: How ``nu``, ``mu`` and ``grad_mean`` are kept, whatever the dtype
            of the parameters: ``"float32"``, ``"float64"`` or ``"bfloat16"``. bfloat16
            is rounded stochastically (see `rmsprop_jax.precision`), and ``grad_mean``
            is float32 with it. float64 parameters keep float64, complex ones complex64
            or complex128. A state that is there already, as from a checkpoint, keeps
            its own.
        seed: Of the stochastic rounding: an integer or an integer scalar array. Runs
            with the same one are the same to the bit.

    Returns:
        A gradient transformation, with an `RMSPropState` whose trees are like the
        parameters. Updates have the gradients' shapes and dtypes. Integer, boolean and
        float0 gradients get a zero update; a ``None`` gets none, and its state stays.

    Raises:
        ValueError: On a number that is negative, infinite or NaN, an array that is not
            a scalar, or another state dtype; from ``update`` where gradients,
            parameters, mask and state do not belong together.
        TypeError: On an argument of the wrong kind; from ``update`` on a state that
            is not an `RMSPropState`.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax import rmsprop
        >>> tx = rmsprop(learning_rate=0.5, alpha=0.75, eps=0.0)
        >>> params = {"w": jnp.array([1.0, -4.0])}
        >>> state = tx.init(params)
        >>> gradients = {"w": jnp.array([3.0, -5.0])}
        >>> updates, state = tx.update(gradients, state, params)
        >>> updates["w"]  # −η·g / √((1 − α)·g²) = ∓0.5/0.5
        Array([-1.,  1.], dtype=float32)
        >>> optax.apply_updates(params, updates)["w"]
        Array([ 0., -3.], dtype=float32)

    References:
        torch 2.13.0, ``torch/optim/rmsprop.py``.
        Tieleman and Hinton, *Lecture 6.5: RMSProp*, Neural Networks for Machine
        Learning, Coursera, 2012.
        Graves, *Generating Sequences With Recurrent Neural Networks*,
        arXiv:1308.0850, 2013, equations 38-45 (centered).
    """
    return transformation(
        Options(
            learning_rate=learning_rate,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
            nesterov=nesterov,
            eps_in_sqrt=eps_in_sqrt,
            initial_scale=initial_scale,
            bias_correction=bias_correction,
            decoupled_weight_decay=decoupled_weight_decay,
            weight_decay_mask=weight_decay_mask,
            state_dtype=state_dtype,
            seed=seed,
        )
    )


def scale_by_rmsprop(
    alpha: optax.ScalarOrSchedule = 0.99,
    eps: optax.ScalarOrSchedule = 1e-8,
    momentum: optax.ScalarOrSchedule = 0.0,
    centered: bool = False,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    nesterov: bool = False,
    eps_in_sqrt: bool = False,
    initial_scale: ArrayLike = 0.0,
    bias_correction: bool = False,
    state_dtype: DTypeLike = "float32",
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """`rmsprop` without the rate: the direction, neither scaled nor negated.

    For chains of one's own: ``optax.chain(scale_by_rmsprop(), ...,
    optax.scale_by_learning_rate(0.01))``. The decay is coupled, as in torch. The
    arguments, the state, the dtypes and what is raised are those of `rmsprop`.

    Returns:
        A gradient transformation whose state is an `RMSPropState`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rmsprop_jax import scale_by_rmsprop
        >>> tx = scale_by_rmsprop(alpha=0.75, eps=0.0)
        >>> state = tx.init({"w": jnp.array([1.0, -4.0])})
        >>> updates, state = tx.update({"w": jnp.array([3.0, -5.0])}, state)
        >>> updates["w"]  # g / √((1 − α)·g²) = ±1/0.5
        Array([ 2., -2.], dtype=float32)
    """
    return transformation(
        Options(
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            nesterov=nesterov,
            eps_in_sqrt=eps_in_sqrt,
            initial_scale=initial_scale,
            bias_correction=bias_correction,
            weight_decay_mask=weight_decay_mask,
            state_dtype=state_dtype,
            seed=seed,
            has_rate=False,
        )
    )
