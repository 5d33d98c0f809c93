"""Read Keras's files with h5py: an HDF5 file, or a zip file that contains one.

A ``.keras`` is a zip file with ``config.json`` and ``model.weights.h5``. A
``.weights.h5`` and an ``.h5`` are plain HDF5 files.

HDF5 can do much that no checkpoint needs: a file can have links into other files,
datasets whose bytes are elsewhere, and datasets that declare a wrong size. So the whole
file is walked once, each object is checked, and only the result of the walk is used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.checkpoints._readers.h5_attributes import AttributeReader
from rmsprop_jax.checkpoints._readers.source import (
    DamagedError,
    DType,
    NumpyArray,
    Source,
    StoredArray,
    UnsupportedError,
)

# The configuration of a model, a layer or an optimizer, from JSON.
Config: TypeAlias = dict[str, Any]
# A group or a dataset of h5py, which has no types.
H5Object: TypeAlias = Any

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WEIGHTS, _CONFIG, _METADATA = "model.weights.h5", "config.json", "metadata.json"
# The attributes that Keras writes. Long lists are split, with numbers at the end.
_TEXTS = ("backend", "keras_version", "model_config", "name", "training_config")
_LISTS = ("layer_names", "weight_names")
# The filters that HDF5 itself can decode. The last one adds a checksum.
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_CHECKSUM_SIZE = 4
_MAX_DEPTH = 100
# How many bytes are searched for heaps at once, and the size of a heap's header.
_PIECE = 2**22
_HEAP_HEADER = 16


class Group(NamedTuple):
    """An HDF5 group.

    Attributes:
        path: Where it is in the file.
        groups: The groups in it, by name.
        arrays: The datasets in it, by name.
        texts: Its attributes of one string.
        lists: Its attributes of several strings.
    """

    path: str
    groups: Mapping[str, Group]
    arrays: Mapping[str, StoredArray]
    texts: Mapping[str, str]
    lists: Mapping[str, list[str]]

    def array(self, path: str) -> StoredArray:
        """Return the dataset at a path below the group.

        Raises:
            DamagedError: If there is no such dataset.
        """
        group: Group | None = self
        *parents, name = path.split("/")
        for parent in parents:
            group = None if group is None else group.groups.get(parent)
        if group is None or name not in group.arrays:
            raise DamagedError(f"{self.path}/{path} is missing")
        return group.arrays[name]

    def numbered_arrays(self) -> list[StoredArray]:
        """Return the variables of an object: ``vars/0``, ``vars/1`` and so on.

        Raises:
            DamagedError: If one is missing.
            UnsupportedError: If they have other names.
        """
        names = self.groups["vars"].arrays if "vars" in self.groups else {}
        if others := [name for name in names if not name.isdecimal()]:
            raise UnsupportedError(
                f"{self.path}/vars names its variables, {others[:4]}, instead of "
                "numbering them"
            )
        return [self.array(f"vars/{i}") for i in range(len(names))]


class KerasFile(NamedTuple):
    """A file of Keras.

    Attributes:
        root: Its HDF5 part.
        config: What ``config.json`` holds; empty if there is none.
        metadata: What ``metadata.json`` holds; empty if there is none.
    """

    root: Group
    config: Config
    metadata: Config


def get_config(config: Config, key: str) -> Config:
    """Return a part of a configuration; empty if there is none."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def is_keras(source: Source) -> bool:
    """Whether the file is one of Keras, or any HDF5 file."""
    names = source.members.keys()
    return source.head.startswith(_SIGNATURE) or bool({_WEIGHTS, _CONFIG} & names)


def read_keras(source: Source) -> KerasFile:
    """Read a file of Keras.

    Raises:
        ImportError: If h5py is missing.
    """
    if not source.members:
        return KerasFile(_read_h5(source, source), {}, {})
    part = source.open_member(_WEIGHTS)
    config, metadata = (_read_json(source, name) for name in (_CONFIG, _METADATA))
    return KerasFile(_read_h5(source, part), config, metadata)


