"""Read an RMSprop from a file of Keras.

The optimizer's variables have the same order in all of Keras's files: the iterations,
the learning rate (in Keras 3, unless it is a schedule), and then one array per
trainable variable for each of `BLOCKS` that the settings require. The step count is the
number of iterations, divided by ``gradient_accumulation_steps``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._convert.arrays import to_real_numbers
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._keras_family.conversion import (
    ACCUMULATION,
    BLOCK_NAMES,
    BLOCKS,
    LEGACY_BLOCK_NAMES,
    Block,
    Dialect,
    SavedOptimizer,
    clean_names,
    drop_none,
    merge_settings,
    select_variables,
    validate_iterations,
    validate_settings,
)
from rmsprop_jax.checkpoints._keras_family.h5_weights import (
    check_shapes,
    has_names,
    list_names,
)
from rmsprop_jax.checkpoints._keras_family.keras_schedules import make_schedule
from rmsprop_jax.checkpoints._readers.keras_h5 import Group, KerasFile, get_config
from rmsprop_jax.checkpoints._readers.source import StoredArray
from rmsprop_jax.schedules import inverse_time_decay


def read_optimizer(
    what: str,
    file: KerasFile,
    names: Sequence[str] | None,
    given: Settings,
) -> SavedOptimizer:
    """Return what the file holds of the optimizer, with all settings.

    Args:
        what: What errors call the file.
        file: The file.
        names: The names that the user gave, cleaned.
        given: The settings that the user gave.
    """
    if has_names(file.root):
        variables, labels = _read_named_variables(what, file.root)
        training = parse_json(what, file.root.texts["training_config"])
        config = get_config(training, "optimizer_config")
    else:
        variables, labels = read_numbered_variables(what, file.root), []
        config = get_config(get_config(file.config, "compile_config"), "optimizer")
    dialect, own = read_settings(what, config)
    if is_untrained(file.root):
        raise ValueError(
            f"{what} must hold the optimizer's state, but its optimizer has not made a "
            "step, so there is no state to resume. Start with tx.init(params)."
        )
    if not config and "learning_rate" not in given:
        own["learning_rate"] = None  # it may be among the variables
    settings = merge_settings(what, dialect, own, given)
    is_legacy = dialect is dialects.keras_legacy
    block_names = LEGACY_BLOCK_NAMES if is_legacy else BLOCK_NAMES
    blocks = _find_blocks({**given, **own})
    if labels:
        found = _read_names(labels, blocks, block_names, file.root)
    elif names is None:
        raise missing_names_error(what, "trainable_variables")
    else:
        found = [*names]
    count = len(found)
    start = len(variables) - len(blocks) * count
    arrays = {
        block: variables[start + n * count : start + (n + 1) * count]
        for n, block in enumerate(blocks)
    }
    shapes = [[x.shape for x in block] for block in arrays.values()]
    if start not in (1, 2) or any(others != shapes[0] for others in shapes):
        raise ValueError(
            f"names must be those of the trainable variables, one for each that the "
            f"optimizer has, but there were {count}, and {what} has "
            f"{len(variables)} variables of the optimizer: the iterations, perhaps the "
            "learning rate, and for each trainable variable "
            f"{', '.join(block_names[block] for block in blocks)}. If the names are "
            "right, a setting does not fit the file: check momentum and centered, and "
            "use_ema and gradient_accumulation_steps."
        )
    if not labels:
        check_shapes(what, file, found, shapes[0])
    if settings["learning_rate"] is None and start == 1:
        raise ValueError(
            f"learning_rate must be given, because {what} does not hold it: its "
            "optimizer had a schedule."
        )
    iterations, *numbers = to_real_numbers(variables[:start])
    if settings["learning_rate"] is None:
        settings["learning_rate"] = numbers[0]
        validate_settings(what, {"learning_rate": numbers[0]})
    saved = SavedOptimizer(
        what,
        dialect,
        settings,
        validate_iterations(what, iterations),
        found,
        arrays,
        block_names,
    )
    if labels and names is not None:
        return select_variables(saved, names)
    return saved


def missing_names_error(what: str, variables: str) -> ValueError:
    """Return the error for a file that numbers its variables, if names are needed."""
    return ValueError(
        f"names must be given, because {what} has its variables by number. Give names="
        f"[v.path for v in model.{variables}], or v.name for tf_keras."
    )


def _missing_optimizer_error(what: str) -> ValueError:
    return ValueError(
        f"{what} must hold the optimizer's state, but it holds none: it was saved "
        "before the first step, or without the optimizer. (A .keras never holds the "
        "state of tf_keras's legacy optimizers. Save a .h5, or a tf.train.Checkpoint.)"
    )


def _missing_iterations_error(
    what: str, labels: Sequence[str], root: Group
) -> ValueError:
    """Return the error for an ``.h5`` whose optimizer state is not tf.keras's."""
    if not labels:
        return _missing_optimizer_error(what)
    message = (
        f"{what} must have the optimizer's iteration among its variables, but it has "
        f"{[*labels[:4]]}."
    )
    # Before it became tf.keras, Keras had other names, and another rule.
    if labels[0].startswith("training/") or labels[0].endswith("/iterations:0"):
        message += (
            f" It is of standalone Keras {root.texts.get('keras_version', '2')}, whose "
            "RMSprop can't be resumed here. load_weights(path) returns its weights; "
            "start the optimizer with tx.init(params)."
        )
    return ValueError(message)


