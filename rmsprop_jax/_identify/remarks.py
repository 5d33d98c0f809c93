"""Write remarks on a rule: what is uncertain, and what its calls leave out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rmsprop_jax._identify.explanation import Recipe
from rmsprop_jax._identify.families import has_clip
from rmsprop_jax._identify.naming import write_value
from rmsprop_jax._identify.reading import Rates, Reading, put_numbers
from rmsprop_jax._identify.search import Found
from rmsprop_jax._identify.thresholds import HIDDEN_DECAY, SIGMAS, UNCERTAIN
from rmsprop_jax._optimizer.options import Options


def list_remarks(
    found: Found,
    reading: Reading,
    brief: dict[str, float],
    rates: Rates,
    recipe: Recipe,
) -> Iterator[str]:
    """Yield sentences on what is uncertain in a rule, and what its calls leave out.

    Args:
        found: What the search found.
        reading: The rule.
        brief: Its numbers in few digits.
        rates: Its learning rates.
        recipe: How to make it.
    """
    fit, v = reading.fit, reading.fit.variant
    yield from _list_uncertain(reading)
    if "eps" in brief and not np.any(fit.free.log_eps):
        yield from _bound_eps(found, reading, brief)
    yield from _describe_hidden_decay(reading)
    if v.eps_is_floor:
        yield (
            "The divisor is max(√ν, ε), as in pylearn2 and Blocks. No option here does "
            "that."
        )
    if v.averages_gradient and not v.bias_correction:
        yield (
            "The momentum applies to the gradient before it is divided, as in fastai. "
            "No option here does that."
        )
    if v.cautious:
        yield "Elements whose step and gradient differ in sign do not move (caution)."
    if fit.x.weight_decay and fit.x.decoupled_weight_decay:
        yield "Weights decay both through the gradient and directly."
    names = np.array(found.recording.names)
    if not np.all(reading.decays | reading.is_unseen):
        yield f"Weight decay on some leaves only: {', '.join(names[reading.decays])}."
    if np.any(reading.is_unseen):
        yield (
            f"Nothing is known of {', '.join(names[reading.is_unseen])}: with learning "
            "rates of their own, leaves of one element show neither that nor a decay."
        )
    if has_clip(fit):
        yield from _describe_clip(found, reading, brief)
    if v.learning_rate_by_leaf and not v.is_factored:
        yield from _describe_factors(found, reading, rates)
    if recipe.options is not None:
        yield from _describe_recipe(recipe, recipe.options, len(rates.varying))
    if v.decay_varies:
        yield "The weight decay, over the learning rate, changes from step to step."
    scale = brief["initial_scale"]
    if np.any(fit.free.log_initial_scale) and not v.accumulates:
        yield (
            "If ν is initialized to 1 instead, the gradients were recorded "
            f"{scale**0.5:.3g} times as large as they were used."
        )
    if fit.x.log_nu.size:
        yield "The state before the first step is fitted as well."


def _list_uncertain(reading: Reading) -> Iterator[str]:
    uncertain = []
    for name, (value, stderr) in reading.numbers.items():
        size = abs(1 - value) if name == "alpha" else abs(value)
        if np.isfinite(stderr) and stderr > UNCERTAIN * size > 0:
            uncertain.append(f"{name} {value:.3g} ± {stderr:.1g}")
    if uncertain:
        yield f"Uncertain: {', '.join(uncertain)}."


def _bound_eps(
    found: Found, reading: Reading, brief: dict[str, float]
) -> Iterator[str]:
    trials = 10.0 ** np.arange(-30.0, 3.0)
    tried = found.problem.evaluate(
        [put_numbers(reading, {**brief, "eps": float(eps)}) for eps in trials]
    )
    limit = found.ratios.number * reading.fit.cost
    alike = [eps for eps, x in zip(trials, tried, strict=True) if x.cost <= limit]
    if alike:
        yield (
            f"eps can't be seen: outside of the root, any up to {max(alike):.0e} "
            "explains as much."
        )


def _describe_hidden_decay(reading: Reading) -> Iterator[str]:
    decay = reading.numbers["weight_decay"]
    if not decay.value and SIGMAS * decay.stderr > HIDDEN_DECAY:
        yield (
            "A weight decay can't be seen: a decoupled one of up to "
            f"{SIGMAS * decay.stderr:.1g} explains as much."
        )


def _describe_clip(
    found: Found, reading: Reading, brief: dict[str, float]
) -> Iterator[str]:
    v, recording = reading.fit.variant, found.recording
    norms, what = recording.gradient_norms, "the global norm of each gradient"
    if v.clips_elements:
        what = "each element of a gradient"
    elif v.clips_leaves:
        norms, what = np.sqrt(recording.sums.gg), "the norm of each leaf's gradient"
    order = ", after the weight decay is added" if v.clips_after_decay else ""
    if order and v.clips_elements:
        order += ", as in MXNet"
    yield f"A clip limits {what} to {write_value(brief['clip'])}{order}."
    if v.clips_elements or brief["clip"] > 1.00001 * np.min(norms[norms > 0]):
        return
    if not np.any(reading.fit.free.log_clip_norm):
        yield (
            "Every step was clipped, so that eps and a coupled weight decay are known "
            "only relative to the clip."
        )


def _describe_recipe(recipe: Recipe, options: Options, steps: int) -> Iterator[str]:
    if callable(options.momentum):
        momentum = np.asarray(options.momentum(np.arange(steps)))
        yield (
            f"The momentum changes from step to step, between {np.min(momentum):.2g} "
            f"and {np.max(momentum):.2g}: match.best.momentum is its schedule."
        )
    left_out = [
        what
        for what, is_there in {
            "which leaves decay": options.weight_decay_mask is not None,
            "the clip": recipe.leaf_norm is not None,
            "the factors of the leaves": recipe.factors is not None,
        }.items()
        if is_there
    ]
    if left_out:
        yield (
            f"The call leaves out {' and '.join(left_out)}. "
            "match.best.transformation() has it."
        )


def _describe_factors(found: Found, reading: Reading, rates: Rates) -> Iterator[str]:
    if rates.factors is None:
        yield "The learning rates of the leaves change by themselves, as in LAMB."
        return
    leaves = zip(found.recording.names, rates.factors, reading.is_unseen, strict=True)
    known = [
        f"{name} {write_value(factor)}"
        for name, factor, is_unseen in leaves
        if not is_unseen
    ]
    if len(known) > 1:
        yield (
            "Leaves have learning rates of their own, with these factors: "
            f"{', '.join(known)}."
        )
