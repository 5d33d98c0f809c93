"""The slots of RMSProp in a TensorFlow checkpoint: which array is what, of what.

A Saver of tf.compat.v1 writes a variable V's second moment as ``V/RMSProp``. The next,
``V/RMSProp_1``, is the momentum, at momentum 0 too. Centered, it is the mean, and the
momentum comes third. The count is the ``global_step``.

In a tf.train.Checkpoint the graph of the objects says what is whose: of Keras 3 and of
tf_keras by the optimizer's lists, ``_velocities`` and so on, of a legacy optimizer and
of tf.compat.v1's by its slots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._keras_schedules import time_based
from rmsprop_jax.checkpoints._keras_state import KEYS, LEGACY_KEYS, Saved
from rmsprop_jax.checkpoints._tensorflow_objects import Node, elements

Arrays = Mapping[str, np.ndarray]

STEP = "global_step"
SLOT = re.compile(r"(.+)/RMSProp(?:_(\d+))?")
# The attributes of Keras's optimizers. Adam has no average gradients, RMSprop always.
_LISTS = {"average": "_model_variables_moving_average"}
_LISTS |= {"accumulator": "_accumulated_gradients", "nu": "_velocities"}
_LISTS |= {"mu": "_momentums", "grad_mean": "_average_gradients"}
# TensorFlow's own count of checkpoints, and metrics.
_NOT_OURS = ("save_counter/", "keras_api/")
_SLOTS = {"nu": "rms", "mu": "momentum", "grad_mean": "mg"}


def of_keys(what: str, arrays: Arrays, count: int | None) -> Saved:
    """What a Saver's checkpoint holds of the optimizer."""
    slots: dict[str, dict[int, np.ndarray]] = {}
    for key, array in arrays.items():
        if match := SLOT.fullmatch(key):
            slots.setdefault(match[1], {})[int(match[2] or 0)] = array
    kinds = {tuple(sorted(of)) for of in slots.values()}
    if len(kinds) != 1 or not kinds <= {(0, 1), (0, 1, 2)}:
        raise ValueError(
            f"{what} must be of one tf.compat.v1.train.RMSPropOptimizer, which keeps "
            "two slots of each variable V, 'V/RMSProp' and 'V/RMSProp_1', or three if "
            "centered, but "
            + (
                f"of some it has {' and of others '.join(map(str, sorted(kinds)))}."
                if slots
                else f"it has none. It has {[*arrays][:8]}."
            )
        )
    own_count = arrays.get(STEP)
    order = ["nu", "grad_mean", "mu"] if kinds == {(0, 1, 2)} else ["nu", "mu"]
    # A slot may be in a scope around that of its variable.
    names = [next((n for n in _inner(key) if n in arrays), key) for key in slots]
    return Saved(
        what,
        dialects.tensorflow,
        {"centered": "grad_mean" in order},
        _counted(what, None if own_count is None else int(own_count), count),
        names,
        {m: [of[place] for of in slots.values()] for place, m in enumerate(order)},
        {
            m: f"RMSProp_{place}" if place else "RMSProp"
            for place, m in enumerate(order)
        },
    )


def of_objects(
    what: str,
    arrays: Arrays,
    nodes: Sequence[Node],
    optimizer: str | None,
    count: int | None,
) -> Saved:
    """What a tf.train.Checkpoint holds of the optimizer."""
    found = {
        path.removesuffix("/inner_optimizer"): i  # of a loss scale's
        for i, path in _paths(nodes).items()
        if _is_rmsprop(nodes[i])
    }
    if optimizer is None and len(found) == 1:
        optimizer = next(iter(found))
    if optimizer not in found:
        raise ValueError(
            "optimizer must name one RMSprop of the checkpoint, if there are several, "
            f"but it was {optimizer!r}, and {what} has {[*found]}."
        )
    owner = nodes[found[optimizer]]
    if owner.slots:
        return _of_slots(what, arrays, nodes, owner, count)
    lists = {moment: elements(nodes, owner, name) for moment, name in _LISTS.items()}
    slots = {m: [arrays[n.key] for n in of] for m, of in lists.items() if of}
    names = [node.name for node in elements(nodes, owner, "_trainable_variables")]
    # tf_keras has no such list, but the name in that of the slot.
    names = names or [node.name.partition("velocity/")[2] for node in lists["nu"]]
    own: dict[str, Any] = {} if "mu" in slots else {"momentum": 0.0}
    own["centered"] = "grad_mean" in slots
    own |= _numbers(arrays, nodes, owner, ["_learning_rate", "_iterations"])
    iterations = _counted(what, int(own["iterations"]), count)
    return Saved(what, dialects.keras, own, iterations, names, slots, KEYS)


