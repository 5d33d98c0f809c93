"""The recorded run: trees checked, and the elements that are looked at."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from rmsprop_jax._error_text import (
    describe_difference,
    path_str,
)

LEAST_STEPS = 4
# By how many times more than rounding leaves may be unexplained by the right rule.
ROUNDINGS = 3
# What is unexplained of an update below this share of it counts the same, whatever
# the rounding of the parameters.
_SHARE = 1e-3


class Recording(NamedTuple):
    """Elements of a run of T steps, in float64.

    Attributes:
        g: [T, n], the gradients.
        p: [T, n], the parameters before each step.
        u: [T, n], the updates.
        weight: [T, n], one over how far off an update may be.
        noise: [T, n], what rounding adds to an update, a standard deviation.
        norm: [T], the global norm of each whole gradient.
        leaf: [n], which leaf an element is of.
        moved: [T], the number of each step in the recording.
        steps: How many there are in the recording.
    """

    g: np.ndarray
    p: np.ndarray
    u: np.ndarray
    weight: np.ndarray
    noise: np.ndarray
    norm: np.ndarray
    leaf: np.ndarray
    moved: np.ndarray
    steps: int

    @property
    def rounding(self) -> float:
        """What rounding leaves unexplained, over the updates."""
        noise = np.sum(np.square(self.weight * self.noise))
        return float(np.sqrt(noise / np.sum(np.square(self.weight * self.u))))

    def elements(self, chosen: np.ndarray) -> Recording:
        """Only some of the elements."""
        some = {
            name: getattr(self, name)[:, chosen]
            for name in ("g", "p", "u", "weight", "noise")
        }
        return self._replace(**some, leaf=self.leaf[chosen])

    def spread(self, most: int) -> np.ndarray:
        """Elements from the smallest to the largest gradients, a few without any.

        Where there are enough, two or more of each leaf are among them.
        """
        size = np.sqrt(np.mean(np.square(self.g), axis=0))
        order = np.argsort(size, kind="stable")
        alive, dead = order[size[order] > 0], order[size[order] == 0]
        dead = dead[: max(2, most // 32)]
        chosen = [dead, _evenly(alive, most - len(dead))]
        few = most // (4 * max(1, self.leaf.max() + 1))
        if few:
            for leaf in range(self.leaf.max() + 1):
                chosen.append(_evenly(alive[self.leaf[alive] == leaf], few))
        return np.unique(np.concatenate(chosen))


def recorded(
    params: optax.Params, gradients: optax.Updates, *, skips: bool
) -> Recording:
    """The whole recording.

    Args:
        params: The parameters before the first step and after each.
        gradients: The gradient of each step.
        skips: Whether the steps at which nothing moved are left out. Otherwise those
            are whose gradient is not finite.

    Raises:
        ValueError: Where the trees, their lengths or their shapes do not belong
            together, or nothing can be learned from them. It names the leaf.
    """
    ps, gs = _leaves("params", params), _leaves("gradients", gradients)
    odd = describe_difference(list(gs), list(ps))
    if odd:
        raise ValueError(
            f"gradients must be a tree like params, but in gradients {odd}. Stack the "
            "steps of each: jax.tree.map(lambda *xs: np.stack(xs), *params)."
        )
    if not ps:
        raise ValueError("params must hold floating-point leaves, but it has none.")
    steps = len(next(iter(gs.values())))
    if steps < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps, but there were {steps} "
            "gradients. A few dozen say more."
        )
    for name in ps:
        _check_shapes(name, ps[name].shape, gs[name].shape, steps)

    def joined(leaves: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)

    kinds = {name: (_precision(ps[name]), _precision(gs[name])) for name in ps}
    with np.errstate(over="ignore", invalid="ignore"):
        p, g = (joined([_real(x) for x in them.values()]) for them in (ps, gs))
        sizes = [_real(x)[0].size for x in ps.values()]
        leaf = np.repeat(np.arange(len(ps)), sizes)
        u = np.diff(p, axis=0)
    names = list(ps)
    _check_finite("params", p, leaf, names)
    moved = np.any(u != 0, axis=1)
    if not np.any(moved):
        raise ValueError(
            "params must move, but they are the same after every step. If an optimizer "
            "changes them in place, copy them at each step."
        )
    # A step that is skipped, as its gradient overflowed, may hold anything.
    _check_finite("gradients", np.where(moved[:, None], g, 0), leaf, names)
    if moved.sum() < LEAST_STEPS:
        raise ValueError(
            f"There must be at least {LEAST_STEPS} steps at which the parameters move, "
            f"but there were {moved.sum()}. A few dozen say more."
        )
    kept = moved if skips else np.all(np.isfinite(g), axis=1)
    g = np.where(kept[:, None], g, 0)
    fine_p, fine_g = (np.repeat([k[i] for k in kinds.values()], sizes) for i in (0, 1))
    size = np.sqrt(np.mean(np.square(u), axis=1, keepdims=True))
    size = np.where(size > 0, size, np.median(size[moved]))
    with np.errstate(under="ignore"):
        noise = np.sqrt(
            (np.square(fine_p * p[1:]) + np.square(fine_p * p[:-1])) / 12
            + np.square(np.maximum(fine_p, fine_g)) * (np.square(u) + np.square(size))
        )
        weight = 1 / np.sqrt(np.square(noise) + np.square(_SHARE * size) + 1e-300)
    return Recording(
        g=g[kept],
        p=p[:-1][kept],
        u=u[kept],
        weight=weight[kept],
        noise=noise[kept],
        norm=np.sqrt(np.sum(np.square(g[kept]), axis=1)),
        leaf=leaf,
        moved=np.flatnonzero(kept),
        steps=steps,
    )


def _leaves(what: str, tree: optax.Params) -> dict[str, np.ndarray]:
    """The leaves that can be optimized, by their paths."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        x = np.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            if x.ndim == 0:
                raise ValueError(
                    f"{what} must be stacked, with the steps in front, but leaf "
                    f"{path_str(path)} was a scalar."
                )
            found[path_str(path)] = x
    return found


