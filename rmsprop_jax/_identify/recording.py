"""Choose the elements of a run to use, and estimate their rounding errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rmsprop_jax._error_text import TreeDef
from rmsprop_jax._identify.adafactor import compute_moments
from rmsprop_jax._identify.model import Sums
from rmsprop_jax._identify.run import Run, check_finite
from rmsprop_jax._identify.thresholds import (
    KEPT_OF_UPDATE,
    LEAST_STEPS,
    ROUNDINGS_OF_ARITHMETIC,
    SHARE_OF_UPDATE,
)

T = TypeVar("T")
_FLOAT32_EPS = float(jnp.finfo(jnp.float32).eps)


class Recording(NamedTuple):
    """A run of T steps: n of its elements in float64, and facts about the whole run.

    Attributes:
        g: [T, n], the gradients.
        p: [T, n], the parameters before each step.
        u: [T, n], the updates.
        noise: [T, n], the standard deviation of an update's rounding error.
        weight: [T, n], what a residual is multiplied by.
        adafactor_nu: [T, 2, n], Adafactor's second moment.
        leaf: [n], the index of the element's leaf.
        names: [leaves], the paths of the leaves.
        ndims: [leaves], the number of dimensions of each.
        sums: [T, leaves], sums over all elements of each leaf.
        moved_share: [T, leaves], the share of the elements that moved.
        gradient_norms: [T], the global norms of the whole gradients.
        precision: The relative precision of the optimizer's arithmetic.
        kept: [T], the index of each step in the user's recording.
        num_steps: The number of steps that the user recorded.
        num_elements: The number of elements that the user recorded.
        is_sampled: Whether the user recorded only a part of each gradient.
        structure: The pytree structure of the parameters.
        is_optimized: For each leaf of the parameters, whether it is one of `names`.
    """

    g: np.ndarray
    p: np.ndarray
    u: np.ndarray
    noise: np.ndarray
    weight: np.ndarray
    adafactor_nu: np.ndarray
    leaf: np.ndarray
    names: list[str]
    ndims: list[int]
    sums: Sums
    moved_share: np.ndarray
    gradient_norms: np.ndarray
    precision: float
    kept: np.ndarray
    num_steps: int
    num_elements: int
    is_sampled: bool
    structure: TreeDef
    is_optimized: list[bool]

    @property
    def rounding(self) -> float:
        """The share of the updates that rounding leaves unexplained."""
        noise = np.sum(np.square(self.weight * self.noise))
        return float(np.sqrt(noise / np.sum(np.square(self.weight * self.u))))

    def make_tree(self, values: Sequence[T], other: T) -> Any:
        """Return a tree like the parameters, with a value for each of `names`."""
        found = iter(values)
        flags = self.is_optimized
        return self.structure.unflatten([next(found) if f else other for f in flags])


def make_recording(
    run: Run,
    *,
    gradient_norms: ArrayLike | None,
    max_elements: int,
    skips: bool,
    leaf: int | None = None,
) -> Recording:
    """Return the recording, with elements from the smallest to the largest gradients.

    Args:
        run: The run.
        gradient_norms: The global norm of each whole gradient, if the user recorded a
            part of it.
        max_elements: How many elements to take.
        skips: Whether to leave out all steps at which nothing moved, or only those
            whose gradient is not finite.
        leaf: The index of the only leaf whose elements to take; all leaves if None.

    Raises:
        ValueError: If nothing can be learned from the run, or the norms do not fit it.
    """
    has_moved = _find_moves(run)
    is_kept = has_moved if skips else _find_finite(run)
    kept = np.flatnonzero(is_kept)
    sums = _sum_products(run, kept)
    norms = np.sqrt(np.sum(sums.gg, axis=1))
    if gradient_norms is not None:
        norms = _check_norms(gradient_norms, norms, kept, len(has_moved))
    chosen = _choose_elements(run, kept, max_elements, leaf)
    precisions = [_find_precision(p) for p in run.params.values()]
    of_leaves = [
        _measure_leaf(*leaf, kept)
        for leaf in zip(
            run.params.values(),
            run.gradients.values(),
            run.shapes,
            precisions,
            chosen,
            strict=True,
        )
    ]
    elements = _Elements(
        *(np.concatenate(parts, axis=-1) for parts in zip(*of_leaves, strict=True))
    )
    moved = [np.mean(p[kept + 1] != p[kept], axis=1) for p in run.params.values()]
    return Recording(
        g=elements.g,
        p=elements.p,
        u=elements.u,
        noise=elements.noise,
        weight=_compute_weight(elements),
        adafactor_nu=elements.adafactor_nu,
        leaf=np.repeat(np.arange(len(chosen)), [len(some) for some in chosen]),
        names=list(run.params),
        ndims=[len(shape) for shape in run.shapes],
        sums=sums,
        moved_share=np.stack(moved, axis=1),
        gradient_norms=norms,
        precision=min(max(precisions), _FLOAT32_EPS),
        kept=kept,
        num_steps=len(has_moved),
        num_elements=sum(p.shape[1] for p in run.params.values()),
        is_sampled=gradient_norms is not None,
        structure=run.structure,
        is_optimized=run.is_optimized,
    )


def _find_finite(run: Run) -> np.ndarray:
    """Return at which steps all gradients are finite, [T]."""
    finite = [np.all(np.isfinite(g), axis=1) for g in run.gradients.values()]
    return np.all(finite, axis=0)


def _find_moves(run: Run) -> np.ndarray:
    """Return at which steps something moved, [T]; raise if they say nothing."""
    moves = [np.any(p[1:] != p[:-1], axis=1) for p in run.params.values()]
    has_moved = np.any(moves, axis=0)
    if not np.any(has_moved):
        raise ValueError(
            "params must change, but they are the same after every step. If the "
            "optimizer changes them in place, copy them at each step."
        )
    # A step that was skipped because its gradient overflowed may hold anything.
    check_finite("gradients", run.gradients, has_moved)
    if np.sum(has_moved) < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps at which the parameters move, "
            f"but there were {np.sum(has_moved)}. A few dozen say more."
        )
    return has_moved


def _check_norms(
    gradient_norms: ArrayLike, least: np.ndarray, kept: np.ndarray, steps: int
) -> np.ndarray:
    """Return the norms of the whole gradients at the steps that are kept."""
    norms = np.asarray(gradient_norms, np.float64)
    if norms.shape != (steps,):
        raise ValueError(
            f"gradient_norms must have one number per step, shape {(steps,)}, but "
            f"its shape was {norms.shape}."
        )
    is_bad = ~(norms[kept] >= 0.99 * least)  # also if it is NaN
    if np.any(is_bad):
        first = np.flatnonzero(is_bad)[0]
        raise ValueError(
            "gradient_norms must be the norms of the whole gradients, so at least the "
            f"norms of the recorded elements, but at step {kept[first]} (from 0) it "
            f"was {norms[kept][first]:.6g}, and theirs is {least[first]:.6g}."
        )
    return norms[kept]


def _sum_products(run: Run, kept: np.ndarray) -> Sums:
    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.einsum("ti,ti->t", a, b, dtype=np.float64)

    pairs = [
        (g[kept], p[kept])
        for g, p in zip(run.gradients.values(), run.params.values(), strict=True)
    ]
    return Sums(
        gg=np.stack([dot(g, g) for g, _ in pairs], axis=1),
        gp=np.stack([dot(g, p) for g, p in pairs], axis=1),
        pp=np.stack([dot(p, p) for _, p in pairs], axis=1),
    )


def _choose_elements(
    run: Run, kept: np.ndarray, most: int, leaf: int | None
) -> list[np.ndarray]:
    """Return which elements of each leaf to take.

    Half of them are spread over the leaves, and the rest over the sizes of all
    gradients. A few have no gradient at all.
    """
    sizes = [np.linalg.norm(g[kept], axis=0) for g in run.gradients.values()]
    leaf_of = np.repeat(np.arange(len(sizes)), [len(size) for size in sizes])
    size = np.concatenate(sizes)
    order = np.argsort(size, kind="stable")
    if leaf is not None:
        order = order[leaf_of[order] == leaf]
    alive, dead = order[size[order] > 0], order[size[order] == 0]
    is_chosen = np.zeros(len(size), bool)
    is_chosen[dead[: max(2, most // 32)]] = True
    quota = most // (2 * len(sizes))
    for i in range(len(sizes)):
        is_chosen[_spread(alive[leaf_of[alive] == i], quota)] = True
    rest = alive[~is_chosen[alive]]
    is_chosen[_spread(rest, most - int(np.sum(is_chosen)))] = True
    starts = np.cumsum([0, *map(len, sizes)])
    return [np.flatnonzero(is_chosen[a:b]) for a, b in itertools.pairwise(starts)]


def _spread(x: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many entries, evenly spread, with the first and the last."""
    if len(x) <= most:
        return x
    return x[np.linspace(0, len(x) - 1, max(most, 0)).round().astype(int)]


