"""Describe a file of Paddle, and plan how to resume it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rmsprop_jax._cli.lines import Argument, Plan, Weights, write_weights_only
from rmsprop_jax._cli.report import Optimizer, Report, make_parameter
from rmsprop_jax.checkpoints._convert.arrays import Value
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._paddle import (
    MOMENT_KEYS,
    StateDict,
    collect_moments,
    read_count,
)
from rmsprop_jax.checkpoints._readers.source import StoredArray

_ASSUMED = (
    "The file does not store these. The values are Paddle's defaults; replace them "
    "with yours."
)
# How many elements are searched for a mean of gradients that is not 0, in the smallest
# arrays.
_LOOKED_AT = 2**20


def inspect_paddle(path: str, what: str, content: object) -> Report:
    """Describe a ``.pdopt``, or the ``.pdparams`` of the same run.

    Args:
        path: The file.
        what: What errors call it.
        content: What its reader made of it.
    """
    report = Report(path, "paddle.save", "Paddle")
    items: StateDict = content if isinstance(content, Mapping) else {}
    arrays = {
        str(key): x
        for key, x in items.items()
        if isinstance(x, np.ndarray | StoredArray)
    }
    if not any("_mean_square_" in key for key in arrays):
        report.weights = {"": arrays} if arrays else {}
        report.notes.append(_describe_missing(arrays))
        report.lines = write_weights_only(path) if arrays else ""
        return report
    try:
        optimizer = _inspect(path, what, items)
    except ValueError as error:
        report.notes.append(f"The optimizer can't be resumed: {error}")
        return report
    report.optimizers.append(optimizer)
    report.lines = optimizer.plan.write() if optimizer.plan else ""
    return report


def _describe_missing(arrays: StateDict) -> str:
    if any("_moment1_" in key or "_moment2_" in key for key in arrays):
        return (
            "Its optimizer is Adam, or one of its kind, so that its state can't be "
            "resumed here."
        )
    return (
        "It holds no optimizer's state. Paddle writes that into another file, which "
        "usually ends in .pdopt."
    )


def _inspect(path: str, what: str, content: StateDict) -> Optimizer:
    moments = collect_moments(what, content)
    count = read_count(what, content)
    centered = _is_centered([arrays["grad_mean"] for arrays in moments.values()])
    settings: Settings = {
        "learning_rate": 0.001,
        "rho": 0.95,
        "epsilon": 1e-6,
        "momentum": 0.9,
        "centered": centered,
        "weight_decay": None,
    }
    comments = {
        "learning_rate": _ASSUMED,
        "momentum": "The momentum buffer is kept. Give 0 if there was no momentum.",
        "centered": "The file has means of the gradients, so the optimizer was "
        "centered."
        if centered
        else "The means of the gradients in the file are 0, as far as was looked.",
    }
    arguments = [Argument(k, v, comments.get(k, "")) for k, v in settings.items()]
    beside = Path(path).with_suffix(".pdparams")
    has_names = Path(path).suffix != ".pdparams" and beside.is_file()
    if has_names:
        arguments.append(Argument("names", str(beside)))
    if "LR_Scheduler" not in content:
        comment = "The file has no count of updates. Only a schedule depends on it."
        arguments.append(Argument("count", count, comment))
    found = Optimizer("paddle.optimizer.RMSProp", "", "dialects.paddle", None)
    if "LR_Scheduler" in content:
        found.step_count = count
        found.schedulers.append(
            f"LR_Scheduler, after {count} steps; its kind is not in the file"
        )
    found.groups, found.counts = [{"centered": centered}], [len(moments)]
    for name, arrays in moments.items():
        by_key = {MOMENT_KEYS[moment]: x for moment, x in arrays.items()}
        found.parameters.append(make_parameter(name, 0, by_key))
    found.plan = Plan(
        "from_paddle",
        path,
        arguments=arguments,
        weights=Weights(str(beside)) if has_names else None,
        comments=()
        if has_names
        else ["The names are Paddle's own. The .pdparams has the model's: give names."],
    )
    return found


def _is_centered(means: Sequence[Value]) -> bool:
    """Whether a mean is not 0; only the smallest arrays are read, which is fast."""
    left = _LOOKED_AT
    for array in sorted(means, key=lambda x: math.prod(np.shape(x))):
        if np.any(np.asarray(array)):
            return True
        left -= math.prod(np.shape(array))
        if left < 0:
            break
    return False
