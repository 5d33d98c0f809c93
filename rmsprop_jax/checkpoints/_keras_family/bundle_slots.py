"""Find the slots of RMSProp in a TensorFlow checkpoint, and their variables.

A Saver of tf.compat.v1 writes the second moment of a variable V as ``V/RMSProp``. The
next slot, ``V/RMSProp_1``, is the momentum, even if momentum is 0. If centered, it is
the mean, and the momentum comes third. The step count is the ``global_step``.

In a tf.train.Checkpoint, the graph of the objects assigns each array to its variable:
for Keras 3 and tf_keras by the optimizer's lists, ``_velocities`` and so on; for legacy
optimizers and those of tf.compat.v1 by their slots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._convert.arrays import to_real_number
from rmsprop_jax.checkpoints._convert.run import Moment, Settings
from rmsprop_jax.checkpoints._keras_family.conversion import (
    BLOCK_NAMES,
    LEGACY_BLOCK_NAMES,
    Block,
    SavedOptimizer,
    validate_iterations,
    validate_settings,
)
from rmsprop_jax.checkpoints._readers.source import StoredArray
from rmsprop_jax.checkpoints._readers.tensor_bundle import Bundle, Node
from rmsprop_jax.schedules import inverse_time_decay

_STEP = "global_step"
_SLOT = re.compile(r"(.+)/RMSProp(?:_(\d{1,4}))?")
_AVERAGE = "/ExponentialMovingAverage"
# The attributes of Keras's optimizers. RMSprop always has average gradients, Adam
# never.
_LISTS: dict[Block, str] = {
    "average": "_model_variables_moving_average",
    "accumulator": "_accumulated_gradients",
    "nu": "_velocities",
    "mu": "_momentums",
    "grad_mean": "_average_gradients",
}
_SLOTS: dict[Block, str] = {"nu": "rms", "mu": "momentum", "grad_mean": "mg"}
# TensorFlow's own count of checkpoints, and metrics.
_NOT_WEIGHTS = ("save_counter/", "keras_api/")


def read_saver(what: str, bundle: Bundle, count: int | None) -> SavedOptimizer:
    """Return what a Saver's checkpoint holds of the optimizer.

    Args:
        what: What errors call the checkpoint.
        bundle: The checkpoint.
        count: The step count that the user gave.
    """
    arrays = bundle.arrays
    slots: dict[str, dict[int, StoredArray]] = {}
    for key, array in arrays.items():
        if match := _SLOT.fullmatch(key):
            slots.setdefault(match[1], {})[int(match[2] or 0)] = array
    kinds = {tuple(sorted(numbers)) for numbers in slots.values()}
    if len(kinds) != 1 or not kinds <= {(0, 1), (0, 1, 2)}:
        raise ValueError(
            f"{what} must be of one tf.compat.v1.train.RMSPropOptimizer, which keeps "
            "two slots of each variable V, 'V/RMSProp' and 'V/RMSProp_1', or three if "
            "centered, but "
            + (
                f"some have {' and others have '.join(map(str, sorted(kinds)))}."
                if slots
                else f"it has none. It has {[*arrays][:8]}."
            )
        )
    is_centered = kinds == {(0, 1, 2)}
    order: list[Moment] = ["nu", "grad_mean", "mu"] if is_centered else ["nu", "mu"]
    return SavedOptimizer(
        what,
        dialects.tensorflow,
        {"centered": is_centered},
        _agree_on_count(what, arrays.get(_STEP), count),
        # A slot may be in a scope around that of its variable.
        [next((n for n in _inner_names(key) if n in arrays), key) for key in slots],
        {
            moment: [numbers[place] for numbers in slots.values()]
            for place, moment in enumerate(order)
        },
        {
            moment: f"RMSProp_{place}" if place else "RMSProp"
            for place, moment in enumerate(order)
        },
    )


def read_objects(
    what: str, bundle: Bundle, optimizer: str | None, count: int | None
) -> SavedOptimizer:
    """Return what a tf.train.Checkpoint holds of the optimizer.

    Args:
        what: What errors call the checkpoint.
        bundle: The checkpoint.
        optimizer: Which one the user chose.
        count: The step count that the user gave.
    """
    nodes = bundle.nodes
    found = find_optimizers(bundle)
    if optimizer is None and len(found) == 1:
        optimizer = next(iter(found))
    if optimizer not in found:
        raise ValueError(
            "optimizer must name one RMSprop of the checkpoint, if it has several, "
            f"but it was {optimizer!r}, and {what} has {[*found]}."
        )
    owner = nodes[found[optimizer]]
    if owner.slots:
        return _read_slots(what, bundle, owner, count)
    lists = {
        block: _list_elements(nodes, owner, name) for block, name in _LISTS.items()
    }
    blocks = {
        block: [bundle.array(node) for node in elements]
        for block, elements in lists.items()
        if elements
    }
    trained = _list_elements(nodes, owner, "_trainable_variables")
    # tf_keras has no such list, but the slot's name contains the variable's name.
    names = [node.name for node in trained] or [
        node.name.partition("velocity/")[2] for node in lists["nu"]
    ]
    own: Settings = {} if "mu" in blocks else {"momentum": 0.0}
    own["centered"] = "grad_mean" in blocks
    numbers = _read_numbers(bundle, owner, ["_learning_rate"])
    own |= {name.removeprefix("_"): to_real_number(x) for name, x in numbers.items()}
    validate_settings(what, own)
    iterations = _read_numbers(bundle, owner, ["_iterations"]).get("_iterations")
    step_count = _agree_on_count(what, iterations, count)
    return SavedOptimizer(
        what, dialects.keras, own, step_count, names, blocks, BLOCK_NAMES
    )


def find_optimizers(bundle: Bundle) -> dict[str, int]:
    """Return the nodes of the RMSprops in a tf.train.Checkpoint, by their paths."""
    return {
        path.removesuffix("/inner_optimizer"): i  # of a loss scale
        for i, path in _find_paths(bundle.nodes, _is_rmsprop).items()
    }


def _read_slots(
    what: str, bundle: Bundle, owner: Node, count: int | None
) -> SavedOptimizer:
    """Return the slots of Keras's legacy RMSprop, or of tf.compat.v1's."""
    nodes = bundle.nodes
    buffers: dict[int, dict[str, StoredArray]] = {}
    for variable, slot, buffer in owner.slots:
        buffers.setdefault(variable, {})[slot] = bundle.array(nodes[buffer])
    in_all = set.intersection(*(set(slots) for slots in buffers.values()))
    blocks: dict[Block, list[StoredArray]] = {
        moment: [slots[slot] for slots in buffers.values()]
        for moment, slot in _SLOTS.items()
        if slot in in_all
    }
    names = [nodes[variable].name for variable in buffers]
    own: Settings = {"centered": "grad_mean" in blocks}
    attributes = ["learning_rate", "rho", "momentum", "decay", "iter"]
    numbers = _read_numbers(bundle, owner, attributes)
    iterations = numbers.pop("iter", None)
    own |= {name: to_real_number(x) for name, x in numbers.items()}
    step_count = _agree_on_count(what, iterations, count)
    if iterations is None:
        dialect, block_names = dialects.tensorflow, {**BLOCK_NAMES, **_SLOTS}
    else:
        dialect, block_names = dialects.keras_legacy, LEGACY_BLOCK_NAMES
        validate_settings(what, own)
        if own.get("decay") and "learning_rate" in own:
            own["learning_rate"] = inverse_time_decay(
                own["learning_rate"], 1, own["decay"]
            )
    return SavedOptimizer(what, dialect, own, step_count, names, blocks, block_names)


def find_saver_weights(bundle: Bundle) -> dict[str, StoredArray]:
    """Return the weights in a Saver's checkpoint: all but the slots."""
    return {
        key: array
        for key, array in bundle.arrays.items()
        if key != _STEP
        and not _SLOT.fullmatch(key)
        and not key.endswith(_AVERAGE)
        and key.rpartition("/")[0] not in bundle.arrays
    }


