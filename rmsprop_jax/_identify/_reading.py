"""From fits to matches: rules with options, names and rates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._error_text import (
    path_str,
)
from rmsprop_jax._identify._fitting import Fit
from rmsprop_jax._identify._match import Match, Reading, constant_pieces
from rmsprop_jax._identify._naming import calls, short
from rmsprop_jax._identify._search import Found
from rmsprop_jax._identify._simplifying import ALIKE
from rmsprop_jax._optimizer.options import Options


def matches(found: Found, params: optax.Params) -> list[Match]:
    """The fits, those together that explain as much."""
    groups: list[list[Fit]] = []
    for fit in found.fits:
        if groups and fit.cost <= ALIKE * groups[-1][0].cost:
            groups[-1].append(fit)
        else:
            groups.append([fit])
    steps, some = found.recording.steps, found.recording.g.shape[1]
    remarks = []
    if some < found.elements:
        remarks.append(f"{some} of {found.elements} elements were looked at.")
    skipped = steps - len(found.recording.g)
    if skipped:
        remarks.append(f"{skipped} of {steps} steps were skipped, as nothing moved.")
    match, made = None, []
    for group in reversed(groups):
        readings = sorted(
            (_reading(found, fit, steps, params) for fit in group), key=_complexity
        )
        residual = group[0].residual
        match = Match(
            tuple(readings), residual, found.recording.rounding, match, tuple(remarks)
        )
        made.append(match)
    return made[::-1]


def _complexity(reading: Reading) -> tuple[int, bool, int]:
    pieces = constant_pieces(reading.rates, reading.tolerance)
    arguments = min(map(len, reading.calls.values()), default=0)
    return len(pieces), not reading.calls, arguments


def _reading(found: Found, fit: Fit, steps: int, params: optax.Params) -> Reading:
    s, x, error = fit.structure, fit.x, fit.error
    # Up the gradient is down it with a negative rate, and decay.
    sign = -1.0 if np.median(fit.rates[fit.rates != 0]) < 0 else 1.0
    decay, decay_error = sign * x.decay, error.decay
    decays = np.abs(decay) > np.maximum(5 * decay_error, 1e-3 * np.max(np.abs(decay)))
    if not np.any(decays):
        decays = np.ones_like(decays)
    forgets = float(1 / (1 + np.exp(-x.forgetting)))  # 1 − α
    forgets_error = float(error.forgetting) * forgets * (1 - forgets)
    values = {
        "eps": _exponential(x.eps, error.eps),
        "momentum": (float(x.momentum), float(error.momentum)),
        "weight_decay": (
            float(np.mean(decay[decays])),
            float(decay_error[decays].max()),
        ),
        "initial_scale": _exponential(x.start, error.start),
    }
    if not s.started:
        values["initial_scale"] = 0.0, 0.0
    if not fit.free.eps:
        values["eps"] = 0.0, np.inf
    brief = {name: short(*value) for name, value in values.items()}
    alpha = float(f"{1 - short(forgets, forgets_error):.12g}")
    values = {"alpha": (1 - forgets, forgets_error), **values}
    options = Options(
        alpha=alpha,
        eps=brief["eps"],
        momentum=brief["momentum"],
        weight_decay=brief["weight_decay"],
        initial_scale=brief["initial_scale"],
        centered=s.centered,
        maximize=sign < 0,
        nesterov=s.nesterov,
        eps_in_sqrt=s.eps_in_sqrt,
        bias_correction=s.corrected,
        decoupled_weight_decay=s.decoupled,
        learning_rate_in_momentum=s.rate_in_momentum,
    )

    def explains(made: Options) -> bool:
        other = s._replace(eps_in_sqrt=made.eps_in_sqrt)
        cost = found.problem.cost(other, x._replace(eps=_log(made.eps)))
        return cost <= ALIKE * fit.cost

    remarks = []
    unit = 1.0  # of the rates
    if fit.limit == "SGD":
        unit = float(np.exp(x.eps))
    elif fit.limit:
        unit = forgets**0.5
        values["eps"] = tuple(value / unit for value in values["eps"])
        options = options._replace(eps=short(*values["eps"]))
    elif not fit.free.eps:
        place = "√(ν + ε)" if options.eps_in_sqrt else "√ν + ε"
        largest = max(
            (e for e in 10.0 ** np.arange(-30, 3) if explains(options._replace(eps=e))),
            default=0.0,
        )
        remarks.append(f"eps can't be seen: up to {largest:.0e} is as good ({place}).")
    if forgets_error > 0.1 * forgets and not fit.limit:
        remarks.append(
            f"alpha is hardly seen: 1 − α is {forgets:.1g} ± {forgets_error:.0e}."
        )
    found_rates = sign * fit.rates / unit
    if x.nu.size:
        remarks.append("the state before the first step is fitted as well.")
        if s.rate_in_momentum and not found.known:
            # Whatever it is, some buffer before it makes the same of it.
            found_rates[0] = found_rates[1]
            remarks.append("the first rate can't be seen; it stands for the second.")
    scale = brief["initial_scale"]
    if s.started and scale != 1.0:
        remarks.append(
            f"if ν began at 1, the gradients are recorded {scale**0.5:.3g} times as "
            "large as they were used."
        )
    if fit.free.clip:
        values["clip"] = _exponential(x.clip, error.clip)
        clip = short(*values["clip"])
        remarks.append(
            f"gradients are clipped before: optax.clip_by_global_norm({clip:.6g})."
        )
        if np.exp(x.clip) <= found.recording.norm.min():
            remarks.append("as all are, only the ratio of eps and the clip is seen.")
    if len(found.group) > 1 and not np.all(decays):
        mask = _mask(params, decays[found.group])
        options = options._replace(weight_decay_mask=mask)
        names = [
            path_str(path)
            for path, flag in jax.tree_util.tree_leaves_with_path(mask)
            if flag
        ]
        remarks.append(f"weights decay on some leaves only: {', '.join(names)}.")
    rates = np.full(steps, np.nan)
    rates[found.recording.moved] = found_rates
    return Reading(
        options=options,
        numbers={name: value for name, (value, _) in values.items()},
        uncertainty={name: error for name, (_, error) in values.items()},
        calls={} if fit.limit else calls(options, explains),
        rates=rates,
        tolerance=10 * fit.residual,
        limit=fit.limit,
        remarks=tuple(remarks),
    )


def _mask(params: optax.Params, decays: np.ndarray) -> Any:
    """A tree of booleans like the parameters, of a flag for each floating leaf."""
    flags = iter(decays)

    def flag(x: Any) -> bool:
        inexact = jnp.issubdtype(np.asarray(x).dtype, jnp.inexact)
        return bool(next(flags)) if inexact else False

    return jax.tree.map(flag, params)


def _exponential(logarithm: Any, error: Any) -> tuple[float, float]:
    """A number and its error, from those of its logarithm."""
    value = float(np.exp(logarithm))
    return value, value * float(error)


def _log(eps: Any) -> np.ndarray:
    return np.array(np.log(max(float(eps), 1e-300)))
