"""The recorded run: its trees, checked, and the elements that are looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rmsprop_jax._error_text import TreeDef, describe_difference, named_leaves
from rmsprop_jax._identify.adafactor import compute_moments
from rmsprop_jax._identify.model import Sums
from rmsprop_jax._identify.thresholds import (
    KEPT_OF_UPDATE,
    LEAST_STEPS,
    ROUNDINGS_OF_ARITHMETIC,
    SHARE_OF_UPDATE,
)

T = TypeVar("T")
Leaves: TypeAlias = dict[str, np.ndarray]  # by their paths

_FLOAT32_EPS = float(jnp.finfo(jnp.float32).eps)


class Recording(NamedTuple):
    """A run of T steps: n of its elements in float64, and what is known of the whole.

    Attributes:
        g: [T, n], the gradients.
        p: [T, n], the parameters before each step.
        u: [T, n], the updates.
        noise: [T, n], what rounding adds to an update, a standard deviation.
        weight: [T, n], what a residual is multiplied with.
        adafactor_nu: [T, 2, n], Adafactor's second moment.
        leaf: [n], the index of the element's leaf.
        names: [leaves], the paths of the leaves.
        ndims: [leaves], how many dimensions each has.
        sums: Over all elements of each leaf, [T, leaves].
        moved_share: [T, leaves], the share of the elements that moved.
        gradient_norms: [T], the global norms of the whole gradients.
        precision: The relative precision of the optimizer's arithmetic.
        kept: [T], the number of each step in what the user recorded.
        num_steps: How many steps the user recorded.
        num_elements: How many elements the user recorded.
        is_sampled: Whether the user recorded a part of each gradient only.
        structure: That of the parameters.
        is_optimized: Of each leaf of the parameters, whether it is one of `names`.
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


class Run(NamedTuple):
    """A whole run: each leaf is a real array of two dimensions.

    Attributes:
        params: [T + 1, size], by their paths.
        gradients: [T, size], by their paths.
        shapes: Of each leaf, at one step.
        structure: That of the parameters.
        is_optimized: Of each leaf of the parameters, whether it is here.
    """

    params: Leaves
    gradients: Leaves
    shapes: list[tuple[int, ...]]
    structure: TreeDef
    is_optimized: list[bool]


class _Tree(NamedTuple):
    """The leaves that can be optimized."""

    leaves: Leaves
    structure: TreeDef
    is_optimized: list[bool]