def find_saver_averages(bundle: Bundle) -> dict[str, StoredArray]:
    """Return the moving averages in a Saver's checkpoint."""
    return {
        key.removesuffix(_AVERAGE): array
        for key, array in bundle.arrays.items()
        if key.endswith(_AVERAGE)
    }


def find_object_weights(bundle: Bundle) -> dict[str, StoredArray]:
    """Return all variables except the optimizers'; keys replace names that clash."""
    arrays, nodes = bundle
    owned: set[int] = set()
    for i, node in enumerate(nodes):
        if node.slots or {"_iterations", "iter"} & node.children.keys():
            owned |= _find_owned(nodes, i) | {slot.buffer for slot in node.slots}
    found = {
        node.key: node.name
        for i, node in enumerate(nodes)
        if node.key in arrays
        and i not in owned
        and not node.key.startswith(_NOT_WEIGHTS)
    }
    counts = Counter(found.values())
    return {
        name if counts[name] == 1 else key.partition("/.")[0]: arrays[key]
        for key, name in found.items()
    }


def _find_owned(nodes: Sequence[Node], owner: int) -> set[int]:
    """Return an optimizer and all below it, except the variables that it trains."""
    owned = {owner}
    todo = [owner]
    while todo:
        for label, child in nodes[todo.pop()].children.items():
            if label != "_trainable_variables" and child not in owned:
                owned.add(child)
                todo.append(child)
    return owned