class _Elements(NamedTuple):
    """Elements of one leaf or of all, [T, n] each."""

    g: np.ndarray
    p: np.ndarray
    u: np.ndarray
    noise: np.ndarray
    size: np.ndarray  # of the leaf's updates
    adafactor_nu: np.ndarray  # [T, 2, n]


def _measure_leaf(
    params: np.ndarray,
    gradients: np.ndarray,
    shape: tuple[int, ...],
    precision: float,
    some: np.ndarray,
    kept: np.ndarray,
) -> _Elements:
    """Return some elements of a leaf at the steps that are kept."""
    before = params[kept][:, some].astype(np.float64)
    after = params[kept + 1][:, some].astype(np.float64)
    u = after - before
    size = _measure_size(u) * np.ones_like(u)
    # A uniform rounding error has the variance of the last digit squared over 12. Both
    # ends of an update are rounded; the gradient and the update itself may be.
    last_digits = [
        _get_last_digit(before, precision),
        _get_last_digit(after, precision),
    ]
    last_digits.append(max(precision, _find_precision(gradients)) * u)
    variance = sum(np.square(x) for x in last_digits) / 12
    # The optimizer computes in float32, or in float64 if the parameters are.
    arithmetic = ROUNDINGS_OF_ARITHMETIC * min(precision, _FLOAT32_EPS)
    variance = variance + np.square(arithmetic) * (np.square(u) + np.square(size))
    return _Elements(
        g=gradients[kept][:, some].astype(np.float64),
        p=before,
        u=u,
        noise=np.sqrt(variance),
        size=size,
        adafactor_nu=compute_moments(gradients[kept], shape, some),
    )