def _read_json(source: Source, name: str) -> Config:
    if name not in source.members:
        return {}
    text = source.read_member(name)
    # Python takes about 72 bytes for a value that may be three in the text: "[],".
    source.budget.spend(72 * sum(map(text.count, (b",", b"[", b"{"))))
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its member {name!r} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"its member {name!r} is not a JSON object")
    return content


def _read_h5(source: Source, part: Source) -> Group:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "Keras's files are read with h5py, which is missing: pip install h5py"
        ) from error
    _check_layout(part)
    try:
        # The file stays open, because its arrays are read later.
        file = h5py.File(part.open() if part is not source else part.path, "r")
        with part.open() as plain:
            attributes = AttributeReader(plain, part.size, source.budget)
            walk = _Walk(source, part, attributes)
            root = walk.walk_group(file, "", depth=0)
        source.budget.spend(walk.size)
        return root
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DamagedError | UnsupportedError | RecursionError):
            raise
        raise DamagedError(f"{error}") from error


def _check_layout(part: Source) -> None:
    """Raise if the layout is not that of Keras's files, or a heap is too large.

    For a heap of names, libhdf5 allocates as much memory as the heap declares. Only the
    size is checked, because a deleted heap may still be there and point beyond the end
    of the file. The file is read in pieces, because mapping a large one would fill the
    memory, and take longer.
    """
    # The sizes of addresses and of lengths, at their place in each format version.
    head = part.head
    sizes = head[13:15] if head[8:9] in (b"\0", b"\1") else head[9:11]
    if head[:8] != _SIGNATURE or sizes != b"\x08\x08":
        raise UnsupportedError("it is not an HDF5 file whose addresses have 8 bytes")
    # The end of the last piece, in which a heap may begin, is searched with the next.
    left = _HEAP_HEADER - 1
    data = bytearray(left + min(_PIECE, part.size))
    with part.open() as file:
        while count := file.readinto(memoryview(data)[left:]):
            end = left + count
            start = data.find(b"HEAP\0", 0, end)
            while 0 <= start <= end - _HEAP_HEADER:
                size = data[start + 8 : start + _HEAP_HEADER]
                if int.from_bytes(size, "little") > part.size:
                    raise DamagedError("a heap of names is larger than the file")
                start = data.find(b"HEAP\0", start + 5, end)
            data[:left] = data[end - left : end]


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """A dataset whose place and size were checked."""

    part: Source
    dataset: H5Object
    path: str
    is_deflated: bool

    def read(
        self, shape: tuple[int, ...], dtype: DType, rows: slice | None, *, verify: bool
    ) -> NumpyArray:
        # Other dtypes are refused only now, because nobody may need them.
        if dtype.kind not in "biufc" and dtype != jnp.bfloat16:
            raise UnsupportedError(f"{self.path} does not hold numbers, but {dtype}")
        try:
            if self.dataset.chunks:
                self._check_chunks()
            value: NumpyArray = np.asarray(self.dataset[() if rows is None else rows])
        except (OSError, RuntimeError, ValueError, zlib.error) as error:
            if isinstance(error, DamagedError | UnsupportedError):
                raise
            raise DamagedError(f"{self.path}: {error}") from error
        return value.view(dtype) if dtype == jnp.bfloat16 else value

    def _check_chunks(self) -> None:
        """Raise if HDF5 would take more memory for a chunk than its numbers need.

        A chunk declares how many bytes it takes in the file, and compressed data says
        itself where it ends. HDF5 allocates whatever they ask for.
        """
        limit = math.prod(self.dataset.chunks) * self.dataset.dtype.itemsize
        limit += _CHECKSUM_SIZE
        chunks: list[H5Object] = []
        self.dataset.id.chunk_iter(chunks.append)
        for chunk in chunks:
            stored = self.part.read_range(chunk.byte_offset, chunk.size)
            size = len(stored)
            # A non-zero mask names filters that were not applied to this chunk.
            if self.is_deflated and not chunk.filter_mask:
                decoder = zlib.decompressobj()
                size = len(decoder.decompress(stored, limit + 1))
            if size > limit:
                raise UnsupportedError(
                    f"a chunk of {self.path} would take more bytes than it declares, "
                    "as in a file that was made to fill the memory"
                )

    def identify(self) -> object:
        return self.path


