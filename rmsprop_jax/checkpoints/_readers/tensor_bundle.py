"""Read checkpoints of TensorFlow without TensorFlow.

``PREFIX.index`` is a table of sorted keys, as LevelDB writes it. Its footer says where
the index of its blocks is. A block is a list of entries, whose keys leave out the
prefix that they share with the previous key. A value is a protobuf message: the dtype,
the shape, the place of the bytes in ``PREFIX.data-00000-of-00001``, and their
checksum.

tf.train.Checkpoint adds the graph of the Python objects that were saved. A node has
named children. The node of a variable has the key of its tensor, and its name as the
user sees it. The node of a legacy optimizer has slots: which variable has which buffer.

References:
    TensorFlow 2.21, ``core/util/tensor_bundle/tensor_bundle.cc``,
    ``core/protobuf/tensor_bundle.proto``,
    ``core/protobuf/trackable_object_graph.proto`` and ``tsl/lib/io/format.cc``.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp

from rmsprop_jax.checkpoints._readers.source import (
    DamagedError,
    Source,
    Storage,
    StoredArray,
    Strided,
    UnsupportedError,
)

# The index file of a checkpoint, from the common prefix of its files.
INDEX = "{}.index"
# Where the graph of the objects is, if tf.train.Checkpoint wrote it.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAGIC_NUMBER = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_SIZE = 48
_STRING = 7
# TensorFlow's numbers for its dtypes. All others are not numeric.
_DTYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8"},
    **{8: "complex64", 9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16"},
    **{18: "complex128", 19: "float16", 22: "uint32", 23: "uint64"},
}

T = TypeVar("T")
# A protobuf message: its fields by number, each a list of integers or bytes.
Message: TypeAlias = dict[int, list[Any]]


class Slot(NamedTuple):
    """An optimizer's buffer for a variable; both are indices of nodes."""

    variable: int
    name: str
    buffer: int


class Node(NamedTuple):
    """A Python object that was saved.

    Attributes:
        children: The indices of other nodes, by the names of the attributes.
        key: The key of the tensor; empty if the object is not a variable.
        name: The variable's name in the model.
        slots: The slots of an optimizer.
    """

    children: Mapping[str, int]
    key: str
    name: str
    slots: list[Slot]


class Bundle(NamedTuple):
    """A checkpoint of TensorFlow.

    Attributes:
        arrays: The tensors by their keys.
        nodes: The objects, if tf.train.Checkpoint wrote them. The first is the root.
    """

    arrays: Mapping[str, StoredArray]
    nodes: Sequence[Node]

    def array(self, node: Node) -> StoredArray:
        """Return the tensor of a variable.

        Raises:
            DamagedError: If there is none.
        """
        if node.key not in self.arrays:
            raise DamagedError(f"its tensor {node.key!r} is missing")
        return self.arrays[node.key]


