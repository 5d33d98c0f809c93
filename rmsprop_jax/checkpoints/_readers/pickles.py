"""Interpret pickles without unpickling them.

A pickle is a program for a small stack machine. Python's own machine imports and calls
whatever the program names. The machine here calls only its own methods in
`KNOWN_NAMES`, so this table is all that a file can ask for. Every other name becomes an
`OpaqueValue`, which says what it was and does nothing.

The rest of a program can't do harm either: the machine does not recurse, sizes are
Python integers, keys are scalars or flat tuples of them, no attribute begins with two
underscores, and all that is created counts against a budget.
"""

from __future__ import annotations

import codecs
import functools
import math
import mmap
import struct
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from rmsprop_jax.checkpoints._readers.source import (
    DamagedError,
    DType,
    NumpyArray,
    Source,
    Storage,
    StoredArray,
    Strided,
    UnsupportedError,
)

# The methods of `PickleMachine` that a file can call, by their names in files. Modules
# have the names of Python 3 and NumPy 2.
KNOWN_NAMES = {
    "_codecs.encode": "make_bytes",
    "argparse.Namespace": "make_namespace",
    "builtins.bytearray": "make_bytes",
    "builtins.bytes": "make_bytes",
    "builtins.complex": "make_complex",
    "builtins.dict": "make_dict",
    "builtins.frozenset": "make_set",
    "builtins.list": "make_list",
    "builtins.set": "make_set",
    "builtins.tuple": "make_tuple",
    "collections.Counter": "make_dict",
    "collections.OrderedDict": "make_dict",
    "collections.defaultdict": "make_dict",
    "collections.deque": "make_list",
    "copyreg.__newobj__": "make_instance",
    "copyreg._reconstructor": "make_instance",
    "numpy._core.multiarray._reconstruct": "make_unbuilt_array",
    "numpy._core.multiarray.scalar": "make_numpy_scalar",
    "numpy._core.numeric._frombuffer": "make_array",
    "numpy.dtype": "make_numpy_dtype",
    "torch.Size": "make_tuple",
    "torch._tensor._rebuild_from_type_v2": "make_subclass",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "take_first",
    "torch._utils._rebuild_device_tensor_from_numpy": "take_first",
    "torch._utils._rebuild_parameter": "take_first",
    "torch._utils._rebuild_parameter_with_state": "take_first",
    "torch._utils._rebuild_tensor": "make_tensor",
    "torch._utils._rebuild_tensor_v2": "make_tensor",
    "torch._utils._rebuild_tensor_v3": "make_tensor_of_dtype",
    "torch.device": "make_device",
    "types.SimpleNamespace": "make_namespace",
    # The classes with which torch.distributed.checkpoint describes its files. The last
    # one is TensorProperties in older versions.
    **dict.fromkeys(
        (
            "torch.distributed.checkpoint.filesystem._StorageInfo",
            "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
            "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
            "torch.distributed.checkpoint.metadata.Metadata",
            "torch.distributed.checkpoint.metadata.MetadataIndex",
            "torch.distributed.checkpoint.metadata.TensorProperties",
            "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
            "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
        ),
        "make_record",
    ),
}
# The names of modules in Python 2 and in NumPy 1.
RENAMED_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
# By NumPy's codes and names. An array of any other dtype, such as one of objects, is
# opaque.
_CODES = ("?", *("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), "f2", "f4", "f8")
_ML_DTYPES = [jnp.dtype(x) for x in ("bfloat16", "float8_e4m3fn", "float8_e5m2")]
NUMPY_DTYPES: dict[str, DType] = {
    **{np.dtype(x).str[1:]: np.dtype(x) for x in (*_CODES, "c8", "c16")},
    **{f"ml_dtypes.{dtype.name}": dtype for dtype in _ML_DTYPES},
}
TORCH_DTYPES = {f"torch.{dtype.name}": dtype for dtype in NUMPY_DTYPES.values()}
TORCH_STORAGES = {
    "BFloat16Storage": TORCH_DTYPES["torch.bfloat16"],
    "BoolStorage": TORCH_DTYPES["torch.bool"],
    "ByteStorage": TORCH_DTYPES["torch.uint8"],
    "CharStorage": TORCH_DTYPES["torch.int8"],
    "ComplexDoubleStorage": TORCH_DTYPES["torch.complex128"],
    "ComplexFloatStorage": TORCH_DTYPES["torch.complex64"],
    "DoubleStorage": TORCH_DTYPES["torch.float64"],
    "FloatStorage": TORCH_DTYPES["torch.float32"],
    "HalfStorage": TORCH_DTYPES["torch.float16"],
    "IntStorage": TORCH_DTYPES["torch.int32"],
    "LongStorage": TORCH_DTYPES["torch.int64"],
    "ShortStorage": TORCH_DTYPES["torch.int16"],
    "UntypedStorage": TORCH_DTYPES["torch.uint8"],
}
# The bytes of an element.
QUANTIZED_STORAGES = {
    "QInt32Storage": 4,
    "QInt8Storage": 1,
    "QUInt2x4Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt8Storage": 1,
}

# About how many bytes a Python object takes in memory.
_OBJECT_SIZE = 72
# Fewer bytes than this are read immediately, which is simpler and not slower.
_LAZY_SIZE = 2**16

Arguments: TypeAlias = tuple[object, ...]


class OpaqueValue:
    """A value of a class that this reader does not know. Using it raises."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, which was not read>"

    def _refuse(self, *args: object, **kwargs: object) -> object:
        raise UnsupportedError(
            f"A value ({self.name}) was not read, because only tensors, numbers, "
            "text, lists and dictionaries are. Nothing in it was executed. If you "
            "trust the file, load it with the program that wrote it, and give the "
            "dictionary."
        )

    __array__ = __bool__ = __call__ = __contains__ = __float__ = __getitem__ = _refuse
    __index__ = __int__ = __iter__ = __len__ = _refuse


class _Name(OpaqueValue):
    """A class or a function that a pickle names."""


class _UnbuiltArray(OpaqueValue):
    """A NumPy array whose content comes later in the pickle."""


class Namespace(SimpleNamespace):
    """An ``argparse.Namespace`` or a ``types.SimpleNamespace``."""


class StoredBytes(OpaqueValue):
    """Many bytes of a pickle, such as a NumPy array's, which are still in the file.

    Attributes:
        storage: Reads them.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__("bytes")
        self.storage = storage


class Record(OpaqueValue):
    """A plain class of torch.distributed.checkpoint, which may be a key.

    Attributes:
        fields: Its fields by name. If a class pickles itself as a tuple, the tuple is
            its field ``state``.
    """

    def __init__(self) -> None:
        super().__init__("value of torch.distributed.checkpoint")
        self.fields: dict[object, object] = {}


class StorageView(OpaqueValue):
    """The bytes of torch tensors, which are outside the pickle.

    Attributes:
        storage: The bytes. The pickle does not say where they are.
        dtype: The dtype of the elements, unless a tensor has its own.
        start: Where the elements begin.
    """

    def __init__(self, storage: Storage, dtype: DType, start: int) -> None:
        super().__init__("torch storage")
        self.storage = storage
        self.dtype = dtype
        self.start = start


class PickleMachine:
    """Interprets a pickle that begins at a position of some bytes.

    Attributes:
        position: Where to continue reading; after `load`, where the pickle ended.
        storages: The bytes of tensors outside the pickle, by their keys.
    """

    def __init__(
        self,
        source: Source,
        data: bytes | mmap.mmap,
        position: int = 0,
        storages: dict[str, Storage] | None = None,
    ) -> None:
        self.source = source
        self.position = position
        self.storages = storages
        self.data = data
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.last_index: dict[int, int] = {}  # in the memo, by the id of the value
        self.is_stopped = False
        self.unspent = 0

    def load(self) -> object:
        """Return what was pickled.

        Raises:
            DamagedError: If the bytes are not a pickle.
            UnsupportedError: If it takes too much memory, or holds what data never has.
        """
        try:
            while not self.is_stopped:
                opcode = self.read(1)
                handler = OPCODES.get(opcode)
                if handler is None:
                    raise DamagedError(f"a pickle has no opcode {opcode!r}")
                handler(self)
            return self.stack.pop()
        except (DamagedError, UnsupportedError):
            raise
        except (IndexError, KeyError) as error:
            raise DamagedError("a pickle uses what it did not put there") from error
        except (struct.error, ValueError) as error:
            raise DamagedError(f"a pickle has a bad value ({error})") from error

    def spend(self, size: int = _OBJECT_SIZE) -> None:
        self.unspent += size
        if self.unspent > 2**20:
            self.source.budget.spend(self.unspent)
            self.unspent = 0

    # --- Reading.

    def read(self, size: int) -> bytes:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise DamagedError("a pickle ends too early")
        content = self.data[self.position : end]
        self.position = end
        return content

    def read_line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise DamagedError("a pickle ends too early")
        line = self.data[self.position : end].decode("ascii")
        self.position = end + 1
        return line

    def read_number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.read(struct.calcsize(form)))
        return number

    def read_counted(self, form: str) -> bytes:
        return self.read(self.read_number(form))

    def push_bytes(self, form: str) -> None:
        """Push bytes. Many of them stay in the file until an array is read."""
        size = self.read_number(form)
        if size < _LAZY_SIZE or not isinstance(self.data, mmap.mmap):
            self.push(self.read(size))
            return
        start = self.position
        if start + size > len(self.data):
            raise DamagedError("a pickle ends too early")
        self.position += size
        read = functools.partial(self.source.read_within, start, size)
        self.push(StoredBytes(Storage(size, read)))

    def skip_frame(self, size: int) -> None:
        if self.position + size > len(self.data):
            raise DamagedError("a pickle ends too early")

    def check_protocol(self, protocol: int) -> None:
        if protocol > 5:
            raise UnsupportedError(f"a pickle has protocol {protocol}")

    def stop(self) -> None:
        self.is_stopped = True

    # --- The stack and the memo.

    def push(self, value: object) -> None:
        self.spend()
        self.stack.append(value)

    def push_integer(self, line: str) -> None:
        self.push(line == "01" if line in ("00", "01") else int(line))

    def push_quoted(self, line: str) -> None:
        content, _ = codecs.escape_decode(line[1:-1].encode("ascii"))
        self.push(content.decode("latin1"))

    def push_text(self, content: bytes) -> None:
        if len(content) > 2**20:  # with one rare character, each takes four bytes
            self.spend(4 * len(content))
        self.push(content.decode("utf-8", "surrogatepass"))

    def push_copy(self, value: object) -> None:
        self.spend(24)  # in the stack, and in a list and a slice of it
        self.stack.append(value)

    def pop(self) -> None:
        """Drop the last value, or the last mark if that comes later."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def pop_tuple(self, size: int) -> Arguments:
        start = len(self.stack) - size
        if start < 0:
            raise DamagedError("a pickle uses what it did not put there")
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def mark(self) -> None:
        self.spend()
        self.marks.append(len(self.stack))

    def pop_to_mark(self) -> list[object]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def memoize(self, index: int) -> None:
        self.spend()
        value = self.stack[-1]
        self.memo[index] = value
        self.last_index[id(value)] = index

    def replace_top(self, value: object) -> None:
        """Replace the last value, also in the memo."""
        old = self.stack.pop()
        self.stack.append(value)
        index = self.last_index.get(id(old))
        if index is not None and self.memo.get(index) is old:
            self.memo[index] = value
            self.last_index[id(value)] = index

    # --- Containers.

    def push_dict(self, items: list[object]) -> None:
        self.push({})
        self.set_items(items)

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, OpaqueValue):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise DamagedError(
                "a pickle sets items of a value that is not a dictionary"
            )
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[validate_key(key)] = value

    def extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(map(validate_key, values))
        elif not isinstance(target, OpaqueValue):
            raise DamagedError("a pickle appends to a value that is not a list")

    # --- Classes and calls.

    def push_name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise DamagedError("a pickle names a class without a name")
        full = f"{RENAMED_MODULES.get(module, module)}.{name}"
        self.push(TORCH_DTYPES[full] if full in TORCH_DTYPES else _Name(full))

    def push_call(self, function: object, arguments: object) -> None:
        self.push(self.call(function, arguments))

    def push_call_to_mark(self) -> None:
        """Push what a class makes of all since the mark, the class among them."""
        kind, *arguments = self.pop_to_mark()
        self.push_call(kind, tuple(arguments))

    def push_call_by_name(self) -> None:
        self.push_name(self.read_line(), self.read_line())
        kind = self.stack.pop()
        self.push_call(kind, tuple(self.pop_to_mark()))

    def call(self, function: object, arguments: object) -> object:
        """Return the result of a known function, or an opaque value."""
        if type(arguments) is not tuple:
            raise DamagedError("a pickle calls something without arguments")
        if not isinstance(function, _Name):
            return OpaqueValue("value of an unknown class")
        if function.name not in KNOWN_NAMES:
            return OpaqueValue(function.name)
        method: Callable[..., object] = getattr(self, KNOWN_NAMES[function.name])
        try:
            return method(*arguments)
        except (DamagedError, UnsupportedError):
            raise
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise DamagedError(
                f"a pickle calls {function.name} with wrong arguments ({error})"
            ) from error

    def build(self) -> None:
        """Set the state of the value before it, which may replace the value."""
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, _UnbuiltArray):
            self.replace_top(self.build_array(state))
        elif isinstance(value, np.dtype):
            self.replace_top(self.build_dtype(value, state))
        elif isinstance(value, Namespace) and isinstance(state, dict):
            # NumPy would read memory through an attribute like __array_interface__.
            for name, attribute in state.items():
                if type(name) is str and not name.startswith("__"):
                    value.__dict__[name] = attribute
        elif isinstance(value, Record):
            value.fields = state if isinstance(state, dict) else {"state": state}
        # Attributes of dictionaries, parameters and opaque values are not data.

    def build_dtype(self, dtype: DType, state: object) -> DType:
        if type(state) is not tuple or state[2:5] != (None, None, None):
            raise UnsupportedError("an array has a dtype with fields")
        return dtype.newbyteorder(">") if state[1] == ">" else dtype

    def build_array(self, state: object) -> object:
        if type(state) is not tuple or len(state) != 5:
            raise DamagedError("an array has no content")
        _, shape, dtype, is_fortran, content = state
        return self.make_array(
            content, dtype, shape, "F" if is_fortran is True else "C"
        )

    # --- The methods of KNOWN_NAMES.

    def make_dict(self, *arguments: object) -> dict[object, object]:
        """Make a dictionary from the dictionary or the pairs in the last argument."""
        content = arguments[-1] if arguments else None
        if isinstance(content, dict):
            return dict(content)
        pairs = content if isinstance(content, list) else []
        return {validate_key(key): value for key, value in pairs}

    def make_set(self, values: object = ()) -> set[object]:
        return set(map(validate_key, validate_elements(values)))

    def make_list(self, values: object = (), *_: object) -> list[object]:
        return self._spend_and_list(values)

    def make_tuple(self, values: object = ()) -> Arguments:
        return tuple(self._spend_and_list(values))

    def _spend_and_list(self, values: object) -> list[object]:
        elements = validate_elements(values)
        self.spend(8 * len(elements))
        return list(elements)

    def make_namespace(self, *_: object) -> Namespace:
        return Namespace()

    def make_record(self, *_: object) -> Record:
        return Record()

    def make_bytes(self, text: object = "", *_: object) -> bytes | StoredBytes:
        """Make bytes from text in Latin-1, which is how protocols 0 to 2 write them."""
        if isinstance(text, StoredBytes):
            return text
        if not isinstance(text, str | bytes):
            raise DamagedError("bytes are made from a value that is not text")
        self.spend(len(text))
        return text if isinstance(text, bytes) else text.encode("latin1")

    def make_complex(self, real: object, imag: object) -> complex:
        if not isinstance(real, float) or not isinstance(imag, float):
            raise DamagedError(
                "a complex number is made from a value that is not a number"
            )
        return complex(real, imag)

    def make_instance(self, kind: object, *_: object) -> object:
        """Make an instance as ``copyreg`` does in protocols 0 and 1."""
        is_class = isinstance(kind, _Name) and not kind.name.startswith("copyreg.")
        return self.call(kind, ()) if is_class else OpaqueValue("object")

    def make_device(self, *arguments: object) -> str:
        return ":".join(map(str, arguments))

    def make_numpy_dtype(self, code: object, *_: object) -> object:
        name = code.name if isinstance(code, _Name) else code
        if type(name) is str and name in NUMPY_DTYPES:
            return NUMPY_DTYPES[name]
        return OpaqueValue("NumPy dtype of text or objects")

    def make_unbuilt_array(self, kind: object, *_: object) -> OpaqueValue:
        name = kind.name if isinstance(kind, _Name) else "NumPy array"
        return (_UnbuiltArray if name == "numpy.ndarray" else OpaqueValue)(name)

    def make_array(
        self, content: object, dtype: object, shape: object, order: object = "C"
    ) -> object:
        if not isinstance(dtype, np.dtype) or not isinstance(
            content, bytes | StoredBytes
        ):
            return OpaqueValue("NumPy array of text or objects")
        shape = validate_shape(shape)
        is_stored = isinstance(content, StoredBytes)
        size = content.storage.size if is_stored else len(content)
        if size != math.prod(shape) * dtype.itemsize:
            raise DamagedError(
                f"an array of shape {shape} and dtype {dtype} has {size} bytes"
            )
        if is_stored:
            strides = _find_strides(shape if order != "F" else shape[::-1])
            layout = Strided(
                content.storage, 0, strides if order != "F" else strides[::-1]
            )
            return StoredArray(self.source.path, shape, dtype, layout)
        flat: NumpyArray = np.frombuffer(content, dtype)
        return flat.reshape(shape, order="F" if order == "F" else "C")

    def make_numpy_scalar(self, dtype: object, content: object = None) -> object:
        array = self.make_array(content, dtype, (1,))
        return array[0] if isinstance(array, np.ndarray) else array

    def make_tensor(
        self,
        view: object,
        offset: object,
        shape: object,
        strides: object,
        requires_grad: object = None,
        hooks: object = None,
        metadata: object = None,
        *_: object,
    ) -> object:
        return self.make_tensor_of_dtype(
            view, offset, shape, strides, requires_grad, hooks, None, metadata
        )

    def make_tensor_of_dtype(
        self,
        view: object,
        offset: object,
        shape: object,
        strides: object,
        requires_grad: object = None,
        hooks: object = None,
        dtype: object = None,
        metadata: object = None,
        *_: object,
    ) -> object:
        if not isinstance(view, StorageView) or isinstance(dtype, OpaqueValue):
            return OpaqueValue("torch.Tensor of a rare dtype")
        dtype = view.dtype if dtype is None else dtype
        if not isinstance(dtype, np.dtype):
            raise DamagedError("a tensor has no dtype")
        offset, shape, strides = (
            validate_size(offset),
            validate_shape(shape),
            validate_shape(strides),
        )
        if len(shape) != len(strides):
            raise DamagedError("a tensor has more strides than sizes, or fewer")
        self.spend(math.prod(shape) * dtype.itemsize)
        # The metadata says whether a tensor is lazily conjugated or negated.
        flags: dict[object, object] = metadata if isinstance(metadata, dict) else {}
        layout = Strided(
            view.storage,
            view.start + offset,
            strides,
            flags.get("conj") is True,
            flags.get("neg") is True,
        )
        return StoredArray(self.source.path, shape, dtype, layout)

    def make_subclass(
        self, function: object, kind: object, arguments: object, *_: object
    ) -> object:
        """Make the plain tensor inside a tensor of a subclass."""
        known = KNOWN_NAMES.get(function.name) if isinstance(function, _Name) else None
        if known not in ("make_tensor", "make_tensor_of_dtype", "take_first"):
            return OpaqueValue("torch.Tensor of a rare class")
        return self.call(function, arguments)

    def take_first(self, value: object, *_: object) -> object:
        """Take the tensor of a parameter, or the array of a tensor on a device."""
        return value

    def push_storage(self, persistent_id: object) -> None:
        """Push the bytes of tensors, which are outside the pickle."""
        if type(persistent_id) is str:
            raise UnsupportedError(
                "it was saved with pickle_protocol=0, whose tensors torch itself can't "
                "read"
            )
        if self.storages is None or type(persistent_id) is not tuple:
            raise DamagedError("a pickle names bytes that are elsewhere")
        if persistent_id[:1] == ("module",):
            self.push(persistent_id[1])  # a class, with its source code
            return
        _, kind, key, _, size, *view = persistent_id
        if type(key) is not str:
            raise DamagedError("a tensor has no bytes")
        name = kind.name.rpartition(".")[2] if isinstance(kind, _Name) else ""
        dtype = TORCH_STORAGES.get(name)
        itemsize = QUANTIZED_STORAGES.get(name) if dtype is None else dtype.itemsize
        if itemsize is None:
            raise UnsupportedError(f"it has tensors of the unknown kind {name!r}")
        if key in self.storages:
            self.storages[key].is_shared = True
        else:
            bytes_ = validate_size(size) * itemsize
            self.storages[key] = Storage(bytes_, _read_nowhere)
        if dtype is None:
            self.push(OpaqueValue("quantized torch.Tensor"))
            return
        part = view[0] if view else None
        if part is None:
            start = 0
        elif isinstance(part, tuple) and len(part) == 3:  # its key, start and size
            start = validate_size(part[1])
        else:
            raise DamagedError("a tensor has an invalid part of the bytes")
        self.push(StorageView(self.storages[key], dtype, start))


def _find_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of an array whose last axis is contiguous, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _read_nowhere(*_: int) -> bytes:
    raise DamagedError("a tensor has no bytes")


def validate_shape(shape: object) -> tuple[int, ...]:
    """Return a tuple of non-negative integers whose product is not too large."""
    if not isinstance(shape, tuple | list) or len(shape) > 64:
        raise UnsupportedError("a shape is not a tuple of at most 64 sizes")
    sizes = tuple(map(validate_size, shape))
    if math.prod(max(size, 1) for size in sizes) >= 2**48:
        raise DamagedError(f"a shape is too large: {sizes}")
    return sizes


def validate_elements(values: object) -> Collection[object]:
    """Return the elements that a container is made of."""
    if not isinstance(values, list | tuple | set | dict | str):
        raise DamagedError("a list is made from a value without elements")
    return values


def validate_size(size: object) -> int:
    """Return a non-negative Python integer of fewer than 48 bits."""
    # A NumPy integer would wrap around in the arithmetic that checks bounds.
    if type(size) is not int or not 0 <= size < 2**48:
        raise UnsupportedError(
            f"a size of a tensor must be a non-negative integer, but it was {size!r}"
        )
    return size


def validate_key(key: object) -> object:
    """Return a key whose hash is safe to compute.

    The hash of a tuple recurses in C, and integers of more than 64 bits can be chosen
    so that all their hashes are equal.
    """
    for part in key if type(key) is tuple else (key,):
        if isinstance(part, int) and not -(2**64) < part < 2**64:
            raise UnsupportedError("a dictionary has a key of more than 64 bits")
        if not isinstance(part, str | int | float | bytes | Record | None):
            is_opaque = isinstance(part, OpaqueValue)
            was = repr(part) if is_opaque else f"a {type(part).__name__}"
            raise UnsupportedError(
                f"a dictionary has {was} as a key, where data has text or numbers"
            )
    return key


def _decode_long(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


OPCODES: dict[bytes, Callable[[PickleMachine], None]] = {
    # The program.
    b"\x80": lambda m: m.check_protocol(m.read_number("<B")),
    b"\x95": lambda m: m.skip_frame(m.read_number("<Q")),
    b".": lambda m: m.stop(),
    # Constants and numbers.
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(value=True),
    b"\x89": lambda m: m.push(value=False),
    b"I": lambda m: m.push_integer(m.read_line()),
    b"J": lambda m: m.push(m.read_number("<i")),
    b"K": lambda m: m.push(m.read_number("<B")),
    b"M": lambda m: m.push(m.read_number("<H")),
    b"L": lambda m: m.push(int(m.read_line().removesuffix("L"))),
    b"\x8a": lambda m: m.push(_decode_long(m.read_counted("<B"))),
    b"\x8b": lambda m: m.push(_decode_long(m.read_counted("<i"))),
    b"F": lambda m: m.push(float(m.read_line())),
    b"G": lambda m: m.push(m.read_number(">d")),
    # Text and bytes.
    b"S": lambda m: m.push_quoted(m.read_line()),
    b"T": lambda m: m.push(m.read_counted("<i").decode("latin1")),
    b"U": lambda m: m.push(m.read_counted("<B").decode("latin1")),
    b"V": lambda m: m.push(m.read_line().encode().decode("raw-unicode-escape")),
    b"X": lambda m: m.push_text(m.read_counted("<I")),
    b"\x8c": lambda m: m.push_text(m.read_counted("<B")),
    b"\x8d": lambda m: m.push_text(m.read_counted("<Q")),
    b"B": lambda m: m.push_bytes("<I"),
    b"C": lambda m: m.push(m.read_counted("<B")),
    b"\x8e": lambda m: m.push_bytes("<Q"),
    b"\x96": lambda m: m.push_bytes("<Q"),
    # Containers.
    b"(": lambda m: m.mark(),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_to_mark()),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push(m.pop_tuple(1)),
    b"\x86": lambda m: m.push(m.pop_tuple(2)),
    b"\x87": lambda m: m.push(m.pop_tuple(3)),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push_dict(m.pop_to_mark()),
    b"s": lambda m: m.set_items(list(m.pop_tuple(2))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"\x8f": lambda m: m.push(set()),
    b"\x90": lambda m: m.extend(m.pop_to_mark()),
    b"\x91": lambda m: m.push(set(map(validate_key, m.pop_to_mark()))),
    # The stack and the memo.
    b"0": lambda m: m.pop(),
    b"1": lambda m: m.drop_to_mark(),
    b"2": lambda m: m.push_copy(m.stack[-1]),
    b"g": lambda m: m.push_copy(m.memo[int(m.read_line())]),
    b"h": lambda m: m.push_copy(m.memo[m.read_number("<B")]),
    b"j": lambda m: m.push_copy(m.memo[m.read_number("<I")]),
    b"p": lambda m: m.memoize(int(m.read_line())),
    b"q": lambda m: m.memoize(m.read_number("<B")),
    b"r": lambda m: m.memoize(m.read_number("<I")),
    b"\x94": lambda m: m.memoize(len(m.memo)),
    # Classes and calls.
    b"c": lambda m: m.push_name(m.read_line(), m.read_line()),
    b"\x93": lambda m: m.push_name(*m.pop_tuple(2)),
    b"R": lambda m: m.push_call(*m.pop_tuple(2)),
    b"i": lambda m: m.push_call_by_name(),
    b"o": lambda m: m.push_call_to_mark(),
    b"\x81": lambda m: m.push_call(*m.pop_tuple(2)),
    b"\x92": lambda m: m.push_call(*m.pop_tuple(3)[:2]),
    b"b": lambda m: m.build(),
    b"P": lambda m: m.push_storage(m.read_line()),
    b"Q": lambda m: m.push_storage(m.stack.pop()),
}