def read_run(params: optax.Params, gradients: optax.Updates) -> Run:
    """Read what the user recorded.

    Raises:
        TypeError: If a leaf is not an array of numbers.
        ValueError: If the trees, their lengths or their shapes do not belong together.
            It names the leaf.
    """
    p_tree, g_tree = _read_trees(params, gradients)
    _check_trees(p_tree.leaves, g_tree.leaves)
    _check_finite("params", p_tree.leaves)
    return Run(
        params={name: _to_real_rows(p) for name, p in p_tree.leaves.items()},
        gradients={name: _to_real_rows(g) for name, g in g_tree.leaves.items()},
        shapes=[_get_real_shape(p) for p in p_tree.leaves.values()],
        structure=p_tree.structure,
        is_optimized=p_tree.is_optimized,
    )


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
        skips: Whether to leave out the steps at which nothing moved. Otherwise only
            those are left out whose gradient is not finite.
        leaf: The index of the only leaf whose elements to take; all leaves if None.

    Raises:
        ValueError: If nothing can be learned from the run, or the norms are not its.
    """
    has_moved = _find_moves(run)
    is_kept = has_moved
    if not skips:
        finite = [np.all(np.isfinite(g), axis=1) for g in run.gradients.values()]
        is_kept = np.all(finite, axis=0)
    kept = np.flatnonzero(is_kept)
    sums = _sum_products(run, kept)
    norms = np.sqrt(np.sum(sums.gg, axis=1))
    if gradient_norms is not None:
        norms = _check_norms(gradient_norms, norms, kept, len(has_moved))
    moved = [np.mean(p[kept + 1] != p[kept], axis=1) for p in run.params.values()]
    chosen = _choose_elements(run, kept, max_elements, leaf)
    measured = [
        _measure_leaf(p, g, kept, some)
        for p, g, some in zip(
            run.params.values(), run.gradients.values(), chosen, strict=True
        )
    ]
    u = np.concatenate([part.u for part in measured], axis=1)
    noise = np.concatenate([part.noise for part in measured], axis=1)
    size = np.concatenate([part.size for part in measured], axis=1)
    nus = [
        compute_moments(g[kept], shape, some)
        for g, shape, some in zip(
            run.gradients.values(), run.shapes, chosen, strict=True
        )
    ]
    return Recording(
        g=np.concatenate([part.g for part in measured], axis=1),
        p=np.concatenate([part.p for part in measured], axis=1),
        u=u,
        noise=noise,
        weight=_compute_weight(u, noise, size),
        adafactor_nu=np.concatenate(nus, axis=-1),
        leaf=np.repeat(np.arange(len(chosen)), [len(some) for some in chosen]),
        names=list(run.params),
        ndims=[len(shape) for shape in run.shapes],
        sums=sums,
        moved_share=np.stack(moved, axis=1),
        gradient_norms=norms,
        precision=max(part.precision for part in measured),
        kept=kept,
        num_steps=len(has_moved),
        num_elements=sum(p.shape[1] for p in run.params.values()),
        is_sampled=gradient_norms is not None,
        structure=run.structure,
        is_optimized=run.is_optimized,
    )


def _read_trees(params: optax.Params, gradients: optax.Updates) -> tuple[_Tree, _Tree]:
    if isinstance(params, list | tuple) and isinstance(gradients, list | tuple):
        # If their roots are lists of leaves, both are equally long.
        if len(params) == len(gradients) + 1 > 1:
            return _stack_steps("params", params), _stack_steps("gradients", gradients)
        if any(isinstance(x, Mapping) for x in (*params[:1], *gradients[:1])):
            raise ValueError(
                "params must be one tree more than gradients, because the parameters "
                "before the first step come first, but there were "
                f"{len(params)} trees of params and {len(gradients)} of gradients."
            )
    return _read_tree("params", params), _read_tree("gradients", gradients)


def _stack_steps(what: str, steps: Iterable[object]) -> _Tree:
    """Stack one tree per step into one tree."""
    trees = [_read_tree(what, step) for step in steps]
    first = trees[0].leaves
    for i, tree in enumerate(trees):
        odd = describe_difference(list(tree.leaves), list(first))
        if not odd:
            odd = "; ".join(
                f"leaf {name} has shape {x.shape}, and {first[name].shape} at first"
                for name, x in tree.leaves.items()
                if x.shape != first[name].shape
            )
        if odd:
            raise ValueError(
                f"{what} must have the same leaves at every step, but in tree {i} "
                f"(from 0) {odd}."
            )
    leaves = {name: np.stack([tree.leaves[name] for tree in trees]) for name in first}
    return trees[0]._replace(leaves=leaves)


def _read_tree(what: str, tree: object) -> _Tree:
    if isinstance(tree, Mapping) and not isinstance(tree, dict):
        tree = dict(tree)  # an open .npz file
    arrays = {name: _read_array(what, name, x) for name, x in named_leaves(tree)}
    optimized = {
        name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)
    }
    flags = [name in optimized for name in arrays]
    return _Tree(optimized, jax.tree.structure(tree), flags)


def _read_array(what: str, name: str, leaf: object) -> np.ndarray:
    x = np.asarray(leaf)
    if x.dtype.kind == "V" and x.dtype.itemsize == 2 and x.dtype.names is None:
        return x.view(jnp.bfloat16)  # np.save stores bfloat16 as two nameless bytes
    if jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool:
        return x
    advice = ""
    if x.dtype.kind == "V":
        advice = (
            " np.save does not store the name of such a dtype. Say what it was, as in "
            ".view(ml_dtypes.float8_e4m3fn)."
        )
    raise TypeError(
        f"{what}: leaf {name} must be an array of numbers, but its dtype was "
        f"{x.dtype.str}.{advice}"
    )


def _check_trees(params: Leaves, gradients: Leaves) -> None:
    odd = describe_difference(list(gradients), list(params))
    if odd:
        raise ValueError(
            f"gradients must be a tree like params, but in gradients {odd}. Give both "
            "as one tree of arrays with the steps in front, or as a list of one tree "
            "per step."
        )
    if not params:
        raise ValueError("params must hold floating-point leaves, but it has none.")
    for what, leaves in (("params", params), ("gradients", gradients)):
        for name, x in leaves.items():
            if x.ndim == 0:
                raise ValueError(
                    f"{what} must be stacked, with the steps in front, but leaf {name} "
                    "was a scalar."
                )
    steps = len(next(iter(gradients.values())))
    if steps < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps, but there were {steps} "
            "gradients. A few dozen say more."
        )
    for name in params:
        p, g = params[name].shape, gradients[name].shape
        if g[0] != steps or p[0] != steps + 1:
            raise ValueError(
                "params must hold the parameters before the first step and after each, "
                f"so one more than there are gradients, but leaf {name} has {p[0]} of "
                f"parameters and {g[0]} of gradients, and the first leaf has {steps} "
                "of gradients. params is the first argument."
            )
        if p[1:] != g[1:]:
            raise ValueError(
                f"gradients: leaf {name} must have shape {g[:1] + p[1:]}, as its "
                f"parameter has, but it was {g}."
            )


def _to_real_rows(x: np.ndarray) -> np.ndarray:
    """Return an array [T, size] of float32 or wider; a complex number is two reals."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = np.stack([np.real(x), np.imag(x)], axis=-1)
    elif x.dtype.itemsize < 4:
        x = x.astype(np.float32)
    return x.reshape(len(x), -1)


def _get_real_shape(x: np.ndarray) -> tuple[int, ...]:
    """Return the shape of one step's array of reals, or of pairs of them."""
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return x.shape[1:] + ((2,) if is_complex else ())