class Entry(NamedTuple):
    """Where a tensor is.

    Attributes:
        dtype: TensorFlow's number of the dtype.
        shape: The shape.
        shard: The number of the file.
        offset: Where its bytes begin.
        size: The number of bytes.
        checksum: The checksum of the bytes.
        is_sliced: Whether this is a list of slices instead of the tensor.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_sliced: bool


def is_bundle(source: Source) -> bool:
    """Whether the file is the index of a checkpoint."""
    end = source.read_range(max(source.size - 8, 0), min(source.size, 8))
    # If it is cut off, the data file next to it still identifies it.
    is_cut = source.path.suffix == ".index" and _data_file(source.path, 0, 1).exists()
    return end == _MAGIC_NUMBER or is_cut


def read_bundle(source: Source) -> Bundle:
    """Read a checkpoint, given its index file.

    Raises:
        ImportError: If google-crc32c is missing.
    """
    try:
        table = dict(_read_table(source.read_range(0, source.size)))
        header = _decode_message(table.pop(b"", b""))
        entries = {
            key.decode(): _decode_entry(_decode_message(value))
            for key, value in table.items()
        }
    except (IndexError, struct.error) as error:
        raise DamagedError(f"its index ends too early ({error})") from error
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"it has a name that is not UTF-8 ({error})") from error
    if _first(header, 2, 0):
        raise UnsupportedError("its bytes are in the order of another machine")
    sliced = [key for key, entry in entries.items() if entry.is_sliced]
    if sliced:
        raise UnsupportedError(
            f"{sliced[0]!r} was saved in slices by a partitioner, but every variable "
            "must be saved as one tensor. Restore it in TensorFlow into a variable "
            "without a partitioner, and save again"
        )
    shards = _first(header, 1, 1)
    arrays: dict[str, StoredArray] = {}
    nodes: list[Node] = []
    files: dict[int, _Shard] = {}
    for key, entry in entries.items():
        if not 0 <= entry.shard < shards:
            raise DamagedError(f"{key!r} is in a file that does not exist")
        if entry.shard not in files:
            files[entry.shard] = _Shard(source.path, entry.shard, shards)
        shard = files[entry.shard]
        if key == _OBJECT_GRAPH:
            nodes = _read_nodes(key, entry, shard)
        elif entry.dtype in _DTYPES:
            arrays[key] = _store(key, entry, shard, source)
    return Bundle(arrays, nodes)


# --- Tensors.


def _data_file(index: Path, number: int, shards: int) -> Path:
    prefix = str(index).removesuffix(".index")
    return Path(f"{prefix}.data-{number:05}-of-{shards:05}")


class _Shard:
    """One of the files with the bytes of tensors, opened when it is first needed."""

    def __init__(self, index: Path, number: int, shards: int) -> None:
        self._path = _data_file(index, number, shards)

    @functools.cached_property
    def source(self) -> Source:
        """The file."""
        try:
            return Source(self._path)
        except FileNotFoundError as error:
            raise DamagedError(f"the file {str(self._path)!r} is missing") from error

    def read(
        self, key: str, entry: Entry, offset: int = 0, size: int | None = None
    ) -> bytes:
        """Read bytes of a tensor. If these are all its bytes, verify their checksum."""
        size = entry.size if size is None else size
        if offset + size > entry.size:
            raise DamagedError(f"{key!r} has only {entry.size} bytes")
        content = self.source.read_range(entry.offset + offset, size)
        if entry.dtype != _STRING and size == entry.size:
            _verify_checksum(f"{key!r}", _checksum(content), entry.checksum)
        return content


def _store(key: str, entry: Entry, shard: _Shard, source: Source) -> StoredArray:
    dtype = jnp.dtype(_DTYPES[entry.dtype])
    size = math.prod(entry.shape) * dtype.itemsize
    if size != entry.size:
        raise DamagedError(
            f"{key!r} of shape {entry.shape} and dtype {dtype} has {entry.size} bytes"
        )
    shard.source.budget.spend(size)
    strides = [math.prod(entry.shape[i + 1 :]) for i in range(len(entry.shape))]
    read_bytes = functools.partial(shard.read, key, entry)
    storage = Storage(size, read_bytes, functools.partial(read_bytes, 0, size))
    layout = Strided(storage, 0, tuple(strides))
    return StoredArray(source.path, entry.shape, dtype, layout)


def _read_string(key: str, entry: Entry, shard: _Shard) -> bytes:
    """Read a tensor of one string: the length, the length's checksum, the string."""
    data = shard.read(key, entry)
    length, position = _decode_varint(data, 0)
    stored = data[position : position + 4]
    string = data[position + 4 :]
    if len(stored) < 4 or len(string) != length:
        raise DamagedError(f"{key!r} has {len(string)} bytes instead of {length}")
    # The checksum is of the length in 4 or 8 bytes, of its checksum, and of the string.
    lengths = struct.pack("<I" if length < 2**32 else "<Q", length)
    (of_length,) = struct.unpack("<I", stored)
    _verify_checksum(f"the length of {key!r}", _checksum(lengths), of_length)
    _verify_checksum(f"{key!r}", _checksum(lengths + stored + string), entry.checksum)
    return string


def _checksum(content: bytes) -> int:
    """Return the CRC-32C, masked as TensorFlow stores it."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError(
            "The checksums of TensorFlow's checkpoints are verified with "
            "google-crc32c, which is missing: pip install google-crc32c"
        ) from error
    crc: int = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _verify_checksum(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise DamagedError(f"the checksum of {what} does not match its bytes")


# --- The index.


def _read_table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table."""
    footer = index[-_FOOTER_SIZE:]
    *_, position = _decode_handle(footer, 0)
    handle = _decode_handle(footer, position)[:2]
    seen = {handle}
    for _, value in _read_block(index, *handle):
        handle = _decode_handle(value, 0)[:2]
        if handle in seen:
            raise DamagedError("its index has a block twice")
        seen.add(handle)
        yield from _read_block(index, *handle)


