"""The objects of a ``tf.train.Checkpoint``: what they are called, and what they hold.

Such a checkpoint has a graph of the Python objects that were saved. A node has named
children. A variable's node has the key of its tensor, and its name as the user sees it.
A legacy optimizer's node has slots: which variable has which buffer.

References:
    TensorFlow 2.21, ``core/protobuf/trackable_object_graph.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rmsprop_jax.checkpoints._tensorflow_bundle import message, varint


class Slot(NamedTuple):
    """A buffer that an optimizer has of a variable; both are indices of nodes."""

    variable: int
    name: str
    buffer: int


class Node(NamedTuple):
    """An object.

    Attributes:
        children: The indices of other nodes, by the names of the attributes.
        key: The key of the tensor; empty if it is no variable.
        name: The variable's name in the model.
        slots: An optimizer's.
    """

    children: Mapping[str, int]
    key: str
    name: str
    slots: list[Slot]


def objects(stored: np.ndarray) -> list[Node]:
    """The nodes, of the bytes of a tensor with one string."""
    data = stored.tobytes()
    # Before the string: its length, and a checksum of that.
    length, at = varint(data, 0)
    graph = message(data[at + 4 : at + 4 + length])
    return [_node(message(node)) for node in graph[1]]


def elements(nodes: Sequence[Node], owner: Node, attribute: str) -> list[Node]:
    """The elements of a list that an object has."""
    if attribute not in owner.children:
        return []
    children = nodes[owner.children[attribute]].children
    return [nodes[children[i]] for i in sorted(children, key=int)]


def _node(fields: dict) -> Node:
    children = [message(child) for child in fields.get(1, [])]
    attributes = [message(attribute) for attribute in fields.get(2, [])]
    slots = [message(slot) for slot in fields.get(3, [])]
    value = next((a for a in attributes if a[1][0] == b"VARIABLE_VALUE"), None)
    return Node(
        {child[2][0].decode(): child.get(1, [0])[0] for child in children},
        "" if value is None else value[3][0].decode(),
        "" if value is None else value.get(2, [b""])[0].decode(),
        [Slot(s.get(1, [0])[0], s[2][0].decode(), s.get(3, [0])[0]) for s in slots],
    )