def _find_moves(run: Run) -> np.ndarray:
    """Return at which steps something moved, [T]; raise if they say nothing."""
    moves = [np.any(p[1:] != p[:-1], axis=1) for p in run.params.values()]
    has_moved = np.any(moves, axis=0)
    if not np.any(has_moved):
        raise ValueError(
            "params must move, but they are the same after every step. If an optimizer "
            "changes them in place, copy them at each step."
        )
    # A step that was skipped because its gradient overflowed may hold anything.
    _check_finite("gradients", run.gradients, has_moved)
    if np.sum(has_moved) < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps at which the parameters move, "
            f"but there were {np.sum(has_moved)}. A few dozen say more."
        )
    return has_moved


def _check_finite(what: str, leaves: Leaves, must: np.ndarray | None = None) -> None:
    for name, x in leaves.items():
        rows = x.reshape(len(x), -1)
        is_bad = ~np.isfinite(rows)
        if must is not None:
            is_bad &= must[:, None]
        if np.any(is_bad):
            step, element = np.argwhere(is_bad)[0]
            where = "in set" if what == "params" else "at step"
            raise ValueError(
                f"{what} must be finite, but leaf {name} was {rows[step, element]} "
                f"{where} {step} (from 0)."
            )


def _check_norms(
    gradient_norms: ArrayLike, least: np.ndarray, kept: np.ndarray, steps: int
) -> np.ndarray:
    """Return the norms of the whole gradients at the steps that are kept."""
    norms = np.asarray(gradient_norms, np.float64)
    if norms.shape != (steps,):
        raise ValueError(
            f"gradient_norms must have one number per step, so shape {(steps,)}, but "
            f"it was {norms.shape}."
        )
    is_bad = ~(norms[kept] >= 0.99 * least)  # also if it is NaN
    if np.any(is_bad):
        first = np.flatnonzero(is_bad)[0]
        raise ValueError(
            "gradient_norms must be the norms of the whole gradients, so no less than "
            f"that of the recorded elements, but at step {kept[first]} (from 0) it was "
            f"{norms[kept][first]:.6g}, and that is {least[first]:.6g}."
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
    """Return as many entries, evenly spread, with the first and the last."""
    if len(x) <= most:
        return x
    return x[np.linspace(0, len(x) - 1, max(most, 0)).round().astype(int)]


class _Measured(NamedTuple):
    """Elements of one leaf, [T, n] each, and the precision of its arithmetic."""

    g: np.ndarray
    p: np.ndarray
    u: np.ndarray
    noise: np.ndarray
    size: np.ndarray  # of the leaf's updates
    precision: float


def _measure_leaf(
    params: np.ndarray, gradients: np.ndarray, kept: np.ndarray, some: np.ndarray
) -> _Measured:
    p_eps, g_eps = _find_precision(params), _find_precision(gradients)
    before = params[kept][:, some].astype(np.float64)
    after = params[kept + 1][:, some].astype(np.float64)
    u = after - before
    size = _measure_size(u) * np.ones_like(u)
    # Rounding is uniform, so its variance is the square of the last digit over 12. The
    # two ends of an update are rounded; the gradient and the update itself may be.
    last_digits = [_get_last_digit(before, p_eps), _get_last_digit(after, p_eps)]
    last_digits.append(max(p_eps, g_eps) * u)
    variance = sum(np.square(x) for x in last_digits) / 12
    # The optimizer computes in float32, or in float64 if the parameters are.
    precision = min(p_eps, _FLOAT32_EPS)
    arithmetic = np.square(ROUNDINGS_OF_ARITHMETIC * precision)
    variance = variance + arithmetic * (np.square(u) + np.square(size))
    return _Measured(
        g=gradients[kept][:, some].astype(np.float64),
        p=before,
        u=u,
        noise=np.sqrt(variance),
        size=size,
        precision=precision,
    )


def _measure_size(u: np.ndarray) -> np.ndarray:
    """Return the size of the updates [T, 1], or of what is left of larger ones before.

    With momentum, an update holds them and their rounding.
    """
    if not u.shape[1]:
        return np.zeros((len(u), 1))
    size = np.sqrt(np.mean(np.square(u), axis=1, keepdims=True))
    for t in range(1, len(size)):
        size[t] = max(size[t], KEPT_OF_UPDATE * size[t - 1])
    return size


def _get_last_digit(x: np.ndarray, eps: float) -> np.ndarray:
    """Return the distance of numbers from the next ones of their precision."""
    return eps * np.exp2(np.floor(np.log2(np.abs(x) + 1e-300)))


def _compute_weight(u: np.ndarray, noise: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return what residuals are multiplied with: 1 over how far off they may be."""
    typical = _measure_size(u)
    typical = np.where(typical > 0, typical, np.median(typical[typical > 0]))
    # A leaf that hardly moves must not weigh more than the others.
    size = np.maximum(size, SHARE_OF_UPDATE * typical)
    return 1 / np.sqrt(np.square(noise) + np.square(SHARE_OF_UPDATE * size))


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
