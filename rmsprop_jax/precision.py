"""State and parameters in fewer bits, without losing the run.

Rounded to the nearest bfloat16, an average that moves by less than half a unit in its
last place a step does not move at all: with α = 0.999 the second moment never comes
down again. Rounded up or down at random, with the probabilities that make the mean
right, it moves as it should on average.

The random bits are a hash of the seed, the step, the leaf's place in the tree, what is
rounded and the element's place in its leaf. So there is no key to carry, the same run
has the same bits, and so it has them however the leaf is sharded. What lies outside the
program's view of a leaf they can't depend on: under ``vmap``, ``pmap`` and
``shard_map`` each part has the same bits, unless it has a seed of its own.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rmsprop_jax import _checks, _codes, _errors


def narrowed(x: jax.Array, dtype: Any, *place: Any) -> jax.Array:
    """`x` in another dtype; if that is bfloat16 rounded stochastically.

    Args:
        x: A real array, float32 or wider.
        dtype: A real floating-point dtype.
        *place: Integers, Python's or int32 scalars, that tell this rounding from
            others: the step, the leaf, what of it is rounded.

    Returns:
        An array of the same shape. bfloat16 values, infinities and NaN stay what they
        are; a finite float32 value stays finite. Derivatives pass as if there was no
        rounding.
    """
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    return _to_bfloat16(x.astype(jnp.float32), random_bits(x.shape, *place))


def widened(moments: Any) -> Any:
    """A state's moments in numbers, whatever they are kept in.

    Args:
        moments: A tree of the state: its ``nu``, ``mu`` or ``grad_mean``.

    Returns:
        A tree like the parameters, of float32 arrays in place of bfloat16 ones and of
        the codes of an int8 state. Other arrays, and None, stay as they are. Codes that
        were made within ``vmap`` or ``shard_map`` are to be read within it.

    Example:
        >>> import jax.numpy as jnp
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.precision import widened
        >>> tx = rmsprop(state_dtype="int8")
        >>> params = {"w": jnp.ones((64, 64))}
        >>> _, state = tx.update(params, tx.init(params))
        >>> state.nu.codes["w"].dtype, widened(state.nu)["w"][0, 0]
        (dtype('int8'), Array(0.01, dtype=float32))
    """

    def wide(x):
        x = _codes.decoded(x)
        return x.astype(jnp.float32) if _is_narrow(x) else x

    return jax.tree.map(wide, _codes.apart(moments), is_leaf=_codes.is_codes)


@jax.custom_jvp
def _to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    # bfloat16 is the upper half of a float32. Adding as much to the lower half, in the
    # integers, carries into the upper one as often as the lower half is large.
    raised = lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)
    upper = lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    # A carry may have made it infinite; no arithmetic, which may flush subnormals.
    largest = float(jnp.finfo(jnp.bfloat16).max)
    upper = jnp.where(jnp.isinf(upper), jnp.where(x < 0, -largest, largest), upper)
    return jnp.where(jnp.isfinite(x), upper, x).astype(jnp.bfloat16)


@_to_bfloat16.defjvp
def _to_bfloat16_jvp(primals, tangents):
    return _to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


def random_bits(shape: tuple[int, ...], *place: Any) -> jax.Array:
    """32 random bits for each element, the same for the same place."""
    salt = jnp.uint32(0)
    for part in place:
        salt = _mixed(salt + jnp.asarray(part, jnp.uint32))
    strides = [
        functools.reduce(operator.mul, shape[axis + 1 :], 1) % 2**32
        for axis in range(len(shape))
    ]
    index = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return _mixed(index ^ salt)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits, in which each depends on all.

    The multipliers are the "lowbias32" of Ellis and Wellons' hash prospector (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _is_narrow(p: Any) -> bool:
    """Whether a parameter is a floating-point one of 16 bits or fewer."""
    if p is None or not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
        return False
    return jnp.finfo(jnp.result_type(p)).bits < 32


def _lands_on(target: jax.Array, p: jax.Array) -> jax.Array:
    """The update, in float32, with which optax.apply_updates makes p the target."""
    return target.astype(jnp.float32) - p.astype(jnp.float32)


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`: the number of updates, an int32 scalar."""

    count: Any