def _of_slots(
    what: str,
    arrays: Arrays,
    nodes: Sequence[Node],
    owner: Node,
    count: int | None,
) -> Saved:
    """Of Keras's legacy RMSprop, or of tf.compat.v1's RMSPropOptimizer."""
    buffers: dict[int, dict[str, np.ndarray]] = {}
    for variable, slot, buffer in owner.slots:
        buffers.setdefault(variable, {})[slot] = arrays[nodes[buffer].key]
    of_all = set.intersection(*(set(of) for of in buffers.values()))
    slots = {
        moment: [of[slot] for of in buffers.values()]
        for moment, slot in _SLOTS.items()
        if slot in of_all
    }
    names = [nodes[variable].name for variable in buffers]
    own: dict[str, Any] = {"centered": "grad_mean" in slots}
    numbers = ["learning_rate", "rho", "momentum", "decay", "iter"]
    own |= _numbers(arrays, nodes, owner, numbers)
    if "iter" not in own:
        count = _counted(what, None, count)
        return Saved(what, dialects.tensorflow, own, count, names, slots, _SLOTS)
    if own["decay"] and "learning_rate" in own:
        own["learning_rate"] = time_based(own["learning_rate"], own["decay"])
    count = _counted(what, int(own["iter"]), count)
    return Saved(what, dialects.keras_legacy, own, count, names, slots, LEGACY_KEYS)


def weights_of_objects(arrays: Arrays, nodes: Sequence[Node]) -> dict[str, np.ndarray]:
    """All variables but the optimizers'. Two of one name go by their keys."""
    owned: set[int] = set()

    def own(i: int) -> None:
        if i not in owned:
            owned.add(i)
            for label, child in nodes[i].children.items():
                if label != "_trainable_variables":
                    own(child)

    for i, node in enumerate(nodes):
        if node.slots or {"_iterations", "iter"} & node.children.keys():
            own(i)
            owned |= {slot.buffer for slot in node.slots}
    found = {
        node.key: node.name
        for i, node in enumerate(nodes)
        if node.key in arrays and i not in owned and not node.key.startswith(_NOT_OURS)
    }
    often = Counter(found.values())
    return {
        name if often[name] == 1 else key.partition("/.")[0]: arrays[key]
        for key, name in found.items()
    }


def _paths(nodes: Sequence[Node]) -> dict[int, str]:
    """What each object is called from the first one on, by the shortest way."""
    paths = {0: ""}
    for i in (queue := [0]):
        for label, child in nodes[i].children.items():
            if child not in paths:
                paths[child] = f"{paths[i]}/{label}" if paths[i] else label
                queue.append(child)
    return paths


def _is_rmsprop(node: Node) -> bool:
    lists = {"_velocities", "_average_gradients"} <= node.children.keys()
    return lists or any(slot.name == "rms" for slot in node.slots)


def _numbers(
    arrays: Arrays, nodes: Sequence[Node], owner: Node, attributes: Iterable[str]
) -> dict[str, float]:
    """The numbers that an optimizer keeps as variables. A schedule is none."""
    children = {name: nodes[i] for name, i in owner.children.items()}
    found = {name: children[name].key for name in attributes if name in children}
    return {name.lstrip("_"): float(arrays[key]) for name, key in found.items() if key}


def _counted(what: str, own: int | None, count: int | None) -> int:
    """How many updates there were."""
    if own is not None and count not in (None, own):
        raise ValueError(
            f"count must be left out, as {what} has its own, {own}, but it was {count}."
        )
    if own is not None:
        return own
    if count is None:
        raise ValueError(
            f"count must be given, as {what} has no {STEP!r}: how many updates there "
            "were. Schedules go on from there."
        )
    return count


def _inner(key: str) -> Iterator[str]:
    """The key, and what remains of it without the outer scopes."""
    while key:
        yield key
        key = key.partition("/")[2]
