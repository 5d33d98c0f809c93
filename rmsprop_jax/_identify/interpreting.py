"""Interpret fits: which optimizers they are, and how to write them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from rmsprop_jax._identify.explanation import Explanation, Recipe, make_table
from rmsprop_jax._identify.families import has_clip
from rmsprop_jax._identify.fitting import Candidate
from rmsprop_jax._identify.model import Variant
from rmsprop_jax._identify.naming import (
    Arguments,
    Rank,
    list_calls,
    name_other,
    rank_call,
    shorten,
    use_defaults,
)
from rmsprop_jax._identify.reading import (
    Rates,
    Reading,
    put_config,
    put_numbers,
    read_fit,
    read_rates,
    shorten_numbers,
)
from rmsprop_jax._identify.remarks import list_remarks
from rmsprop_jax._identify.search import Found
from rmsprop_jax._identify.thresholds import FINE_ROUNDING, MAX_PIECES
from rmsprop_jax._optimizer.options import Options

Calls: TypeAlias = dict[str, Arguments]

_RARE = (
    "momentum_varies",
    "decay_varies",
    "cautious",
    "clips_after_decay",
    "learning_rate_by_leaf",
)
# The flags that are written for a rule that no call makes. The rule's name or its
# remarks mention the others.
_WRITTEN = (
    "centered",
    "bias_correction",
    "eps_in_sqrt",
    "nesterov",
    "learning_rate_in_momentum",
)


def interpret(found: Found, fits: Iterable[Candidate]) -> list[Explanation]:
    """Return what fits mean, the likeliest first, without duplicates."""
    ranked = sorted((_interpret(found, fit) for fit in fits), key=lambda both: both[0])
    unique: dict[object, Explanation] = {}
    for _, explanation in ranked:
        unique.setdefault((explanation.call, explanation.remarks), explanation)
    return list(unique.values())


def _interpret(
    found: Found, fit: Candidate
) -> tuple[tuple[int, int, bool, Rank, float], Explanation]:
    """Return what a fit means, with a key to sort by."""
    reading = read_fit(found, fit)
    brief = shorten_numbers(found, reading)
    optimizer = _name_optimizer(fit)
    recipe = Recipe(None, *_list_before(fit.variant, brief), None)
    calls: Calls = {}
    if optimizer == "RMSProp":
        recipe = recipe._replace(options=_make_options(found, reading, brief))
        calls, best = _choose_calls(found, reading, brief, recipe.options)
        rates = read_rates(found, best, reading.sign)
        recipe = _add_factors(found, fit, recipe, rates)
        recipe, calls = _add_schedule(found, fit, recipe, calls, rates)
    else:
        numbers = use_defaults(optimizer, brief, reading.numbers)
        (exact,) = found.problem.fit_state([put_numbers(reading, numbers)])
        rates = read_rates(found, exact, reading.sign)
        if optimizer in ("Adam", "AdamW") and rates.factors is None:
            optimizer = "LAMB"  # it changes the learning rate of each leaf
            numbers = use_defaults(optimizer, brief, reading.numbers)
        calls = name_other(optimizer, fit.variant, numbers)
        if optimizer == "Adam" and _may_be_lamb(found, fit, rates):
            numbers = use_defaults("LAMB", brief, reading.numbers)
            calls |= name_other("LAMB", fit.variant, numbers)
    rank = min((rank_call(*call) for call in calls.items()), default=(True, 99.0, 99))
    explanation = Explanation(
        optimizer=optimizer,
        calls=calls or {optimizer: _describe_rule(fit, brief)},
        hyperparameters={name: x.value for name, x in reading.numbers.items()},
        stderr={name: x.stderr for name, x in reading.numbers.items()},
        count=int(found.problem.seen.steps_before),
        learning_rates=rates.values,
        learning_rates_stderr=rates.stderr,
        pieces=tuple(rates.pieces),
        residual=fit.residual,
        remarks=tuple(list_remarks(found, reading, brief, rates, recipe)),
        recipe=recipe,
    )
    # Likely are few learning rates, no extensions, an RMSProp, and a common call.
    pieces = len(rates.pieces) or MAX_PIECES + 1
    additions = has_clip(fit) + 2 * sum(bool(getattr(fit.variant, x)) for x in _RARE)
    key = pieces, additions, optimizer != "RMSProp", rank, fit.cost
    return key, explanation


def _name_optimizer(fit: Candidate) -> str:
    v = fit.variant
    if v.takes_sign:
        return "Lion"
    if v.is_factored:
        return "Adafactor"
    if v.accumulates:
        return "Adagrad"
    if not v.divides:
        return "SGD"
    if v.averages_gradient and not v.bias_correction:
        return "fastai's RMSProp"
    if v.averages_gradient:
        return "AdamW" if fit.x.decoupled_weight_decay else "Adam"
    return "RMSProp with a floor" if v.eps_is_floor else "RMSProp"


def _may_be_lamb(found: Found, fit: Candidate, rates: Rates) -> bool:
    """Whether the learning rates of Adam may contain LAMB's factor for each leaf.

    The factor can't be told from a leaf's own learning rate. If it is nearly the same
    for all leaves, coarse rounding hides it.
    """
    has_one_leaf = len(found.recording.names) == 1
    may_hide = found.recording.rounding > FINE_ROUNDING and not rates.pieces
    return bool(has_one_leaf or fit.variant.learning_rate_by_leaf or may_hide)


def _list_before(
    v: Variant, numbers: dict[str, float]
) -> tuple[dict[str, float], float | None]:
    """Return optax's calls before the rule, and the norm that clips each leaf."""
    if "clip" not in numbers:
        return {}, None
    before: dict[str, float] = {}
    if v.clips_after_decay:
        before["add_decayed_weights"] = numbers["weight_decay"]
    if v.clips_leaves:
        return before, numbers["clip"]
    before["clip" if v.clips_elements else "clip_by_global_norm"] = numbers["clip"]
    return before, None


