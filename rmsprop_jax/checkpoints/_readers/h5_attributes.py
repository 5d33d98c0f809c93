"""Read text attributes of an HDF5 file without libhdf5.

A string of variable length lies in a heap, and its attribute says where and how long it
is. libhdf5 does not check this: a wrong attribute makes it read beyond its memory,
allocate gigabytes or never end. So the few attributes that Keras writes are read here,
following the HDF5 File Format Specification 3.0: object headers (IV.A.1), their
messages for datatypes, dataspaces and attributes (IV.A.2), and global heaps (III.E).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Generator, Iterable
from typing import BinaryIO, NamedTuple

from rmsprop_jax.checkpoints._readers.source import (
    Budget,
    DamagedError,
    UnsupportedError,
)

# The messages of an object header.
_ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 0x0C, 0x10, 0x15
_IS_SHARED = 2
# The classes of a datatype.
_FIXED_STRING, _VARIABLE = 3, 9
_UNDEFINED = b"\xff" * 8


class _Message(NamedTuple):
    kind: int
    flags: int
    body: bytes


class AttributeReader:
    """Reads attributes of an HDF5 file.

    Args:
        file: The file. Only the parts that are needed are read.
        size: The number of its bytes.
        budget: How many bytes reading may take.
    """

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self._file = file
        self._size = size
        self._budget = budget
        # The place and the size of each object in a heap, by the heap's address.
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def read_texts(self, address: int, names: Iterable[str]) -> dict[str, list[bytes]]:
        """Return the strings of some attributes of an object.

        Args:
            address: Where the object's header is.
            names: The attributes, whose names may also end in a number.

        Raises:
            DamagedError: If the bytes contradict each other.
            UnsupportedError: If an attribute is not text.
        """
        wanted = {name.encode() for name in names}
        texts: dict[str, list[bytes]] = {}
        for message in self._iterate_messages(address):
            if message.kind == _ATTRIBUTE_INFO and not _has_no_heap(message.body):
                raise UnsupportedError("it keeps attributes outside their object")
            if message.kind != _ATTRIBUTE:
                continue
            if message.flags & _IS_SHARED:
                raise UnsupportedError("it shares attributes between objects")
            name, datatype, dataspace, values = _split_attribute(message.body)
            if name.rstrip(b"0123456789") in wanted:
                parts = self._split_values(name, datatype, dataspace, values)
                texts[name.decode()] = list(parts)
        return texts

    def _take(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise DamagedError(f"it ends before the {size} bytes at {offset}")
        self._file.seek(offset)
        return self._file.read(size)

    def _iterate_messages(self, address: int) -> Generator[_Message]:
        is_new = self._take(address, 4) == b"OHDR"
        extra = 0
        if is_new:
            flags = self._take(address, 6)[5]
            start = address + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            size = int.from_bytes(self._take(start, width), "little")
            blocks = [(start + width, size)]
            extra = 2 * bool(flags & 4)
        else:
            version, _, _, _, size = struct.unpack("<BBHII", self._take(address, 12))
            if version != 1:
                raise DamagedError(f"there is no object at {address}")
            blocks = [(address + 16, size)]
        header = "<BHB" if is_new else "<HHB3x"
        for start, size in blocks:  # the loop appends to it
            self._budget.spend(size)
            block = self._take(start, size)
            position = 0
            while position + struct.calcsize(header) + extra <= size:
                kind, length, flags = struct.unpack_from(header, block, position)
                position += struct.calcsize(header) + extra
                body = block[position : position + length]
                position += length
                if len(body) < length:
                    raise DamagedError(
                        f"a message of the object at {address} is cut off"
                    )
                if kind == _CONTINUATION and not flags & _IS_SHARED:
                    place, length = struct.unpack("<QQ", _head(body, 16))
                    # The new kind has a signature and a checksum around it.
                    blocks.append(
                        (place + 4, max(length - 8, 0)) if is_new else (place, length)
                    )
                yield _Message(kind, flags, body)

    def _split_values(
        self, name: bytes, datatype: bytes, dataspace: bytes, values: bytes
    ) -> Generator[bytes]:
        if not (count := _count_elements(dataspace)):
            return  # without a check, because Keras writes an empty list as numbers
        first, subkind, _, size = struct.unpack("<BBHI", _head(datatype, 8))
        kind = first & 15
        if kind != _FIXED_STRING and (kind, subkind & 15) != (_VARIABLE, 1):
            raise UnsupportedError(f"the attribute {name.decode()!r} is not text")
        if kind == _VARIABLE:
            size = 16  # the length, and where it is
        _head(values, count * size)
        for start in range(0, count * size, size or 1):
            element = values[start : start + size]
            if kind == _FIXED_STRING:
                yield element.rstrip(b"\0")
                continue
            length, address, index = struct.unpack("<IQI", element)
            yield self._read_object(address, index, length) if length else b""

    def _read_object(self, address: int, index: int, length: int) -> bytes:
        if address not in self._heaps:
            self._heaps[address] = self._read_heap(address)
        offset, size = self._heaps[address].get(index, (0, 0))
        if length > size:
            raise DamagedError(f"the heap at {address} has no string of {length} bytes")
        self._budget.spend(length)
        return self._take(offset, length).partition(b"\0")[0]

    def _read_heap(self, address: int) -> dict[int, tuple[int, int]]:
        signature, size = struct.unpack("<8sQ", self._take(address, 16))
        if signature[:5] != b"GCOL\1" or address + size > self._size:
            raise DamagedError(f"there is no heap of strings at {address}")
        self._budget.spend(size)
        objects: dict[int, tuple[int, int]] = {}
        position, end = address + 16, address + size
        while position + 16 <= end:
            index, _, length = struct.unpack("<HHxxxxQ", self._take(position, 16))
            if not index:  # free to the end
                break
            objects[index] = (position + 16, length)
            position += 16 + -(-length // 8) * 8
            if position > end:
                raise DamagedError(f"a string does not end in its heap at {address}")
        return objects


def _head(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise DamagedError("an attribute has fewer bytes than it declares")
    return content[:size]


def _has_no_heap(body: bytes) -> bool:
    """Whether there are no attributes outside the header."""
    start = 2 + 2 * (_head(body, 2)[1] & 1)
    return body[start : start + 8] == _UNDEFINED


def _split_attribute(body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return the name, the datatype, the dataspace and the values."""
    version, flags, *sizes = struct.unpack("<BBHHH", _head(body, 8))
    if version not in (1, 2, 3):
        raise DamagedError(f"an attribute has the unknown version {version}")
    if version > 1 and flags & 3:
        raise UnsupportedError("the datatype of an attribute is stored elsewhere")
    offset, unit = 8 + (version == 3), 8 if version == 1 else 1
    parts: list[bytes] = []
    for size in sizes:
        parts.append(_head(body, offset + size)[offset:])
        offset += -(-size // unit) * unit
    name, datatype, dataspace = parts
    return name.partition(b"\0")[0], datatype, dataspace, body[offset:]


def _count_elements(dataspace: bytes) -> int:
    version, rank, _, kind = _head(dataspace, 4)
    if version == 2 and kind == 2:
        return 0
    offset = 4 if version == 2 else 8
    axes = _head(dataspace, offset + 8 * rank)[offset : offset + 8 * rank]
    return math.prod(struct.unpack(f"<{rank}Q", axes))