class _Walk:
    """Visits each object of an HDF5 file once.

    Attributes:
        size: The total bytes of the datasets found so far.
    """

    def __init__(
        self, source: Source, part: Source, attributes: AttributeReader
    ) -> None:
        self.size = 0
        self._source, self._part, self._attributes = source, part, attributes
        self._seen: set[object] = set()

    def walk_group(self, group: H5Object, path: str, depth: int) -> Group:
        """Return a group, with all that is below it."""
        import h5py

        if depth > _MAX_DEPTH:
            raise UnsupportedError(f"it has groups more than {_MAX_DEPTH} levels deep")
        groups: dict[str, Group] = {}
        arrays: dict[str, StoredArray] = {}
        for name in group:
            below = f"{path}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UnsupportedError(
                    f"{below} is a link, which may lead into another file"
                )
            child = group[name]
            self._check_new(child, below)
            if isinstance(child, h5py.Group):
                groups[name] = self.walk_group(child, below, depth + 1)
            elif isinstance(child, h5py.Dataset):
                arrays[name] = self._check_dataset(child, below)
        return Group(path, groups, arrays, *self._read_attributes(group, path))

    def _check_new(self, child: H5Object, path: str) -> None:
        address = _find_address(child)
        if address in self._seen:
            raise UnsupportedError(f"{path} is in the file twice")
        self._seen.add(address)

    def _check_dataset(self, dataset: H5Object, path: str) -> StoredArray:
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if dataset.external or dataset.is_virtual:
            raise UnsupportedError(f"the bytes of {path} are in another file")
        known = {_DEFLATE, _SHUFFLE, _FLETCHER32}
        if not known.issuperset(filters) or len(set(filters)) < len(filters):
            raise UnsupportedError(f"{path} is compressed with an unsupported filter")
        dtype: DType = dataset.dtype
        # HDF5 has no bfloat16, so Keras writes its two bytes.
        is_bfloat16 = dtype == np.dtype("V2")
        if is_bfloat16:
            dtype = jnp.dtype(jnp.bfloat16)
        size = math.prod(dataset.shape) * dtype.itemsize
        self.size += size + math.prod(dataset.chunks or (0,)) * dtype.itemsize
        if not filters and dataset.id.get_storage_size() < size:
            raise DamagedError(f"{path} has fewer bytes than it declares")
        layout = _Dataset(self._part, dataset, path, _DEFLATE in filters)
        return StoredArray(self._source.path, dataset.shape, dtype, layout)

    def _read_attributes(
        self, group: H5Object, path: str
    ) -> tuple[dict[str, str], dict[str, list[str]]]:
        texts: dict[str, str] = {}
        lists: dict[str, list[str]] = {}
        address = _find_address(group)
        found = self._attributes.read_texts(address, (*_TEXTS, *_LISTS))
        for name, values in sorted(found.items()):
            try:
                strings = [value.decode() for value in values]
            except UnicodeDecodeError as error:
                raise UnsupportedError(
                    f"the attribute {name!r} of {path or '/'} is not text in UTF-8"
                ) from error
            kind = name.rstrip("0123456789")
            if kind in _LISTS:
                lists.setdefault(kind, []).extend(strings)
            elif name in _TEXTS and len(strings) == 1:
                texts[name] = strings[0]
        return texts, lists


def _find_address(child: H5Object) -> int:
    import h5py

    h5: H5Object = h5py
    return h5.h5o.get_info(child.id).addr