def _read_block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if offset + size + 5 > len(index) or size < 4:
        raise DamagedError("its index has a block outside of it")
    # After the block come one byte for its compression and the checksum of both.
    (expected,) = struct.unpack_from("<I", index, offset + size + 1)
    _verify_checksum(
        "its index", _checksum(index[offset : offset + size + 1]), expected
    )
    if index[offset + size]:
        raise UnsupportedError("its blocks are compressed")
    block = index[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    position, key, left = 0, b"", 20 * len(index) + 2**20
    while position < size - 4 - 4 * restarts:
        shared, position = _decode_varint(block, position)
        rest, position = _decode_varint(block, position)
        length, position = _decode_varint(block, position)
        if shared > len(key) or position + rest + length > size - 4:
            raise DamagedError("its index has an entry outside of its block")
        key = key[:shared] + block[position : position + rest]
        position += rest
        left -= len(key)  # keys that grow with each entry would take quadratic memory
        if left < 0:
            raise UnsupportedError("its index has keys that grow too long")
        yield key, block[position : position + length]
        position += length


def _decode_handle(data: bytes, position: int) -> tuple[int, int, int]:
    """Return the offset and the size of a block, and where to continue."""
    offset, position = _decode_varint(data, position)
    size, position = _decode_varint(data, position)
    return offset, size, position


def _decode_entry(message: Message) -> Entry:
    shape = _decode_message(_first(message, 2, b""))
    sizes = [_first(_decode_message(size), 1, 0) for size in shape.get(2, [])]
    if len(sizes) > 64 or math.prod(max(size, 1) for size in sizes) >= 2**48:
        raise DamagedError(f"a shape is too large: {sizes}")
    return Entry(
        dtype=_first(message, 1, 0),
        shape=tuple(sizes),
        shard=_first(message, 3, 0),
        offset=_first(message, 4, 0),
        size=_first(message, 5, 0),
        checksum=_first(message, 6, 0),
        is_sliced=7 in message,
    )


# --- The graph of the objects.


def _read_nodes(key: str, entry: Entry, shard: _Shard) -> list[Node]:
    graph = _decode_message(_read_string(key, entry, shard))
    nodes = [_decode_node(_decode_message(node)) for node in graph.get(1, [])]
    for node in nodes:
        slots = [x for slot in node.slots for x in (slot.variable, slot.buffer)]
        if not all(0 <= i < len(nodes) for i in (*node.children.values(), *slots)):
            raise DamagedError(
                "its graph of objects refers to an object that does not exist"
            )
    return nodes


def _decode_node(message: Message) -> Node:
    children = [_decode_message(child) for child in message.get(1, [])]
    attributes = [_decode_message(attribute) for attribute in message.get(2, [])]
    slots = [_decode_message(slot) for slot in message.get(3, [])]
    is_value = (x for x in attributes if _first(x, 1, b"") == b"VARIABLE_VALUE")
    value = next(is_value, {})
    return Node(
        children={_text(child, 2): _first(child, 1, 0) for child in children},
        key=_text(value, 3),
        name=_text(value, 2),
        slots=[Slot(_first(x, 1, 0), _text(x, 2), _first(x, 3, 0)) for x in slots],
    )


# --- Protobuf.


def _decode_message(data: object) -> Message:
    """Return the fields of a protobuf message, by their numbers."""
    if not isinstance(data, bytes):
        raise DamagedError("a message has a number where it must have bytes")
    fields: Message = {}
    position = 0
    while position < len(data):
        tag, position = _decode_varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _decode_varint(data, position)
        elif kind in (1, 5):
            form = "<Q" if kind == 1 else "<I"
            (value,) = struct.unpack_from(form, data, position)
            position += struct.calcsize(form)
        elif kind == 2:
            length, position = _decode_varint(data, position)
            value = data[position : position + length]
            position += length
        else:
            raise DamagedError(f"a message has a field of the unknown kind {kind}")
        if position > len(data):
            raise DamagedError("a message ends too early")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number (7 bits per byte, lowest first), and where to continue."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise DamagedError("a number goes beyond the end of its bytes")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise DamagedError("a number is longer than 64 bits")


def _first(message: Message, field: int, default: T) -> T:
    """Return the first value of a field, which must be of the type of the default."""
    value = message.get(field, [default])[0]
    if not isinstance(value, type(default)):
        raise DamagedError(f"a message has {value!r} in its field {field}")
    return value


def _text(message: Message, field: int) -> str:
    return _first(message, field, b"").decode()