def _find_paths(
    nodes: Sequence[Node], is_wanted: Callable[[Node], bool]
) -> dict[int, str]:
    """Return the shortest path from the root to each of the wanted objects."""
    came_from: dict[int, tuple[int, str]] = {}
    order = [0] if nodes else []
    for i in order:
        for label, child in nodes[i].children.items():
            if child not in came_from and child != 0:
                came_from[child] = i, label
                order.append(child)

    def path_of(i: int) -> str:
        labels: list[str] = []
        while i:
            i, label = came_from[i]
            labels.append(label)
        return "/".join(reversed(labels))

    return {i: path_of(i) for i in order if is_wanted(nodes[i])}


def _is_rmsprop(node: Node) -> bool:
    lists = {"_velocities", "_average_gradients"} <= node.children.keys()
    return lists or any(slot.name == "rms" for slot in node.slots)


def _list_elements(nodes: Sequence[Node], owner: Node, attribute: str) -> list[Node]:
    """Return the elements of an object's list attribute."""
    if attribute not in owner.children:
        return []
    children = nodes[owner.children[attribute]].children
    places = sorted((label for label in children if label.isdecimal()), key=int)
    return [nodes[children[label]] for label in places]


def _read_numbers(
    bundle: Bundle, owner: Node, attributes: Iterable[str]
) -> dict[str, StoredArray]:
    """Return the hyperparameters that an optimizer stores as variables."""
    children = {name: bundle.nodes[i] for name, i in owner.children.items()}
    found = {name: children[name] for name in attributes if name in children}
    return {name: bundle.array(node) for name, node in found.items() if node.key}


def _agree_on_count(what: str, own: StoredArray | None, given: int | None) -> int:
    """Return the step count that the checkpoint holds, or that the user gave."""
    if own is not None:
        count = validate_iterations(what, to_real_number(own))
        if given not in (None, count):
            raise ValueError(
                f"count must be left out, because {what} has its own, {count}, but it "
                f"was {given}."
            )
        return count
    if given is None:
        raise ValueError(
            f"count must be given, because {what} has no {_STEP!r}. It is the number "
            "of updates so far, from which schedules continue."
        )
    return given


def _inner_names(key: str) -> Iterator[str]:
    """Yield the key, then the key without one outer scope after the other."""
    while key:
        yield key
        key = key.partition("/")[2]
