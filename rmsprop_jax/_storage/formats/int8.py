"""In 8 bits: a code for each element, and a scale for each block of them.

Codes have the parameter's shape. A second moment is coded by its logarithm, from the
least to the largest of its block. So every element is held to the same relative
precision: a 253rd of the block's spread. A moment that is less than e⁻²⁸ of the
largest, as where no gradients come any more, is coded as that much: a wider spread
would cost all the others their precision. A momentum buffer is coded in 127 even steps
to either side of 0. Both have an exact 0.

Rounding is stochastic, and without bias in the value itself. At α = 0.99 an average
moves by 1 % a step, which is less than one step of most codes; rounded to nearest it
would never come down again. With u uniform in [0, 1):

*Even steps.* x/step lies between two codes c and c + 1 as c + f. It is rounded to
⌊x/step + u⌋, which is c + 1 with the chance f. The mean is x.

*Logarithms.* x lies between e^(low + c·step) and the next, which is e^step times as
large. In codes that is c + f with f = log(x / that) / step. The mean is x if the chance
of c + 1 is q = (e^(f·step) − 1)/(e^step − 1). That is u' < q for u' = 1 − u, or
f > log(1 + u'·(e^step − 1))/step. So it is rounded to ⌊c + f + 1 − that⌋, in which
nothing depends on c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rmsprop_jax._storage._blocks import cut, ranges, sides, spread
from rmsprop_jax._storage._memory import settled

Sources = TypeVar("Sources")

DTYPES = ("int8",)
ROUNDS = True

# The codes of a second moment: 0, from the least to the largest, and infinity or NaN.
_ZERO, _LEAST, _STEPS, _INFINITE = -128, -127, 253, 127
_SPREAD = 28.0  # at most, in powers of e
# Those of a momentum buffer: from −127 to 127 steps, and what is not finite.
_MOST, _NAN = 127, -128


class Codes(NamedTuple):
    """A leaf of the state in 8 bits.

    Attributes:
        codes: int8, in the shape of the parameter.
        step: float32, one for each block: what one code is from the next.
        low: float32, one for each block: the logarithm of the least second moment that
            is not 0. None for a momentum buffer.
    """

    codes: jax.Array
    step: jax.Array
    low: jax.Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


def holds(kept: object) -> bool:
    return isinstance(kept, Codes)


def start(full: jax.Array, field: str, dtype: str) -> jax.Array | Codes:
    """Codes; float32 where the leaf can't be cut, and of the mean, as in bfloat16."""
    del dtype  # there is one
    if field == "grad_mean" or cut(full.shape) is None:
        return full
    zeros = jnp.zeros(full.shape, jnp.uint32)
    return _coded(full, *_scales(full, is_second_moment=field == "nu"), zeros)


def keep(
    wanted: Callable[[Sources], jax.Array],
    sources: Sources,
    old: Codes,
    field: str,
    bits: Callable[[tuple[int, ...]], jax.Array],
) -> Codes:
    del field  # the old value shows which it is
    wanted = jax.jit(wanted)  # traced once, for both of its uses
    x = wanted(sources).astype(jnp.float32)
    scales = _scales(x, is_second_moment=old.low is not None)
    # Computed again rather than kept in memory for the codes.
    scales, sources = settled((scales, sources))
    return _coded(wanted(sources).astype(jnp.float32), *scales, bits(x.shape))


@jax.jit  # as it is used up to seven times a leaf, and traced once
def read(kept: Codes) -> jax.Array:
    codes, step = kept.codes.astype(jnp.float32), spread(kept.step, kept.codes)
    largest = float(jnp.finfo(jnp.float32).max)  # which rounding may go beyond
    if kept.low is None:
        value = jnp.clip(codes * step, -largest, largest)
        return jnp.where(kept.codes == _NAN, jnp.nan, value)
    value = jnp.exp(spread(kept.low, kept.codes) + (codes - _LEAST) * step)
    value = jnp.minimum(value, largest)
    value = jnp.where(kept.codes == _INFINITE, jnp.inf, value)
    return jnp.where(kept.codes == _ZERO, 0, value)


def block(shape: tuple[int, ...]) -> tuple[int, ...]:
    return sides(shape)


@partial(jax.jit, static_argnames="is_second_moment")
def _scales(
    x: jax.Array, *, is_second_moment: bool
) -> tuple[jax.Array, jax.Array | None]:
    """The step and the low of every block of a float32 array; without derivatives."""
    x = jax.lax.stop_gradient(x)
    if not is_second_moment:
        least, most = ranges(x, jnp.isfinite(x))
        largest = jnp.maximum(-least, most)
        return jnp.where(least <= most, largest, 0) / _MOST, None
    least, most = ranges(x, _is_regular(x))
    some = least <= most
    high = jnp.log(most)
    low = jnp.where(some, jnp.maximum(jnp.log(least), high - _SPREAD), 0)
    return jnp.where(some, (high - low) / _STEPS, 0), low


@jax.jit
def _coded(
    x: jax.Array, step: jax.Array, low: jax.Array | None, bits: jax.Array
) -> Codes:
    """A float32 array in codes of these scales, rounded up or down by random bits."""
    # From 0 up to, but not, 1, and so little less that 253 and this are not 254.
    uniform = bits.astype(jnp.float32) * 2.0**-16
    unit = spread(jnp.where(step > 0, step, jnp.inf), x)
    if low is None:
        code = jnp.clip(jnp.floor(x / unit + uniform), -_MOST, _MOST)
        other, usual = jnp.int8(_NAN), jnp.isfinite(x)
    else:
        growth = spread(jnp.expm1(step), x)
        up = jnp.maximum(1 - jnp.log(1 + (1 - uniform) * growth) / unit, 0)
        usual = _is_regular(x)
        other = jnp.where(jnp.isfinite(x), jnp.int8(_ZERO), jnp.int8(_INFINITE))
        exact = (jnp.log(jnp.where(usual, x, 1)) - spread(low, x)) / unit
        code = jnp.clip(jnp.floor(exact + up), 0, _STEPS) + _LEAST
    # The choice comes last, as XLA on CPU makes a mere conversion anew for each reader.
    return Codes(jnp.where(usual, code.astype(jnp.int8), other), step, low)


def _is_regular(x: jax.Array) -> jax.Array:
    """Whether it has a logarithm; that of 0 has none.

    Neither has what is so near to the subnormal numbers, which may be flushed to 0,
    that it could become one when it is decoded.
    """
    return jnp.isfinite(x) & (x >= 2.0**-120)
