"""A TensorFlow checkpoint's files, read without TensorFlow.

``PREFIX.index`` is a table of sorted keys, as LevelDB writes it. Its footer says where
the index of its blocks is. A block is entries, in which a key leaves out what it shares
with the one before. A value is a protobuf message: the dtype, the shape, and where the
bytes are in ``PREFIX.data-00000-of-00001``.

References:
    TensorFlow 2.21, ``core/util/tensor_bundle/tensor_bundle.h``,
    ``core/protobuf/tensor_bundle.proto`` and ``tsl/lib/io/format.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.checkpoints._files import File, damaged

# Where the graph of the objects is, if tf.train.Checkpoint wrote it: not a tensor.
OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SLICES = 7  # the field of an entry
_MAGIC = 0xDB4775248B80FB57
# TensorFlow's numbers of its dtypes. Strings and what else is there hold no weights.
_DTYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8"}
_DTYPES |= {8: "complex64", 9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16"}
_DTYPES |= {18: "complex128", 19: "float16", 22: "uint32", 23: "uint64"}


def read(prefix: File) -> dict[str, np.ndarray]:
    """The tensors by their keys; the graph of the objects as its bytes.

    Raises:
        ValueError: Where a file is damaged, or a tensor is in slices.
    """
    index = Path(f"{prefix}.index").read_bytes()
    try:
        entries = {key: message(value) for key, value in _table(index)}
    except (IndexError, struct.error, ValueError) as error:
        raise damaged(f"{prefix}.index", error) from error
    sliced = [key.decode() for key, entry in entries.items() if _SLICES in entry]
    if sliced:
        raise ValueError(
            f"{str(prefix)!r} must have every variable whole, but {sliced[0]!r} is in "
            "slices. Restore it in TensorFlow into a variable without a partitioner, "
            "and save that."
        )
    try:
        header = entries.pop(b"")
        shards = header.get(1, [1])[0]
        names = [f"{prefix}.data-{n:05}-of-{shards:05}" for n in range(shards)]
        # numpy.memmap refuses an empty file.
        data = [np.fromfile(name, np.uint8) for name in names]
        return {
            key.decode(): _tensor(key.decode(), entry, data)
            for key, entry in entries.items()
            if key.decode() == OBJECTS or entry[1][0] in _DTYPES
        }
    except (IndexError, KeyError, OSError, struct.error, ValueError) as error:
        raise damaged(f"{prefix}.index", error) from error


def _tensor(key: str, entry: dict[int, Any], data: list[np.ndarray]) -> np.ndarray:
    shard, offset, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
    stored = data[shard][offset : offset + size]
    if len(stored) < size:
        raise ValueError(f"the data end within {key!r}")
    if key == OBJECTS:
        return stored
    dims = message(entry.get(2, [b""])[0]).get(2, [])
    shape = [message(dim).get(1, [0])[0] for dim in dims]
    return stored.view(jnp.dtype(_DTYPES[entry[1][0]])).reshape(shape)


def _table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values."""
    footer = index[-48:]
    if footer[-8:] != struct.pack("<Q", _MAGIC):
        raise ValueError("its end is not that of a table")
    *_, at = _handle(footer, 0)
    for _, handle in _block(index, *_handle(footer, at)[:2]):
        yield from _block(index, *_handle(handle, 0)[:2])


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if index[offset + size]:
        raise ValueError("its blocks are compressed")
    block = index[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    at, key = 0, b""
    while at < size - 4 - 4 * restarts:
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + rest]
        at += rest
        yield key, block[at : at + length]
        at += length


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """The offset and the size of a block, and where to read on."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, 7 bits a byte from the lowest on, and where to read on."""
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at


def message(data: bytes) -> dict[int, Any]:
    """The fields of a protobuf message, by their numbers: lists of ints or bytes."""
    fields: dict[int, Any] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            length, at = (
                (8, at) if kind == 1 else (4, at) if kind == 5 else varint(data, at)
            )
            value = data[at : at + length]
            at += length
        fields.setdefault(tag >> 3, []).append(value)
    return fields
