"""What a file of Keras holds of an RMSprop.

The optimizer's variables are in one order in all of Keras's files: the iteration, the
learning rate (if Keras 3 has a number there), and then blocks of one array for each
trainable variable, as far as the settings ask for them:

    average               the weights' moving average
    gradient_accumulator  the sum of the gradients since the last update
    velocity, rms         nu
    momentum              mu: the rate is inside in both
    average_gradient, mg  grad_mean

The second names are those of legacy optimizers. The count is the iteration, divided by
``gradient_accumulation_steps``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._keras_files import (
    Group,
    array,
    is_numbered,
    strings,
    variables,
)
from rmsprop_jax.checkpoints._keras_schedules import schedule_of, time_based
from rmsprop_jax.checkpoints._keras_state import (
    ACCUMULATION,
    KEYS,
    LEGACY_KEYS,
    Saved,
    chosen,
    completed,
    given,
    listed,
)
from rmsprop_jax.checkpoints._keras_weights import named_weights


def saved_of(
    what: str,
    file: Group,
    config: Mapping[str, Any],
    names: Iterable[str] | None,
    user: Mapping[str, Any],
) -> Saved:
    """What the file holds of the optimizer."""
    if is_numbered(file):
        arrays, labels = _numbered(what, file)
        optimizer = (config.get("compile_config") or {}).get("optimizer")
    else:
        arrays, labels = _labelled(what, file)
        optimizer = json.loads(file.attrs["training_config"])["optimizer_config"]
    dialect, own = _settings(what, optimizer)
    # The rate may be among the arrays.
    completed(what, dialect, {"learning_rate": None, **own}, user)
    keys = LEGACY_KEYS if dialect is dialects.keras_legacy else KEYS
    layout = {**user, **own}
    momentum = layout["momentum"]
    has = {
        "average": layout.get("use_ema"),
        "accumulator": layout.get(ACCUMULATION),
        "nu": True,
        "mu": callable(momentum) or momentum > 0,
        "grad_mean": layout["centered"],
    }
    blocks = [block for block in KEYS if has[block]]
    if labels:
        found = _names_of(labels, blocks.index("nu"), len(blocks), keys["nu"], file)
    elif names is None:
        raise unnamed(what, "trainable_variables")
    else:
        found = listed(names)
    start = len(arrays) - len(blocks) * len(found)
    slots = {
        block: arrays[start + n * len(found) :][: len(found)]
        for n, block in enumerate(blocks)
    }
    shapes = [[x.shape for x in of] for of in slots.values()]
    if start not in (1, 2) or any(of != shapes[0] for of in shapes):
        raise ValueError(
            f"names must be those of the trainable variables, one for each that the "
            f"optimizer has, but there were {len(found)}, and {what} has "
            f"{len(arrays)} variables of the optimizer: the iteration, perhaps the "
            f"rate, and of each trainable one {', '.join(keys[b] for b in blocks)}. "
            "Or a setting is not that of the file: look at momentum and centered, "
            "and at use_ema and gradient_accumulation_steps."
        )
    if start == 2 and not own:
        own["learning_rate"] = float(arrays[1])
    saved = Saved(what, dialect, own, int(arrays[0]), found, slots, keys)
    return chosen(saved, names) if labels and names is not None else saved


def _numbered(what: str, file: Group) -> tuple[list[np.ndarray], list[str]]:
    """The optimizer's variables, without names."""
    if "optimizer" not in file:
        raise _no_optimizer(what)
    group = file["optimizer"]
    inner = group.get("inner_optimizer")  # of a loss scale's
    return variables(group if inner is None else inner), []


def _labelled(what: str, file: Group) -> tuple[list[np.ndarray], list[str]]:
    """The optimizer's variables, and their names, from the iteration on."""
    if "training_config" not in file.attrs or "optimizer_weights" not in file:
        raise _no_optimizer(what)
    labels = strings(file["optimizer_weights"], "weight_names")
    # A loss scale's own come before.
    ends = [label.rpartition("/")[2].removesuffix(":0") for label in labels]
    counts = [n for n, end in enumerate(ends) if end in ("iteration", "iter")]
    if not counts:
        raise _no_optimizer(what)
    labels = labels[counts[-1] :]
    return [array(file["optimizer_weights"], label) for label in labels], labels


def _no_optimizer(what: str) -> ValueError:
    return ValueError(
        f"{what} must hold the optimizer's state, but it holds none: it was saved "
        "before the first step, or without the optimizer. (A .keras has none of "
        "tf_keras's legacy optimizers. Save a .h5, or a tf.train.Checkpoint.)"
    )


def _settings(
    what: str, config: Mapping[str, Any] | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The dialect, and the settings by Keras's names; none of a ``.weights.h5``."""
    if config is None:
        return dialects.keras, {}
    kind, own = config["class_name"], dict(config["config"])
    if "inner_optimizer" in own:  # of a loss scale's
        return _settings(what, own["inner_optimizer"])
    if kind.rpartition(">")[2] != "RMSprop":
        raise ValueError(
            f"{what} must be of Keras's RMSprop, but its optimizer was {kind}."
        )
    rate = own.pop("learning_rate", None)
    if isinstance(rate, Mapping):
        rate = schedule_of(rate)
    is_legacy = "decay" in own
    if is_legacy and own["decay"] and isinstance(rate, float):
        rate = time_based(rate, own["decay"])
    own |= given(learning_rate=rate)
    own["weight_decay"] = own.get("weight_decay") or 0.0
    return (dialects.keras_legacy if is_legacy else dialects.keras), own


def _names_of(
    labels: Sequence[str], at: int, blocks: int, key: str, file: Group
) -> list[str]:
    """The names of the variables, from those of their slots.

    Keras 3 writes ``rm_sprop/dense_kernel_velocity``, tf_keras
    ``RMSprop/velocity/dense/kernel:0``, and a legacy optimizer
    ``RMSprop/dense/kernel/rms:0``.
    """
    labels = listed(labels)
    prefix = labels[0].removesuffix("iter").removesuffix("iteration")
    start = 2 if labels[1].endswith("learning_rate") else 1
    n = (len(labels) - start) // blocks
    labels = labels[start + at * n :][:n]
    if all(label.endswith(f"/{key}") for label in labels):
        return [x.removeprefix(prefix).removesuffix(f"/{key}") for x in labels]
    if all(f"{key}/" in label for label in labels):
        return [label.partition(f"{key}/")[2] for label in labels]
    bare = [label.rpartition("/")[2].removesuffix(f"_{key}") for label in labels]
    return [_unflattened(name, [*named_weights(file)]) for name in bare]


def _unflattened(flat: str, names: Sequence[str]) -> str:
    """The name with slashes; Keras 3.0 has less of it with the weights."""
    fitting = [n for n in names if f"_{flat}".endswith(f"_{n.replace('/', '_')}")]
    return max(fitting, key=len, default=flat)


def unnamed(what: str, variables: str) -> ValueError:
    return ValueError(
        f"names must be given, as {what} has its variables by number: names="
        f"[v.path for v in model.{variables}], and of tf_keras v.name."
    )
