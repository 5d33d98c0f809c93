"""A moment in 8 bits: a code for each element, and a scale for each block of them.

Codes have the parameter's shape. Of the axes, the one with the largest divisor of at
most 128 is cut into blocks of that length. A second moment is coded by its logarithm,
from the least to the largest of its block, so that every element is held to the same
relative precision, that of the block's spread in 253 steps. One that is less than e⁻²⁸
of the largest, as where no gradients come any more, is coded as that much: a wider
spread would cost all the others their precision. A momentum buffer is coded in 127 even
steps to either side of 0. Both have an exact 0.

Rounding is stochastic, and without bias in the value itself: at α = 0.99 an average
moves by 1 % a step, less than one step of most codes, so that rounded to nearest it
would never come down again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

SMALLEST_LEAF = 4096
LONGEST_BLOCK, SHORTEST_BLOCK = 128, 32

# The codes of a second moment: 0, from the least to the largest, and infinity or NaN.
_ZERO, _LEAST, _STEPS, _INFINITE = -128, -127, 253, 127
_SPREAD = 28.0  # at most, in powers of e
# Those of a momentum buffer: from −127 to 127 steps, and what is not finite.
_MOST, _NAN = 127, -128


class Codes(NamedTuple):
    """A moment in 8 bits; in the state a struct of trees like the parameters.

    Attributes:
        codes: int8, in the shape of the parameter. A leaf too small to be coded is
            kept here as it is, in float32.
        step: float32, one for each block: what one code is from the next. None for a
            leaf that is not coded.
        low: float32, one for each block: the logarithm of the least second moment that
            is not 0. None for a momentum buffer.
    """

    codes: Any
    step: Any
    low: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> Any:
        return jnp.dtype("float32")


def is_codes(x: Any) -> bool:
    """Whether it is `Codes`, of one leaf or of a whole tree."""
    return isinstance(x, Codes)


def block(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axis that is cut, and the length of a block; None for too small a leaf."""

    def length(axis):
        longest = min(shape[axis], LONGEST_BLOCK)
        return next(n for n in range(longest, 0, -1) if shape[axis] % n == 0)

    if math.prod(shape) < SMALLEST_LEAF:
        return None
    axis = max(range(len(shape)), key=lambda axis: (length(axis), axis))
    return (axis, length(axis)) if length(axis) >= SHORTEST_BLOCK else None


def scales(x: jax.Array, *, has_low: bool) -> tuple[Any, Any]:
    """The step and the low of every block of a float32 array; without derivatives."""
    x = lax.stop_gradient(x)
    if not has_low:
        least, most = _range(x, jnp.isfinite(x))
        largest = jnp.maximum(-least, most)
        return jnp.where(least <= most, largest, 0) / _MOST, None
    least, most = _range(x, _is_regular(x))
    some = least <= most
    high = jnp.log(most)
    low = jnp.where(some, jnp.maximum(jnp.log(least), high - _SPREAD), 0)
    return jnp.where(some, (high - low) / _STEPS, 0), low


def coded(x: jax.Array, step: Any, low: Any, bits: Any) -> Codes:
    """A float32 array in codes of these scales, rounded up or down by random bits."""
    # From 0 up to, but not, 1, and so little less that 253 and this are not 254.
    uniform = (bits >> 16).astype(jnp.float32) * 2.0**-16
    unit = _spread(jnp.where(step > 0, step, jnp.inf), x)
    if low is None:
        code = jnp.clip(jnp.floor(x / unit + uniform), -_MOST, _MOST)
        other, usual = jnp.int8(_NAN), jnp.isfinite(x)
    else:
        # Up with a chance that is linear in the value, from one power of e to the next.
        growth = _spread(jnp.expm1(step), x)
        up = jnp.maximum(1 - jnp.log(1 + (1 - uniform) * growth) / unit, 0)
        usual = _is_regular(x)
        other = jnp.where(jnp.isfinite(x), jnp.int8(_ZERO), jnp.int8(_INFINITE))
        place = (jnp.log(jnp.where(usual, x, 1)) - _spread(low, x)) / unit
        code = jnp.clip(jnp.floor(place + up), 0, _STEPS) + _LEAST
    # The choice comes last, as XLA on CPU makes a mere conversion anew for each reader.
    return Codes(jnp.where(usual, code.astype(jnp.int8), other), step, low)