def is_untrained(root: Group) -> bool:
    """Whether a file has an optimizer with 0 iterations and no moments.

    Keras creates the moments before the first step. Until then, the optimizer has only
    its iterations, and perhaps its learning rate.
    """
    if has_names(root):
        group = root.groups.get("optimizer_weights")
        labels = group.lists.get("weight_names", []) if group else []
        variables = [group.array(label) for label in labels] if group else []
    else:
        group = root.groups.get("optimizer")
        variables = (
            group.groups.get("inner_optimizer", group).numbered_arrays()
            if group
            else []
        )
    if not 1 <= len(variables) <= 2 or any(x.shape for x in variables):
        return False
    return to_real_numbers(variables[:1]) == [0.0]


def read_numbered_variables(what: str, root: Group) -> list[StoredArray]:
    """Return the optimizer's variables from a file without names."""
    if "optimizer" not in root.groups:
        raise _missing_optimizer_error(what)
    group = root.groups["optimizer"]
    # An optimizer with a loss scale contains another optimizer.
    return group.groups.get("inner_optimizer", group).numbered_arrays()


def _read_named_variables(
    what: str, root: Group
) -> tuple[list[StoredArray], list[str]]:
    """Return the optimizer's variables and their names, from the iterations on."""
    if "training_config" not in root.texts or "optimizer_weights" not in root.groups:
        raise _missing_optimizer_error(what)
    group = root.groups["optimizer_weights"]
    labels = group.lists.get("weight_names", [])
    # The variables of a loss scale come first.
    ends = [label.rpartition("/")[2].removesuffix(":0") for label in labels]
    starts = [n for n, end in enumerate(ends) if end in ("iteration", "iter")]
    if not starts:
        raise _missing_iterations_error(what, labels, root)
    labels = labels[starts[-1] :]
    return [group.array(label) for label in labels], labels


def parse_json(what: str, text: str) -> Settings:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} has settings that are not JSON ({error}).") from error
    return content if isinstance(content, dict) else {}


def read_settings(what: str, config: Settings) -> tuple[Dialect, Settings]:
    """Return the dialect, and the settings by Keras's names.

    A ``.weights.h5`` has none.
    """
    if not config:
        return dialects.keras, {}
    inner = get_config(get_config(config, "config"), "inner_optimizer")
    if inner:  # of a loss scale
        config = inner
    name, own = str(config.get("class_name")), drop_none(**get_config(config, "config"))
    if name.rpartition(">")[2] != "RMSprop":
        raise ValueError(
            f"{what} must be of Keras's RMSprop, but its optimizer was {name}."
        )
    learning_rate = own.pop("learning_rate", None)
    if isinstance(learning_rate, dict):
        learning_rate = make_schedule(what, learning_rate)
    own |= drop_none(learning_rate=learning_rate)
    validate_settings(what, own)
    is_legacy = "decay" in own
    if is_legacy and own["decay"] and isinstance(learning_rate, float):
        own["learning_rate"] = inverse_time_decay(learning_rate, 1, own["decay"])
    own["weight_decay"] = own.get("weight_decay") or 0.0
    return (dialects.keras_legacy if is_legacy else dialects.keras), own


def _find_blocks(settings: Settings) -> list[Block]:
    """Return the blocks that an optimizer of these settings has, in their order."""
    momentum = settings["momentum"]
    has: dict[Block, bool] = {
        "average": bool(settings.get("use_ema")),
        "accumulator": bool(settings.get(ACCUMULATION)),
        "nu": True,
        "mu": callable(momentum) or momentum > 0,
        "grad_mean": bool(settings["centered"]),
    }
    return [block for block in BLOCKS if has[block]]


def _read_names(
    labels: Sequence[str],
    blocks: Sequence[Block],
    block_names: Mapping[Block, str],
    root: Group,
) -> list[str]:
    """Return the names of the variables, from those of their second moments.

    Keras 3 writes ``rm_sprop/dense_kernel_velocity``, tf_keras
    ``RMSprop/velocity/dense/kernel:0``, and a legacy optimizer
    ``RMSprop/dense/kernel/rms:0``.
    """
    key = block_names["nu"]
    labels = clean_names(labels)
    prefix = labels[0].removesuffix("iter").removesuffix("iteration")
    start = 2 if labels[1:] and labels[1].endswith("learning_rate") else 1
    count = (len(labels) - start) // len(blocks)
    labels = labels[start + blocks.index("nu") * count :][:count]
    if all(label.endswith(f"/{key}") for label in labels):
        return [x.removeprefix(prefix).removesuffix(f"/{key}") for x in labels]
    if all(f"{key}/" in label for label in labels):
        return [label.partition(f"{key}/")[2] for label in labels]
    flat = [label.rpartition("/")[2].removesuffix(f"_{key}") for label in labels]
    weights = list_names(root)
    return [_restore_slashes(name, weights) for name in flat]


def _restore_slashes(flat: str, names: Sequence[str]) -> str:
    """Return the name with slashes; Keras 3.0 stores a shorter one with the weights."""
    fitting = [n for n in names if f"_{flat}".endswith(f"_{n.replace('/', '_')}")]
    return max(fitting, key=len, default=flat)
