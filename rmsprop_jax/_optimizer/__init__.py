"""The optimizer, with the arguments of ``torch.optim.RMSprop`` in PyTorch's order."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike, DTypeLike

from rmsprop_jax._optimizer.options import Mask, Options, Seed
from rmsprop_jax._optimizer.state import RMSPropState
from rmsprop_jax._optimizer.transform import make_transformation

__all__ = ["RMSPropState", "rmsprop", "scale_by_rmsprop"]


def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 0.01,
    alpha: optax.ScalarOrSchedule = 0.99,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule | None = None,
    momentum: optax.ScalarOrSchedule | None = None,
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
    """RMSProp, with the arguments and the results of ``torch.optim.RMSprop``.

    For a gradient g, a parameter p, a learning rate η, a weight decay λ and the state's
    ``nu`` (ν) and ``mu`` (b):

    $$
    g ← g + λ·p
    ν ← α·ν + (1 − α)·g²
    b ← μ·b + g / (√ν + ε)
    p ← p − η·b
    $$

    With ``centered``, ν is the variance of the gradient about its mean (``grad_mean``,
    m). It is computed as such, so that it is never negative:

    $$
    m ← α·m + (1 − α)·g
    ν ← α·ν + (1 − α)/α · (g − m)²
    $$

    Note that momentum is applied *before* the learning rate, as in PyTorch, but unlike
    optax, TensorFlow and Keras. The two orders differ as soon as the learning rate
    changes.

    A complex leaf is treated as two real ones, as in PyTorch. ``jax.grad`` returns the
    conjugate of a complex gradient. Conjugate it before calling ``update``; otherwise
    the loss increases: ``gradients = jax.tree.map(jnp.conj, gradients)``.

    The arithmetic is in float32, or in float64 if a gradient or the state is. With a
    momentum of at most 1, finite gradients never give NaN: in float32, gradients are
    clipped to ±2⁶² (in float64 to ±2⁵¹⁰), so that the squares of gradients and of their
    differences are finite. An infinite gradient gives NaN.

    The learning rate, α, ε, the weight decay and the momentum may each be a Python
    number, a traced scalar (an argument of a jitted function, or under ``jax.vmap``,
    ``jax.grad`` or ``optax.inject_hyperparams``), or a schedule: a function from the
    step count (starting at 0) to a scalar.

    Args:
        learning_rate: η. PyTorch calls it ``lr``.
        alpha: α, the decay rate of the second moment (and of the gradient mean), from 0
            to 1. A schedule or an array is clipped to these bounds. With bias
            correction it can't be a schedule.
        eps: ε, added to the square root of the second moment. It has the unit of the
            gradient.
        weight_decay: λ. λ·p is added to the gradient (coupled weight decay, or L2
            regularization). ``update`` then needs ``params``. None means 0.
        momentum: μ, the decay rate of the momentum buffer. None and 0 allocate no
            buffer; a traced zero or a schedule does. Above 1 the buffer grows by
            itself.
        centered: Whether to divide by the gradient's standard deviation instead of its
            root mean square (Graves 2013).
        maximize: Whether to maximize the objective. The sign of the gradient is changed
            before weight decay is added.
        nesterov: Whether to use Nesterov momentum: the step is μ·b + x instead of b,
            where x is the gradient divided by its root mean square. Without momentum it
            has no effect.
        eps_in_sqrt: Whether to divide by √(ν + ε), as TensorFlow and Keras do, instead
            of √ν + ε. Then ε has the unit of the squared gradient.
        initial_scale: The initial value of the second moment, a number or a scalar
            array, such as 1, as in TensorFlow 1. With bias correction it must be 0.
        bias_correction: Whether to correct the moments' bias towards their initial
            values, as Adam does. If centered, the variance of the first gradient alone
            is 0, and the first step is η·g/ε.
        decoupled_weight_decay: Whether to decay the parameter directly, as
            p − η·λ·p (like AdamW), instead of through the gradient.
        weight_decay_mask: Which leaves decay: a pytree of booleans like the parameters,
            a prefix of one, or a function from the parameters to one. By default, all
            leaves decay.
        state_dtype: The dtype of ``nu``, ``mu`` and ``grad_mean``, independent of the
            parameters' dtype: ``"float32"``, ``"float64"`` or ``"bfloat16"``. bfloat16
            is rounded stochastically (see `rmsprop_jax.precision`); ``grad_mean`` then
            stays float32. The state of float64 and complex parameters has their dtype.
            An existing state, such as one from a checkpoint, keeps its own dtype.
        seed: The seed of the stochastic rounding: an integer or an integer scalar
            array. The same program with the same seed gives bitwise identical results.

    Returns:
        A gradient transformation with an `RMSPropState`, whose pytrees are like the
        parameters. Updates have the shapes and dtypes of the gradients, except that
        integer, boolean and float0 gradients get zeros that can be added to the
        parameter. A gradient that is ``None``
        gets no update, and its state does not change.

    Raises:
        ValueError: If a number is negative, infinite or NaN, if ``alpha`` is greater
            than 1, if an array does not have one element, or if the state dtype is
            unknown. From ``update``, if gradients, parameters, mask and state do not
            match.
        TypeError: If an argument has the wrong type. From ``update``, if the state is
            not an `RMSPropState`.

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
        PyTorch 2.13.0, ``torch/optim/rmsprop.py``.
        Tieleman and Hinton, *Lecture 6.5: RMSProp*, Neural Networks for Machine
        Learning, Coursera, 2012.
        Graves, *Generating Sequences With Recurrent Neural Networks*,
        arXiv:1308.0850, 2013, equations 38-45 (centered).
    """
    return make_transformation(
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
    momentum: optax.ScalarOrSchedule | None = None,
    centered: bool = False,
    *,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Mask | None = None,
    nesterov: bool = False,
    eps_in_sqrt: bool = False,
    initial_scale: ArrayLike = 0.0,
    bias_correction: bool = False,
    state_dtype: DTypeLike = "float32",
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """`rmsprop` without the learning rate: the direction, neither scaled nor negated.

    Use it to build your own chain: ``optax.chain(scale_by_rmsprop(), ...,
    optax.scale_by_learning_rate(0.01))``. Weight decay is coupled, as in PyTorch. The
    arguments have the meaning that they have in `rmsprop`; the state, the dtypes and
    the errors are the same.

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
    return make_transformation(
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
            has_learning_rate=False,
        )
    )