def _measure_size(u: np.ndarray) -> np.ndarray:
    """Return the size of the updates [T, 1], or of what remains of larger earlier ones.

    With momentum, an update contains the earlier ones and their rounding errors.
    """
    if not u.shape[1]:
        return np.zeros((len(u), 1))
    size = np.sqrt(np.mean(np.square(u), axis=1, keepdims=True))
    for t in range(1, len(size)):
        size[t] = max(size[t], KEPT_OF_UPDATE * size[t - 1])
    return size


def _get_last_digit(x: np.ndarray, eps: float) -> np.ndarray:
    """Return the spacing of numbers of this precision, at each number."""
    return eps * np.exp2(np.floor(np.log2(np.abs(x) + 1e-300)))


def _compute_weight(elements: _Elements) -> np.ndarray:
    """Return the weights of residuals: 1 over their expected error."""
    typical = _measure_size(elements.u)
    typical = np.where(typical > 0, typical, np.median(typical[typical > 0]))
    # Otherwise a leaf that hardly moves would outweigh the others.
    size = np.maximum(elements.size, SHARE_OF_UPDATE * typical)
    return 1 / np.hypot(elements.noise, SHARE_OF_UPDATE * size)


def _find_precision(x: np.ndarray) -> float:
    """Return the relative precision of the numbers, whatever dtype stores them.

    The parameters of a bfloat16 run may have been saved as float32.
    """
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        if all(
            np.array_equal(row.astype(dtype).astype(x.dtype), row, equal_nan=True)
            for row in x
        ):
            return float(jnp.finfo(dtype).eps)
    return float(jnp.finfo(x.dtype).eps)
