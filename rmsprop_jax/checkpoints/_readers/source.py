"""A file to read: its bytes, a limit of memory, and the errors that name it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

# Path-like, or a string.
File: TypeAlias = str | os.PathLike[str]
# Parsers (and google-crc32c) need bytes; an array can use memory that NumPy allocated.
Buffer: TypeAlias = bytes | memoryview
_AnyBuffer = TypeVar("_AnyBuffer", bytes, memoryview)
# Any dtype.
DType: TypeAlias = np.dtype[Any]
NumpyArray: TypeAlias = npt.NDArray[Any]


# The bytes before the name of a member in a zip file.
_MEMBER_HEADER_SIZE = 30
# How many bytes are read at once to verify a checksum.
_BLOCK = 2**20
_ZIP_ERRORS = (
    zipfile.BadZipFile,  # the checksum, among others
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)


class DamagedError(ValueError):
    """The file ends too early, or its bytes contradict each other or a checksum."""


class UnsupportedError(ValueError):
    """The file may be complete, but it is not one that we read."""


class UnforeseenError(ValueError):
    """The file led a reader to an exception that the reader did not foresee."""


class Budget:
    """The bytes that a file may take in memory.

    A file that claims to hold a thousand times its own size was made to fill the
    memory. A framework's checkpoint never holds more than its own size. The limit is
    twice that, because tensors that share memory are stored once but may be counted
    twice.
    """

    def __init__(self, file_size: int) -> None:
        self._file_size = file_size
        self._left = 2 * file_size + 2**27

    def spend(self, size: int) -> None:
        """Raise if the file has now taken too much."""
        self._left -= size
        if self._left < 0:
            raise UnsupportedError(
                f"it has {self._file_size} bytes, but what it holds would take more "
                "than twice as many, as in a file that was made to fill the memory"
            )


class Source:
    """A file, or the bytes of a file inside another one.

    Attributes:
        path: Where the file is.
        head: The first 64 bytes.
        size: The number of bytes.
        budget: How many bytes reading may take.
    """

    def __init__(
        self,
        path: Path,
        content: bytes | tuple[int, int] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Open a file, or a part of it.

        Args:
            path: Where the file is.
            content: The bytes; or where they begin in the file, and how many they are.
            budget: How many bytes reading may take, if other sources share the limit.
        """
        self.path = path
        self._content = content
        self._counted: set[str] = set()
        if content is None:
            if not stat.S_ISREG(path.stat().st_mode):
                raise UnsupportedError("it is not a regular file")
            self.size = path.stat().st_size
        else:
            self.size = content[1] if isinstance(content, tuple) else len(content)
        self.budget = budget or Budget(self.size)
        with self.open() as file:
            self.head = file.read(64)

    def open(self) -> io.BufferedReader | io.BytesIO:
        """Open it for reading. It is opened again whenever an array is read."""
        if self._content is None:
            return self.path.open("rb")
        if isinstance(self._content, tuple):
            return io.BufferedReader(_Window(self.path, *self._content))
        return io.BytesIO(self._content)

    def map(self) -> bytes | mmap.mmap:
        """Return its bytes, which are only read when they are used."""
        if self._content is not None or not self.size:
            return self.read_range(0, self.size)
        with self.open() as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read_range(self, offset: int, size: int) -> bytes:
        """Read some of its bytes."""
        with self._open_range(offset, size) as file:
            content = file.read(size)
        return _check_complete(content, size)

    def read_buffer(self, offset: int, size: int) -> memoryview:
        """Read some of its bytes into an array's memory.

        For a large array, NumPy asks the system for huge pages. Small ones would take
        the system as long as reading does.
        """
        with self._open_range(offset, size) as file:
            buffer = np.empty(size, np.uint8).data
            return _check_complete(buffer[: file.readinto(buffer)], size)

    def _open_range(self, offset: int, size: int) -> io.BufferedReader | io.BytesIO:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise DamagedError(
                f"it ends at byte {self.size}, before the {size} bytes at {offset}"
            )
        file = self.open()
        file.seek(offset)
        return file

    def read_within(self, start: int, all_bytes: int, offset: int, size: int) -> Buffer:
        """Read a part of a range of its bytes, as far as the range goes."""
        size = max(min(size, all_bytes - offset), 0)
        return self.read_buffer(start + offset, size)

    @functools.cached_property
    def _archive(self) -> zipfile.ZipFile:
        """The zip file, which stays open because arrays are read later."""
        return zipfile.ZipFile(self.path if self._content is None else self.open())

    @functools.cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The members of a zip file by their names; none if it is not one."""
        if not self.head.startswith(b"PK"):
            return {}
        try:
            infos = self._archive.infolist()
        except zipfile.BadZipFile as error:
            raise DamagedError(f"{error}") from error
        except (NotImplementedError, UnicodeDecodeError) as error:
            raise UnsupportedError(
                f"its list of members is unusual ({error})"
            ) from error
        if min((info.header_offset for info in infos), default=0):
            # The zip file that was found is inside another one, which was cut off.
            raise DamagedError("its list of members is missing")
        return {info.filename: info for info in infos}

    def read_member(self, name: str) -> bytes:
        """Read a member of a zip file, and verify its checksum."""
        return bytes(
            self.read_within_member(name, 0, self._find_member(name).file_size)
        )

    def read_within_member(self, name: str, offset: int, size: int) -> Buffer:
        """Read a part of a member of a zip file, as far as the member goes.

        If all of it is read, its checksum is verified.
        """
        info = self._find_member(name)
        try:
            if info.compress_type != zipfile.ZIP_STORED:
                return self._archive.read(info)[offset : offset + size]
            start = self._find_stored(info)
            content = self.read_within(start, info.file_size, offset, size)
        except _ZIP_ERRORS as error:
            raise DamagedError(f"its member {name!r}: {error}") from error
        if len(content) == info.file_size:
            _check_crc(name, zlib.crc32(content), info)
        return content

    def open_member(self, name: str) -> Source:
        """Return a member of a zip file as a source, with its checksum verified.

        It stays in the file if it is not compressed.
        """
        info = self._find_member(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return Source(self.path, self.read_member(name))
        try:
            start = self._find_stored(info)
            self.verify_member(name)
        except _ZIP_ERRORS as error:
            raise DamagedError(f"its member {name!r}: {error}") from error
        return Source(self.path, (start, info.file_size))

    def verify_member(self, name: str) -> None:
        """Verify the checksum of a member that is read in parts."""
        info = self._find_member(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return  # all of it is read at once, which verifies it
        crc = 0
        with self.open() as file:
            file.seek(self._find_stored(info))
            for start in range(0, info.file_size, _BLOCK):
                content = file.read(min(_BLOCK, info.file_size - start))
                crc = zlib.crc32(content, crc)
        _check_crc(name, crc, info)

    def _find_member(self, name: str) -> zipfile.ZipInfo:
        info = self.members.get(name)
        if info is None:
            raise DamagedError(f"its member {name!r} is missing")
        is_plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not is_plain or info.flag_bits & 1:
            raise UnsupportedError(
                f"its member {name!r} is encrypted, or compressed in an unusual way"
            )
        if name not in self._counted:
            self._counted.add(name)
            self.budget.spend(info.file_size)
        return info

    def _find_stored(self, info: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin that is not compressed."""
        with self._archive.open(info):  # this checks the member's header
            pass
        if info.compress_size != info.file_size:
            raise zipfile.BadZipFile("its two sizes are different")
        header = self.read_range(info.header_offset, _MEMBER_HEADER_SIZE)
        name_size, extra_size = struct.unpack("<HH", header[26:])
        return info.header_offset + _MEMBER_HEADER_SIZE + name_size + extra_size