def _check_shapes(name: str, p: Any, g: Any, steps: int) -> None:
    if g[0] != steps or p[0] != steps + 1:
        raise ValueError(
            "params must hold the parameters before the first step and after each, so "
            f"one more than there are gradients, but leaf {name} has {p[0]} of "
            f"parameters and {g[0]} of gradients, and the first leaf has {steps} of "
            "gradients. params is the first argument."
        )
    if p[1:] != g[1:]:
        raise ValueError(
            f"gradients: leaf {name} must have shape {g[:1] + p[1:]}, as its parameter "
            f"has, but it was {g}."
        )


def _check_finite(what: str, x: np.ndarray, leaf: np.ndarray, names: list[str]) -> None:
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        step, element = bad[0]
        where = "in set" if what == "params" else "at step"
        raise ValueError(
            f"{what} must be finite, but leaf {names[leaf[element]]} was "
            f"{x[step, element]} {where} {step} (from 0)."
        )


def _real(x: np.ndarray) -> np.ndarray:
    """In float64, a complex number as two."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return np.stack([np.real(x), np.imag(x)], axis=-1).astype(np.float64)
    return x.astype(np.float64)


def _precision(x: np.ndarray) -> float:
    """How fine its numbers are: those of a bfloat16 run may be kept in float32."""
    dtype: DTypeLike
    real = _real(x)
    for dtype in (jnp.bfloat16, jnp.float16, np.float32):
        with np.errstate(over="ignore"):
            if np.array_equal(
                real.astype(dtype).astype(np.float64), real, equal_nan=True
            ):
                return float(jnp.finfo(dtype).eps)
    return float(jnp.finfo(x.dtype).eps)


def _evenly(x: np.ndarray, most: int) -> np.ndarray:
    if len(x) <= most:
        return x
    return x[np.linspace(0, len(x) - 1, max(most, 0)).round().astype(int)]
