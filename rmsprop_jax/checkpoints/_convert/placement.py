"""Put NumPy arrays, in memory or still in a file, onto their devices as JAX arrays.

While a leaf is put onto its devices and freed, the next one is read and converted
(small ones together). Of a parameter, only the rows that this process needs are read.
This is the one place where shardings are applied.
"""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rmsprop_jax._error_text import Path, describe_difference, describe_sharding
from rmsprop_jax.checkpoints._convert.arrays import (
    NumpyArray,
    Value,
    to_numpy_each,
)

# From a leaf's path and shape to its sharding.
ChooseSharding: TypeAlias = Callable[[str, tuple[int, ...]], Sharding]
# A pytree of shardings like the parameters, which has no type, or one for all of them,
# or a function.
Shardings: TypeAlias = Any | ChooseSharding
Box: TypeAlias = tuple[slice, ...]

# Leaves are read together up to this size, as many short steps take longer.
_BATCH_BYTES = 2**23
_ALIGNMENT = 64


class View(NamedTuple):
    """A leaf that is a view of a parameter or of a part of it, its axes in any order.

    Attributes:
        number: Which parameter.
        offset: Where the first element is, in elements.
        shape: The shape of the leaf.
        strides: How far it is to the next element along each axis, in elements. None
            if the elements come one after the other.
    """

    number: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def cut(self, box: Box) -> View:
        """Return a part of the leaf, with its strides."""
        strides = self.strides
        if strides is None:
            axes = range(len(self.shape))
            strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in axes)
        pairs = zip(box, strides, strict=True)
        offset = self.offset + sum(side.start * step for side, step in pairs)
        shape = tuple(side.stop - side.start for side in box)
        return View(self.number, offset, shape, strides)

    def find_rows(self, shape: tuple[int, ...]) -> slice | None:
        """Return which rows of a parameter of this shape a cut needs; None if all."""
        if not shape or 0 in shape or 0 in self.shape:
            return None
        row = math.prod(shape[1:])
        pairs = zip(self.shape, self.strides or (), strict=True)
        ways = [(size - 1) * step for size, step in pairs]
        first = (self.offset + sum(way for way in ways if way < 0)) // row
        last = (self.offset + sum(way for way in ways if way > 0)) // row
        return None if last + 1 - first == shape[0] else slice(first, last + 1)

    def take(self, rows: NumpyArray, first: int) -> NumpyArray:
        """Return a cut from rows of the parameter, of which the first is given."""
        if 0 in self.shape:
            return np.zeros(self.shape, rows.dtype)
        flat = np.ascontiguousarray(rows).reshape(-1)
        start = self.offset - first * math.prod(rows.shape[1:])
        strides = [step * flat.itemsize for step in self.strides or ()]
        return np.lib.stride_tricks.as_strided(flat[start:], self.shape, strides)