def _check_complete(content: _AnyBuffer, size: int) -> _AnyBuffer:
    if len(content) < size:
        raise DamagedError("it became shorter while it was read")
    return content


def _check_crc(name: str, crc: int, info: zipfile.ZipInfo) -> None:
    if crc != info.CRC:
        raise DamagedError(f"its member {name!r}: Bad CRC-32")


class _Window(io.RawIOBase):
    """A part of a file that can be read like a file."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start, self._size, self._position = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence, 0)
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        left = max(self._size - self._position, 0)
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:left]) or 0
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def explain_errors(path: File) -> Generator[None]:
    """Turn any exception from reading a file into a ValueError that names the file.

    This is the one boundary around the readers. An exception that a reader did not
    foresee becomes an `UnforeseenError`, which the tests do not accept.
    """
    what = repr(os.fspath(path))
    try:
        yield
    except DamagedError as error:
        kind = "folder" if os.path.isdir(path) else "file"
        raise DamagedError(
            f"{what} must be a complete {kind}, but it is truncated or corrupted: "
            f"{error}. Copy it again."
        ) from error
    except UnsupportedError as error:
        raise UnsupportedError(f"{what} can't be read: {error}.") from error
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:
        raise UnforeseenError(
            f"{what} can't be read, because it holds something unexpected "
            f"({type(error).__name__}: {error})."
        ) from error


@contextlib.contextmanager
def explain_content_errors(what: str) -> Generator[None]:
    """Turn any exception from unexpected content into a ValueError.

    The readers return whatever data a file holds. This is the boundary around the code
    that looks for an optimizer in it.

    Args:
        what: The file, or the argument, that the content comes from.
    """
    try:
        yield
    except (DamagedError, UnsupportedError) as error:
        if isinstance(error.__cause__, type(error)):
            raise  # `explain_errors` made it, when an array was read
        if isinstance(error, DamagedError):
            raise DamagedError(
                f"{what} must be a complete file, but {error}."
            ) from error
        raise UnsupportedError(f"{what}: {error}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
    ) as error:
        raise UnforeseenError(
            f"{what} can't be read, because it holds something unexpected "
            f"({type(error).__name__}: {error})."
        ) from error


@dataclasses.dataclass
class Storage:
    """Bytes in a file that belong to one array, or that several arrays share.

    Attributes:
        size: The number of bytes.
        read_bytes: From an offset and a size to the bytes, as far as there are any. If
            these are all bytes, it verifies their checksum, if there is one.
        verify: Verifies the checksum if the bytes are read in parts, if there is one.
        is_shared: Whether several arrays share the bytes. If so, they are kept after
            they are read, so that the arrays share their memory.
        kept: The bytes, if they are kept.
    """

    size: int
    read_bytes: Callable[[int, int], Buffer]
    verify: Callable[[], object] | None = None
    is_shared: bool = False
    kept: Buffer | None = None

    def read(self) -> Buffer:
        """Read the bytes, or return those that were kept."""
        if self.kept is not None:
            return self.kept
        content = self.read_bytes(0, self.size)
        if self.is_shared:
            self.kept = content
        return content

    def read_part(self, offset: int, size: int, *, verify: bool) -> Buffer:
        """Read some of the bytes.

        Args:
            offset: Where they begin.
            size: How many.
            verify: Whether to verify the checksum of all bytes the first time.
        """
        if self.kept is not None:
            return self.kept[offset : offset + size]
        if verify and self.verify is not None:
            self.verify()
            self.verify = None
        return self.read_bytes(offset, size)


class Layout(Protocol):
    """Where the elements of an array are."""

    def read(
        self, shape: tuple[int, ...], dtype: DType, rows: slice | None, *, verify: bool
    ) -> NumpyArray:
        """Read the array, or some of its first axis; see `StoredArray.read`."""
        ...

    def identify(self) -> object:
        """Return what is equal for two arrays of the same elements."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Strided:
    """Elements at regular distances in some bytes.

    Attributes:
        storage: The bytes.
        offset: Where the first element is, in elements.
        strides: The distance to the next element along each axis, in elements. It may
            be 0, as in an expanded tensor, and arrays may overlap.
        is_conjugated: Whether the elements are the conjugates of what is stored.
        is_negated: Whether they are the negatives of what is stored.
    """

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    is_conjugated: bool = False
    is_negated: bool = False

    def read(
        self, shape: tuple[int, ...], dtype: DType, rows: slice | None, *, verify: bool
    ) -> NumpyArray:
        """Read the array, or some of its first axis; see `StoredArray.read`."""
        offset = self.offset
        if rows is not None:
            offset += rows.start * self.strides[0]
            shape = (rows.stop - rows.start, *shape[1:])
        if 0 in shape:
            return np.zeros(shape, dtype)
        steps = zip(shape, self.strides, strict=True)
        count = 1 + sum(stride * (size - 1) for size, stride in steps)
        start, size = offset * dtype.itemsize, count * dtype.itemsize
        if rows is None:
            content = self.storage.read()
        else:
            content = self.storage.read_part(start, size, verify=verify)
            start = 0
        if start + size > len(content):
            raise DamagedError(f"an array of shape {shape} does not fit its memory")
        flat: NumpyArray = np.frombuffer(content, dtype, count, start)
        strides = [stride * dtype.itemsize for stride in self.strides]
        array: NumpyArray = np.lib.stride_tricks.as_strided(
            flat, shape, strides, writeable=False
        )
        array = array.conj() if self.is_conjugated else array
        return -array if self.is_negated else array

    def identify(self) -> object:
        """Return what is equal for two arrays of the same elements."""
        return id(self.storage), self.offset, self.strides


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StoredArray:
    """An array in a file. NumPy reads it when it is used.

    Attributes:
        path: The file, for errors.
        shape: As of a NumPy array.
        dtype: As of a NumPy array.
        layout: Where its elements are.
    """

    path: File
    shape: tuple[int, ...]
    dtype: DType
    layout: Layout

    def read(self, rows: slice | None = None, *, verify: bool = True) -> NumpyArray:
        """Read the array from its file.

        Args:
            rows: A range of the first axis to read; by default the whole array.
            verify: Whether to verify the checksum even if only a part is read, for
                which all bytes must be read once.

        Raises:
            ValueError: If the file is damaged there.
        """
        with explain_errors(self.path):
            return self.layout.read(self.shape, self.dtype, rows, verify=verify)

    def __repr__(self) -> str:
        return f"<an array of {self.dtype}, of shape {self.shape}>"

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: object = None
    ) -> NumpyArray:
        return np.asarray(self.read(), dtype)


def read_each(
    values: Sequence[object],
    rows: Sequence[slice | None] | None = None,
    verify: Sequence[bool] | None = None,
) -> list[Any]:
    """Return the values, with arrays that are still in a file read from it.

    Args:
        values: The values.
        rows: The range to read of each, as in `StoredArray.read`; by default all.
        verify: For each, whether to verify its checksum if only a part is read.
    """
    rows = rows or [None] * len(values)
    verify = verify or [True] * len(values)
    return [
        x.read(part, verify=is_verified) if isinstance(x, StoredArray) else x
        for x, part, is_verified in zip(values, rows, verify, strict=True)
    ]