def stochastic_rounding(*, seed: Any = 0) -> optax.GradientTransformationExtraArgs:
    """For the end of a chain: bfloat16 parameters are rounded stochastically.

    Where an update is small beside its parameter, p + u rounded to the nearest
    bfloat16 is p again, and training stands still. The updates that this makes take
    ``optax.apply_updates`` (and so Flax's ``TrainState`` and ``nnx.Optimizer``)
    exactly to p + u rounded up or down at random, with a mean of p + u. They are
    float32; those of parameters that are not bfloat16 pass as they are.

    Args:
        seed: Of the random bits: an integer or a scalar array.

    Returns:
        A gradient transformation with a `StochasticRoundingState`; ``update`` needs
        ``params``. ``optax.apply_if_finite`` goes inside the chain, before it.

    Raises:
        ValueError: From ``update``, where params are missing, or a parameter is in
            another dtype of 16 bits or fewer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.precision import stochastic_rounding
        >>> tx = optax.chain(rmsprop(1e-4), stochastic_rounding())
        >>> params = jnp.ones(10_000, jnp.bfloat16)  # the next one is 1.0078125
        >>> updates, _ = tx.update(-params, tx.init(params), params)
        >>> mean = optax.apply_updates(params, updates).astype(jnp.float32).mean()
        >>> print(f"{mean:.4f}")  # 1 + 1e-4·g/√(0.01·g²)
        1.0010
    """
    seed = _checks.seed(seed)

    def init(params):
        del params  # there is nothing to keep of them
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args  # unused here, and allowed, for others in a chain
        _checks.params_given("stochastic_rounding", params)
        places = iter(range(len(jax.tree.leaves(updates, is_leaf=_checks.is_none))))

        def rounded(path, u, p):
            place = next(places)
            if u is None or not _is_narrow(p):
                return u
            if p.dtype != jnp.bfloat16:
                raise ValueError(
                    "stochastic_rounding is for bfloat16 parameters, but leaf "
                    f"{_errors.leaf(path)} was {p.dtype}. Keep "
                    "it in bfloat16, or wrap the optimizer in master_weights instead."
                )
            exact = p.astype(jnp.float32) + u.astype(jnp.float32)
            return _lands_on(narrowed(exact, p.dtype, seed, state.count, place), p)

        updates = jax.tree_util.tree_map_with_path(
            rounded, updates, params, is_leaf=_checks.is_none
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, StochasticRoundingState(count)

    return optax.GradientTransformationExtraArgs(init, update)


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        masters: A tree like the parameters: float32 copies of those of 16 bits or
            fewer, and None for the others, which are their own masters.
        inner: The state of the inner transformation.
    """

    masters: Any
    inner: Any


def master_weights(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Trains float32 copies of narrow parameters, which show their rounding.

    The inner transformation sees the masters as its parameters (so decay acts on them)
    and float32 gradients. The updates take ``optax.apply_updates`` exactly to the
    masters rounded to the nearest value of the parameter's dtype (or, from a parameter
    a thousand times larger, as near as float32 holds the difference).

    Args:
        tx: The whole optimizer, with ``optax.apply_if_finite`` if you want it.

    Returns:
        A gradient transformation with a `MasterWeightsState`; ``update`` needs
        ``params``. Updates of parameters of 16 bits or fewer are float32.

    Raises:
        ValueError: From ``update``, where params are missing.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.precision import master_weights
        >>> tx = master_weights(rmsprop(1e-4))
        >>> params = jnp.ones(1, jnp.bfloat16)
        >>> state = tx.init(params)
        >>> for _ in range(10):
        ...     updates, state = tx.update(-params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(f"{params[0]:.4f} {state.masters[0]:.3f}")
        1.0078 1.005
    """
    tx = optax.with_extra_args_support(tx)

    def wide(x, p):
        return x if x is None or not _is_narrow(p) else x.astype(jnp.float32)

    def tree_map(function, *trees):
        return jax.tree.map(function, *trees, is_leaf=_checks.is_none)

    def init(params):
        masters = tree_map(
            lambda p: jnp.asarray(p, jnp.float32) if _is_narrow(p) else None, params
        )
        full = tree_map(lambda m, p: p if m is None else m, masters, params)
        return MasterWeightsState(masters, tx.init(full))

    def update(updates, state, params=None, **extra_args):
        _checks.params_given("master_weights", params)
        full = tree_map(lambda m, p: p if m is None else m, state.masters, params)
        updates = tree_map(wide, updates, params)
        updates, inner = tx.update(updates, state.inner, full, **extra_args)

        def trained(u, m):
            return m if m is None or u is None else m + u

        def landing(u, m, p):
            return u if m is None or u is None else _lands_on(m.astype(p.dtype), p)

        masters = tree_map(trained, updates, state.masters)
        updates = tree_map(landing, updates, masters, params)
        return updates, MasterWeightsState(masters, inner)

    return optax.GradientTransformationExtraArgs(init, update)