def find_views(
    leaves: Sequence[object], arrays: Sequence[NumpyArray]
) -> list[View | None]:
    """Return which part of which array each leaf is; None if it was copied.

    Args:
        leaves: What a function made of the arrays.
        arrays: Contiguous arrays.
    """
    starts = [array.__array_interface__["data"][0] for array in arrays]
    order = sorted(range(len(arrays)), key=lambda n: starts[n])
    in_order = [starts[n] for n in order]
    views: list[View | None] = []
    for leaf in leaves:
        views.append(None)
        if not isinstance(leaf, np.ndarray) or not leaf.size or not arrays:
            continue
        place = leaf.__array_interface__["data"][0]
        number = order[max(bisect.bisect_right(in_order, place) - 1, 0)]
        array, offset = arrays[number], place - starts[number]
        if 0 <= offset < array.nbytes and leaf.dtype == array.dtype:
            strides = tuple(step // leaf.itemsize for step in leaf.strides)
            views[-1] = View(number, offset // leaf.itemsize, leaf.shape, strides)
    return views


# --- Where leaves belong.


class Places(NamedTuple):
    """Where leaves belong.

    Attributes:
        leaves: The sharding of each; None for JAX's default device.
        scalar: The sharding of a scalar that is replicated over their devices.
    """

    leaves: list[Sharding | None]
    scalar: Sharding | None


def resolve_shardings(
    shardings: Shardings,
    paths: Sequence[Path],
    shapes: Sequence[tuple[int, ...]],
) -> Places:
    """Return where each leaf belongs.

    Args:
        shardings: What the user gave.
        paths: Where each leaf is in its tree.
        shapes: The shape of each leaf.

    Raises:
        ValueError: If a sharding does not fit its leaf, or the tree is another one.
        TypeError: If something in it is not a sharding.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if isinstance(shardings, jax.Device | Mesh | PartitionSpec):
        raise TypeError(
            "shardings must be a jax.sharding.Sharding, a pytree of them or a function "
            f"(path, shape) -> sharding, but it was {shardings!r}. Make one with "
            "jax.sharding.NamedSharding(mesh, spec)."
        )
    if isinstance(shardings, Sharding):
        found: list[object] = [shardings] * len(paths)
    elif callable(shardings):
        _check_takes_path_and_shape(shardings)
        pairs = zip(names, shapes, strict=True)
        found = [shardings(name, shape) for name, shape in pairs]
    else:
        leaves = jax.tree.leaves_with_path(shardings, is_leaf=lambda x: x is None)
        by_path = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        keys = [jax.tree_util.keystr(path) for path in paths]
        if difference := describe_difference([*by_path], keys):
            raise ValueError(
                "shardings must be a pytree with the structure of the parameters (as "
                f"to_params makes them, if it is given), but {difference}. Give a "
                "sharding for each leaf, or a function (path, shape) -> sharding."
            )
        found = [by_path[key] for key in keys]
    leaves = [
        _check_fits(name, shape, sharding)
        for name, shape, sharding in zip(names, shapes, found, strict=True)
    ]
    return Places([*leaves], _replicate_on_same_mesh(leaves))


def _check_takes_path_and_shape(function: Callable[..., object]) -> None:
    try:
        inspect.signature(function).bind("", ())
    except TypeError as error:
        raise TypeError(
            "shardings must be a function of a leaf's path and of its shape, (path, "
            f"shape) -> sharding, but {function!r} can't be called with two arguments: "
            f"{error}."
        ) from error
    except ValueError:
        pass  # not every function has a signature


def _check_fits(name: str, shape: tuple[int, ...], sharding: object) -> Sharding:
    if not isinstance(sharding, Sharding):
        raise TypeError(
            f"shardings must have a jax.sharding.Sharding for leaf {name!r}, but it "
            f"was {sharding!r}."
        )
    try:
        if isinstance(sharding, NamedSharding) and len(sharding.spec) > len(shape):
            raise ValueError(f"it has {len(sharding.spec)} axes")
        sharding.shard_shape(shape)
        sharding.addressable_devices_indices_map(shape)
    except ValueError as error:
        raise ValueError(
            f"shardings must fit the leaves, but that of leaf {name!r}, "
            f"{describe_sharding(sharding)}, does not fit its shape {shape}: {error}"
        ) from error
    return sharding


def _replicate_on_same_mesh(leaves: Sequence[Sharding]) -> Sharding | None:
    for sharding in leaves:
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            kind = sharding.memory_kind
            return NamedSharding(sharding.mesh, PartitionSpec(), memory_kind=kind)
    return next(iter(leaves), None)


# --- Reading and putting.


class Part(NamedTuple):
    """What this process needs of a leaf.

    Attributes:
        leaf: The number of the leaf.
        shape: The shape of the whole leaf.
        box: From where to where, along each axis.
        sharding: Where it belongs; None for JAX's default device.
    """

    leaf: int
    shape: tuple[int, ...]
    box: Box
    sharding: Sharding | None

    @property
    def is_whole(self) -> bool:
        """Whether the box is the whole leaf."""
        return tuple(part.stop - part.start for part in self.box) == self.shape


class Stored(NamedTuple):
    """The arrays that leaves are made of.

    Attributes:
        values: The parameters, in memory or in a file.
        copied: The leaves that are not views of a parameter, by their numbers.
    """

    values: Sequence[Value]
    copied: Mapping[int, npt.ArrayLike]


# Maps the arrays read for some parts, of each source, to those to put; None drops one.
Finish: TypeAlias = Callable[
    [Sequence[Part], Sequence[Sequence[NumpyArray]]], list[list[NumpyArray | None]]
]


def keep_arrays(
    _: Sequence[Part], arrays: Sequence[Sequence[NumpyArray]]
) -> list[list[NumpyArray | None]]:
    """Put what was read."""
    return [[*own] for own in arrays]


def place_leaves(
    leaves: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    shardings: Sequence[Sharding | None],
    views: Sequence[View | None],
    sources: Sequence[Stored],
    finish: Finish = keep_arrays,
    *,
    exact: bool = False,
) -> list[list[jax.Array | None]]:
    """Read leaves and put them where they belong.

    Args:
        leaves: The numbers of the leaves; the others become None.
        shapes: The shape of every leaf.
        shardings: The sharding of every leaf; None for JAX's default device.
        views: What every leaf is of the parameters; None if it is among the copied.
        sources: What the leaves are made of; several are read together, so that
            ``finish`` has all of them.
        finish: Maps what was read to what is put.
        exact: Whether the dtype is that of the value, or at least float32.

    Returns:
        The leaves of each source.
    """
    placed: list[list[jax.Array | None]] = [[None] * len(views) for _ in sources]

    def read(batch: Sequence[Part]) -> list[list[NumpyArray | None]]:
        return finish(
            batch,
            [_read_parts(batch, views, source, exact=exact) for source in sources],
        )

    def put(batch: Sequence[Part], arrays: list[list[NumpyArray | None]]) -> None:
        for of_source, own in zip(placed, arrays, strict=True):
            for i, part in enumerate(batch):
                array = own[i]
                if array is not None:
                    # Until it is ready, JAX keeps the memory of the NumPy array.
                    of_source[part.leaf] = _put(array, part).block_until_ready()
                own[i] = array = None  # which frees it

    batches = _plan_batches(leaves, shapes, shardings)
    if len(batches) == 1:
        put(batches[0], read(batches[0]))
    elif batches:
        # Another thread reads up to two batches ahead. It does not call JAX, because
        # contexts such as jax.default_device only hold in the caller's thread.
        with ThreadPoolExecutor(1) as thread:
            pending = [thread.submit(read, batch) for batch in batches[:2]]
            for batch, after in zip(batches, [*batches[2:], None, None], strict=True):
                arrays = pending.pop(0).result()
                if after is not None:
                    pending.append(thread.submit(read, after))
                put(batch, arrays)
                del arrays
    return placed


def _plan_batches(
    leaves: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    shardings: Sequence[Sharding | None],
) -> list[list[Part]]:
    """Return what this process needs of some leaves, in batches to read together.

    Args:
        leaves: The numbers of the leaves.
        shapes: The shape of every leaf.
        shardings: The sharding of every leaf.
    """
    batches: list[list[Part]] = []
    size = _BATCH_BYTES
    for i in leaves:
        part = Part(i, shapes[i], _find_box(shapes[i], shardings[i]), shardings[i])
        own = 4 * math.prod(side.stop - side.start for side in part.box)
        size += own
        if size > _BATCH_BYTES:
            batches.append([])
            size = own
        batches[-1].append(part)
    return batches


def _find_box(shape: tuple[int, ...], sharding: Sharding | None) -> Box:
    """Return the smallest box around what this process has of a leaf."""
    if sharding is None:
        return tuple(slice(0, size) for size in shape)
    indices = sharding.addressable_devices_indices_map(shape).values()
    boxes = [_to_box(index, shape) for index in indices if index is not None]
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def _to_box(index: Sequence[slice], shape: tuple[int, ...]) -> Box:
    triples = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    return tuple(slice(start, stop) for start, stop, _ in triples)


def _read_parts(
    parts: Sequence[Part],
    views: Sequence[View | None],
    source: Stored,
    *,
    exact: bool,
) -> list[NumpyArray]:
    """Read what this process needs of some leaves.

    Args:
        parts: What is needed of each.
        views: What each leaf is of the parameters.
        source: What they are made of.
        exact: Whether the dtype is that of the value, or at least float32.
    """
    values, copied = source
    cuts = [
        (view.cut(part.box), part)
        for part in parts
        if (view := views[part.leaf]) is not None
    ]
    taken = [values[cut.number] for cut, _ in cuts]
    rows = [
        cut.find_rows(tuple(np.shape(value)))
        for (cut, _), value in zip(cuts, taken, strict=True)
    ]
    # Verifying a checksum reads the whole array, which one of several processes must
    # not do.
    verify = [part.is_whole for _, part in cuts]
    read = to_numpy_each(taken, rows, verify=verify, exact=exact)
    arrays = {
        part.leaf: cut.take(array, own.start if own else 0)
        for (cut, part), array, own in zip(cuts, read, rows, strict=True)
    }
    return [
        arrays[part.leaf]
        if part.leaf in arrays
        else np.asarray(copied[part.leaf])[part.box]
        for part in parts
    ]


def put_scalar(number: int, sharding: Sharding | None) -> jax.Array:
    """Put an int32 scalar where it belongs, with memory of its own."""
    return _put(np.asarray(number, np.int32), Part(0, (), (), sharding))


def _put(array: NumpyArray, part: Part) -> jax.Array:
    if part.sharding is None:
        return jax.device_put(_unalign(array))
    shards: list[jax.Array] = []
    indices = part.sharding.addressable_devices_indices_map(part.shape)
    for device, index in indices.items():
        assert index is not None
        inner = tuple(
            slice(own.start - outer.start, own.stop - outer.start)
            for own, outer in zip(_to_box(index, part.shape), part.box, strict=True)
        )
        place = jax.sharding.SingleDeviceSharding(
            device, memory_kind=part.sharding.memory_kind
        )
        shards.append(jax.device_put(_unalign(array[inner]), place))
    return jax.make_array_from_single_device_arrays(part.shape, part.sharding, shards)


def _unalign(array: NumpyArray) -> NumpyArray:
    """Return the array where JAX on the CPU must copy it.

    At a multiple of 64 bytes, JAX uses a contiguous array's memory as it is. This may
    be the memory of another framework, and cannot be donated.
    """
    address: int = array.__array_interface__["data"][0]
    if address % _ALIGNMENT or not array.flags.c_contiguous:
        return array
    memory: NumpyArray = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = 16 - memory.__array_interface__["data"][0] % 16
    start += 16 * ((memory.__array_interface__["data"][0] + start) % _ALIGNMENT == 0)
    made = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made
