"""Read folders that torch.distributed.checkpoint writes, as FSDP runs save them.

``.metadata`` is a pickle of a few plain classes of
``torch.distributed.checkpoint.metadata``. For each name it has the shape, the dtype and
the chunks of a tensor, and the name's path in the dictionary that was saved. It also
says where each chunk is: in which ``.distcp`` file, from which byte on, and how many
bytes. The bytes of a chunk are a complete file of torch. A value that is not a tensor
is one such file, without chunks.

The chunks of a tensor must cover each element once, and each chunk must have as many
bytes in a file as it declares. So the sizes of a folder's files limit how much memory
it can make us allocate.

References:
    torch 2.13.0, ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py`` and
    ``_nested_dict.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rmsprop_jax.checkpoints._readers.pickled import is_torch, read_torch
from rmsprop_jax.checkpoints._readers.pickles import (
    OpaqueValue,
    PickleMachine,
    Record,
    validate_shape,
    validate_size,
)
from rmsprop_jax.checkpoints._readers.source import (
    Budget,
    DamagedError,
    DType,
    NumpyArray,
    Source,
    StoredArray,
    UnsupportedError,
)

# The file that describes a folder.
METADATA = ".metadata"
_MODULE = b"torch.distributed.checkpoint.metadata"

Offsets: TypeAlias = tuple[int, ...]
# The keys of a value, from the outermost dictionary inwards.
Keys: TypeAlias = tuple[object, ...]
# About how many bytes a dictionary takes in memory.
_DICT_SIZE = 232


class _Place(NamedTuple):
    """The place of the bytes of a chunk, or of a value that is not a tensor."""

    source: Source
    offset: int
    size: int

    def read(self, what: str, budget: Budget | None = None) -> object:
        """Read what `torch.save` wrote there."""
        part = Source(self.source.path, (self.offset, self.size), budget)
        if not is_torch(part):
            raise DamagedError(f"the bytes of {what} are not what torch.save writes")
        with self.name_file(what):
            return read_torch(part)

    @contextlib.contextmanager
    def name_file(self, what: str) -> Generator[None]:
        """Add to an error what was read, and from which file."""
        try:
            yield
        except DamagedError as error:
            file = self.source.path.name
            raise DamagedError(f"{what}, in its file {file!r}: {error}") from error


class _Chunk(NamedTuple):
    """A part of a tensor."""

    offsets: Offsets
    sizes: tuple[int, ...]
    place: _Place


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunked:
    """A tensor in chunks, which cover it."""

    name: str
    chunks: Sequence[_Chunk]

    def read(
        self, shape: tuple[int, ...], dtype: DType, rows: slice | None, *, verify: bool
    ) -> NumpyArray:
        """Read the tensor, or some of its first axis."""
        first, last = (0, shape[0] if shape else 0)
        if rows is not None:
            first, last = rows.start, rows.stop
            shape = (last - first, *shape[1:])
        array = np.zeros(shape, dtype)
        for chunk in self.chunks:
            into = [slice(o, o + n) for o, n in zip(*chunk[:2], strict=True)]
            part = None
            if shape:
                begin, end = max(into[0].start, first), min(into[0].stop, last)
                if begin >= end:
                    continue
                if end - begin < chunk.sizes[0]:
                    part = slice(begin - into[0].start, end - into[0].start)
                into[0] = slice(begin - first, end - first)
            what = f"the chunk at {chunk.offsets} of {self.name!r}"
            stored = chunk.place.read(what)
            if (
                not isinstance(stored, StoredArray)
                or stored.shape != chunk.sizes
                or stored.dtype != dtype
            ):
                raise DamagedError(
                    f"{what} must be a tensor of shape {chunk.sizes} and dtype {dtype},"
                    f" but it is {stored!r}"
                )
            with chunk.place.name_file(what):
                array[tuple(into)] = stored.layout.read(
                    stored.shape, dtype, part, verify=verify
                )
        array.flags.writeable = False
        return array

    def identify(self) -> object:
        """Return a key that two arrays share if they have the same elements."""
        return self.name


def is_distributed(source: Source) -> bool:
    """Whether the file is the ``.metadata`` of a folder."""
    # The name identifies a damaged file.
    return _MODULE in source.head or source.path.name == METADATA


def read_distributed(source: Source) -> object:
    """Read a folder, given its ``.metadata``."""
    metadata = PickleMachine(source, source.read_range(0, source.size)).load()
    entries = _get(metadata, "state_dict_metadata", dict)
    paths = _get_paths(metadata)
    places = _find_places(source, _get(metadata, "storage_data", dict))
    files = {place.source for name in places for place in places[name].values()}
    budget = Budget(source.size + sum(file.size for file in files))
    found: dict[Keys, object] = {}
    for name, entry in entries.items():
        path = paths.get(name, (name,))
        if path in found:
            raise DamagedError(f"two values have the path {path}")
        found[path] = _read_entry(source, name, entry, places.get(name, {}), budget)
    return _nest(found, budget)


def _get(record: object, field: str, kind: type) -> Any:
    """Return a field of a record, which must be of a type."""
    value = _find(record, field)
    if not isinstance(value, kind):
        raise DamagedError(f"its .metadata has no {field!r} where it must have one")
    return value


def _find(record: object, field: str) -> object:
    """Return a field of a record, or None."""
    return record.fields.get(field) if isinstance(record, Record) else None


def _get_paths(metadata: object) -> dict[object, Keys]:
    """Return the path of each name, if the dictionary was nested."""
    planned = _find(metadata, "planner_data")
    paths: dict[object, Keys] = {}
    for name, path in planned.items() if isinstance(planned, dict) else ():
        if not isinstance(path, tuple) or not path or len(path) > 64:
            raise DamagedError(f"the path of {name!r} is not a tuple of keys")
        if not all(type(part) in (str, int) for part in path):
            raise DamagedError(f"the path of {name!r} is not of text and numbers")
        paths[name] = path
    return paths


# --- Where the bytes are.


def _find_places(
    source: Source, storage: Mapping[object, object]
) -> dict[str, dict[Offsets | None, _Place]]:
    """Return the places of each name's chunks, by where they begin in the tensor.

    A value that is not a tensor has one place, which begins at None.
    """
    files: dict[str, Source] = {}
    places: dict[str, dict[Offsets | None, _Place]] = {}
    for index, info in storage.items():
        name = _get(index, "fqn", str)
        begin = _find(index, "offset")
        begin = None if begin is None else validate_shape(begin)
        file = _get(info, "relative_path", str)
        offset = validate_size(_get(info, "offset", int))
        size = validate_size(_get(info, "length", int))
        if _find(info, "transform_descriptors"):
            raise UnsupportedError(
                f"the bytes of {name!r} were compressed, or transformed otherwise, "
                "when they were saved"
            )
        if file not in files:
            files[file] = _open_in_folder(source, file)
        if offset + size > files[file].size:
            raise DamagedError(
                f"the file {file!r} ends at byte {files[file].size}, before the {size} "
                f"bytes at {offset} that {name!r} has there"
            )
        found = places.setdefault(name, {})
        if begin in found:
            at = "" if begin is None else f"the chunk at {begin} of "
            raise DamagedError(f"{at}{name!r} is in two places of its files")
        found[begin] = _Place(files[file], offset, size)
    return places


def _open_in_folder(source: Source, file: str) -> Source:
    """Open a file in the folder of the metadata, and nowhere else."""
    folder = source.path.parent
    path = folder / file
    is_name = Path(file).name == file and "\0" not in file
    if not is_name or path.resolve().parent != folder.resolve():
        raise UnsupportedError(f"its file {file!r} must be in the folder itself")
    try:
        return Source(path)
    except FileNotFoundError as error:
        raise DamagedError(f"its file {file!r} is missing") from error


# --- What is there.


def _read_entry(
    source: Source,
    name: object,
    entry: object,
    places: Mapping[Offsets | None, _Place],
    budget: Budget,
) -> object:
    """Return a tensor, or read a value that is not a tensor."""
    if not isinstance(name, str) or not isinstance(entry, Record):
        raise DamagedError(f"what it lists as {name!r} is not a tensor or a value")
    if "chunks" not in entry.fields:
        if [*places] != [None]:
            raise DamagedError(f"the bytes of {name!r} are missing")
        budget.spend(places[None].size)
        return places[None].read(repr(name), budget)
    shape = validate_shape(_find(entry, "size"))
    dtype = _find_dtype(entry)
    if dtype is None:
        return OpaqueValue("torch.Tensor of a rare dtype")
    chunks: list[_Chunk] = []
    for record in _get(entry, "chunks", list):
        offsets = validate_shape(_get(record, "offsets", tuple))
        sizes = validate_shape(_get(record, "sizes", tuple))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise DamagedError(
                f"a chunk of {name!r} has more or fewer axes than the tensor"
            )
        if not math.prod(sizes):
            continue  # from a process that had no part of it
        ends = [start + size for start, size in zip(offsets, sizes, strict=True)]
        if any(end > size for end, size in zip(ends, shape, strict=True)):
            raise DamagedError(
                f"the chunk at {offsets} of {name!r}, of shape {sizes}, is out of "
                f"bounds: the tensor has shape {shape}"
            )
        if offsets not in places:
            raise DamagedError(f"the chunk at {offsets} of {name!r} is missing")
        place = places[offsets]
        size = math.prod(sizes) * dtype.itemsize
        if size > place.size:
            raise DamagedError(
                f"the chunk at {offsets} of {name!r} needs {size} bytes, but it has "
                f"{place.size}"
            )
        budget.spend(size)
        chunks.append(_Chunk(offsets, sizes, place))
    _check_cover(name, shape, chunks)
    return StoredArray(source.path.parent, shape, dtype, _Chunked(name, chunks))


def _find_dtype(entry: Record) -> DType | None:
    """Return the dtype of a tensor, which is the first of its properties."""
    state = _find(_find(entry, "properties"), "state")
    dtype = state[0] if isinstance(state, tuple) and state else None
    return dtype if isinstance(dtype, np.dtype) else None


def _check_cover(name: str, shape: tuple[int, ...], chunks: Sequence[_Chunk]) -> None:
    """Raise unless the chunks have each element of a tensor once.

    The places where chunks begin and end cut the tensor into cells. Processes in a grid
    make as many chunks as cells, so the number of cells is limited too.
    """
    begins = [chunk.offsets for chunk in chunks]
    if len(set(begins)) < len(begins):
        twice = next(begin for begin in begins if begins.count(begin) > 1)
        raise DamagedError(f"the chunk at {twice} of {name!r} is there twice")
    cuts = [
        sorted(
            {0, size}
            | {chunk.offsets[axis] for chunk in chunks}
            | {chunk.offsets[axis] + chunk.sizes[axis] for chunk in chunks}
        )
        for axis, size in enumerate(shape)
    ]
    grid = [max(len(cut) - 1, 0) for cut in cuts]
    if math.prod(grid) > 64 * len(chunks) + 2**12:
        raise UnsupportedError(f"the chunks of {name!r} are not laid out in a grid")
    cell_of = [{place: i for i, place in enumerate(cut)} for cut in cuts]
    is_covered = np.zeros(grid, bool)
    for chunk in chunks:
        cells = tuple(
            slice(of_axis[start], of_axis[start + size])
            for of_axis, start, size in zip(
                cell_of, chunk.offsets, chunk.sizes, strict=True
            )
        )
        if is_covered[cells].any():
            raise DamagedError(
                f"the chunk at {chunk.offsets} of {name!r} overlaps another one"
            )
        is_covered[cells] = True
    if not is_covered.all():
        where = np.argwhere(~is_covered)[0]
        at = tuple(cut[i] for cut, i in zip(cuts, where, strict=True))
        raise DamagedError(f"the chunk at {at} of {name!r} is missing")


# --- The nested dictionary.


def _nest(found: Mapping[Keys, object], budget: Budget) -> object:
    """Return nested dictionaries and lists from values by their paths."""
    root: dict[object, object] = {}
    nodes = {id(root): root}
    for path, value in found.items():
        node = root
        for key in path[:-1]:
            if key not in node:
                budget.spend(_DICT_SIZE)
                fresh: dict[object, object] = {}
                node[key], nodes[id(fresh)] = fresh, fresh
            below = nodes.get(id(node[key]))
            if below is None:
                raise DamagedError(f"the path {path} goes through a value")
            node = below
        if path[-1] in node:
            raise DamagedError(f"the path {path} ends where others continue")
        node[path[-1]] = value
    # In paths, text is a key of a dictionary, and a number is an index of a list. In
    # reverse order, each node is complete before it is put into its parent.
    made: dict[int, object] = {}
    for node in reversed(nodes.values()):
        items = {key: made.get(id(value), value) for key, value in node.items()}
        is_list = bool(items) and set(items) == set(range(len(items)))
        made[id(node)] = [items[i] for i in range(len(items))] if is_list else items
    return made[id(root)]