def _make_options(
    found: Found, reading: Reading, numbers: dict[str, float]
) -> Options | None:
    """Return the rule, if this package has it."""
    x, v = reading.fit.x, reading.fit.variant
    has_both = x.weight_decay and x.decoupled_weight_decay
    if has_both or numbers["weight_decay"] < 0:
        return None
    mask = None
    if not np.all(reading.decays):
        mask = found.recording.make_tree([bool(x) for x in reading.decays], other=False)
    return Options(
        alpha=numbers["alpha"],
        eps=numbers["eps"],
        momentum=numbers["momentum"],
        weight_decay=0.0 if v.clips_after_decay else numbers["weight_decay"],
        initial_scale=numbers["initial_scale"],
        centered=bool(v.centered),
        maximize=reading.sign < 0,
        nesterov=bool(v.nesterov),
        eps_in_sqrt=bool(v.eps_in_sqrt),
        bias_correction=bool(v.bias_correction),
        decoupled_weight_decay=bool(x.decoupled_weight_decay),
        weight_decay_mask=mask,
        learning_rate_in_momentum=bool(v.learning_rate_in_momentum),
        cautious=bool(v.cautious),
    )


def _choose_calls(
    found: Found, reading: Reading, brief: dict[str, float], options: Options | None
) -> tuple[Calls, Candidate]:
    """Return the calls that make a rule, the likeliest first, and that one's fit."""
    (fit,) = found.problem.fit_state([put_numbers(reading, brief)])
    if options is None:
        return {}, fit
    stderr = {name: number.stderr for name, number in reading.numbers.items()}
    listed = list(list_calls(options, stderr))
    tried = found.problem.fit_state(
        [put_config(reading, brief, config) for *_, config in listed]
    )
    chosen: dict[str, tuple[Arguments, Candidate]] = {}
    for (name, arguments, _), other in zip(listed, tried, strict=True):
        if other.cost <= found.ratios.rule * reading.fit.cost:
            chosen.setdefault(name, (arguments, other))
    names = sorted(chosen, key=lambda name: rank_call(name, chosen[name][0]))
    if names:
        return {name: chosen[name][0] for name in names}, chosen[names[0]][1]
    if options.learning_rate_in_momentum or options.cautious:
        return {}, fit
    default = Options(weight_decay_mask=options.weight_decay_mask)
    arguments = {
        name: value
        for name, value in options._asdict().items()
        if value != getattr(default, name) and (value or getattr(default, name))
    }
    return {"rmsprop": arguments}, fit


def _add_factors(found: Found, fit: Candidate, recipe: Recipe, rates: Rates) -> Recipe:
    """Return the recipe with the learning rates of the leaves."""
    if not fit.variant.learning_rate_by_leaf:
        return recipe
    if rates.factors is None:
        return recipe._replace(options=None)
    factors = found.recording.make_tree([float(x) for x in rates.factors], other=1.0)
    return recipe._replace(factors=factors)


def _add_schedule(
    found: Found, fit: Candidate, recipe: Recipe, calls: Calls, rates: Rates
) -> tuple[Recipe, Calls]:
    """Return the recipe and the calls with what changes from step to step."""
    v, options = fit.variant, recipe.options
    count = int(found.problem.seen.steps_before)
    if options is None or not (v.momentum_varies or v.decay_varies):
        return recipe, calls
    rate = rates.values[np.isfinite(rates.values)]
    if v.momentum_varies:
        momentum = rates.varying.copy()
        if not options.learning_rate_in_momentum:  # there the buffer is u over η
            momentum[1:] *= rate[:-1] / rate[1:]
        momentum[0] = momentum[1]  # at first it multiplies an empty buffer
        schedule = make_table(momentum, count)
        calls = {name: {**x, "momentum": schedule} for name, x in calls.items()}
        return recipe._replace(options=options._replace(momentum=schedule)), calls
    decays = options._replace(
        weight_decay=make_table(rates.varying / rate, count),
        decoupled_weight_decay=True,
    )
    # timm's corrected decay is λ·η²/max(η).
    square = np.square(rate)
    share = float(np.sum(rates.varying * square) / np.sum(np.square(square)))
    left = np.sum(np.square(rates.varying - share * square))
    corrected: Arguments = {
        "weight_decay": shorten(share * np.max(rate), 1e-4 * share * np.max(rate)),
        "decoupled_decay": True,
        "corrected_weight_decay": True,
        "max_lr": float(f"{np.max(rate):.6g}"),
    }
    is_corrected = left < 1e-3 * np.sum(np.square(rates.varying))
    calls = {
        name: {**x, **corrected}
        for name, x in calls.items()
        if name == "dialects.timm" and is_corrected
    }
    return recipe._replace(options=decays), calls


def _describe_rule(fit: Candidate, brief: dict[str, float]) -> Arguments:
    """Return the numbers and the flags of a rule that no call makes."""
    numbers = {name: x for name, x in brief.items() if x and name != "clip"}
    plain = Variant()
    flags = {
        name: flag
        for name, flag in fit.variant._asdict().items()
        if flag != getattr(plain, name) and name in _WRITTEN
    }
    if fit.x.decoupled_weight_decay:
        flags["decoupled_weight_decay"] = True
    return {**numbers, **flags}