def decoded(x: Any) -> Any:
    """The float32 array that codes stand for; anything else as it is."""
    if not is_codes(x):
        return x
    codes, step = x.codes.astype(jnp.float32), _spread(x.step, x.codes)
    largest = float(jnp.finfo(jnp.float32).max)  # which rounding may go beyond
    if x.low is None:
        value = jnp.clip(codes * step, -largest, largest)
        return jnp.where(x.codes == _NAN, jnp.nan, value)
    value = jnp.exp(_spread(x.low, x.codes) + (codes - _LEAST) * step)
    value = jnp.minimum(value, largest)
    value = jnp.where(x.codes == _INFINITE, jnp.inf, value)
    return jnp.where(x.codes == _ZERO, 0, value)


def apart(tree: Any) -> Any:
    """The codes of trees as a tree of codes; any other tree as it is."""
    if not is_codes(tree):
        return tree
    codes, structure = jax.tree.flatten(tree.codes, is_leaf=lambda x: x is None)
    steps = structure.flatten_up_to(tree.step)
    lows = [None] * len(codes)
    if tree.low is not None:
        lows = structure.flatten_up_to(tree.low)
    return structure.unflatten(
        leaf[0] if leaf[1] is None else Codes(*leaf)
        for leaf in zip(codes, steps, lows, strict=True)
    )


def together(tree: Any) -> Any:
    """A tree of codes as the codes of trees; any other tree as it is."""
    coded_leaves = [x for x in jax.tree.leaves(tree, is_leaf=is_codes) if is_codes(x)]
    if not coded_leaves:
        return tree

    def field(name, other):
        return jax.tree.map(
            lambda x: getattr(x, name) if is_codes(x) else other(x),
            tree,
            is_leaf=is_codes,
        )

    has_low = coded_leaves[0].low is not None
    return Codes(
        codes=field("codes", lambda x: x),
        step=field("step", lambda _: None),
        low=field("low", lambda _: None) if has_low else None,
    )


def _is_regular(x: jax.Array) -> jax.Array:
    """Whether it has a logarithm; that of 0 has none.

    Neither has what is so near to the subnormal numbers, which may be flushed to 0,
    that it could become one when it is decoded.
    """
    return jnp.isfinite(x) & (x >= 2.0**-120)


def _range(x: jax.Array, counts: Any) -> tuple[jax.Array, jax.Array]:
    """The least and the largest that counts of every block; if none does, the inverse.

    The inverse of all that float32 holds: infinities take XLA on CPU many times longer.
    """
    axis, length = block(x.shape) or (0, 1)
    cut = (*x.shape[:axis], x.shape[axis] // length, length, *x.shape[axis + 1 :])
    largest = jnp.float32(jnp.finfo(jnp.float32).max)
    ends = (largest, -largest)
    # In one reduction of two values, as of two XLA on CPU would keep what they reduce.
    return lax.reduce(
        tuple(_whole_blocks(jnp.where(counts, x, end)).reshape(cut) for end in ends),
        ends,
        lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1])),
        (axis + 1,),
    )


def _spread(x: jax.Array, like: jax.Array) -> jax.Array:
    """Each block's number for every element of the block."""
    axis, length = block(like.shape) or (0, 1)
    cut = (*x.shape[: axis + 1], length, *x.shape[axis + 1 :])
    spread = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), cut).reshape(like.shape)
    place = jax.typeof(like).sharding
    same = jax.typeof(spread).sharding == place
    return spread if same else jax.sharding.reshard(spread, place)


def _whole_blocks(x: jax.Array) -> jax.Array:
    """With no block across two devices, as far as the type says where it is.

    On explicit axes JAX can't reshape across them; on automatic ones XLA sees to it.
    """
    axis, length = block(x.shape) or (0, 1)
    sharding = jax.typeof(x).sharding
    if sharding.spec[axis] is None or sharding.shard_shape(x.shape)[axis] % length == 0:
        return x
    spec = [None if i == axis else names for i, names in enumerate(sharding.spec)]
    return jax.sharding.reshard(x, sharding.update(spec=PartitionSpec(*spec)))
