"""Files as a stranger could have made them: recorded ones, changed at their joints.

Random bytes alone are mostly caught by the first checksum. So what a container holds is
changed too, and the container is made whole again: a member of a zip file, an opcode
of a pickle, an object of HDF5, an entry of TensorFlow's index.
"""

import io
import itertools
import pickletools
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np

INTEGERS = [
    -(2**63),
    -5,
    -1,
    0,
    1,
    2,
    7,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**40,
    2**63 - 1,
]
NUMBERS = [-1.0, 0.0, 1e-30, 0.5, 1.0, 2.0, 1e30, float("inf"), float("nan")]
NAMES = [
    "argparse Namespace",
    "builtins getattr",
    "builtins set",
    "collections OrderedDict",
    "numpy dtype",
    "numpy ndarray",
    "numpy._core.multiarray scalar",
    "os system",
    "torch FloatStorage",
    "torch LongStorage",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
]


def mutate(path: Path, pick: random.Random) -> None:
    """Change a file in place, and keep its kind."""
    data = path.read_bytes()
    if path.suffix in (".h5",):
        changed = pick.choice([mutate_bytes, mutate_hdf5, mutate_hdf5])(data, pick)
    elif path.suffix == ".index":
        changed = pick.choice([mutate_bytes, mutate_table, mutate_table])(data, pick)
    elif data.startswith(b"PK"):
        changed = pick.choice([mutate_bytes, mutate_zip, mutate_zip])(data, pick)
    elif data.startswith(b"\x80"):
        changed = pick.choice([mutate_bytes, mutate_pickle, mutate_pickle])(data, pick)
    else:
        changed = mutate_bytes(data, pick)
    path.write_bytes(changed)


def mutate_bytes(data: bytes, pick: random.Random) -> bytes:
    """Cut, flip, repeat, drop or overwrite some bytes."""
    if not data:
        return b"\x80"
    start = pick.randrange(len(data))
    end = min(len(data), start + pick.choice([1, 2, 8, 100, 1000]))
    kind = pick.randrange(6)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        return data[:end] + data[start:end] * pick.choice([1, 3]) + data[end:]
    if kind == 3:
        return data[:start] + bytes(end - start) + data[end:]
    if kind == 4:
        return data[:start] + pick.randbytes(end - start) + data[end:]
    flipped = bytes([data[start] ^ (1 << pick.randrange(8))])
    return data[:start] + flipped + data[start + 1 :]


# --- Zip files.


def mutate_zip(data: bytes, pick: random.Random) -> bytes:
    """Change a member, and write the zip file anew, with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i = pick.randrange(len(members))
    if pick.random() < 0.5:  # where the structure is
        told = [
            n
            for n, (name, _) in enumerate(members)
            if name.endswith((".pkl", ".pth", ".h5", ".json"))
        ]
        i = pick.choice(told)
    name, content = members[i]
    kind = pick.randrange(8)
    if kind == 0:
        del members[i]
    elif kind == 1:
        members.insert(i, members[i])
    elif kind == 2:
        members[i] = pick.choice(members)[0] + "x", content
    else:
        members[i] = name, _mutate_member(name, content, pick)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", pick.choice([0, 0, zipfile.ZIP_DEFLATED])) as made:
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _mutate_member(name: str, content: bytes, pick: random.Random) -> bytes:
    if name.endswith(".pkl") and pick.random() < 0.8:
        return mutate_pickle(content, pick)
    if name.endswith(".pth") and content.startswith(b"PK") and pick.random() < 0.8:
        return mutate_zip(content, pick)
    if name.endswith(".h5") and pick.random() < 0.8:
        return mutate_hdf5(content, pick)
    if name.endswith(".json") and pick.random() < 0.8:
        return mutate_text(content, pick)
    return mutate_bytes(content, pick)


def mutate_text(content: bytes, pick: random.Random) -> bytes:
    """Replace one value of some JSON."""
    text = content.decode("utf-8", "replace")
    colons = [i for i, letter in enumerate(text) if letter == ":"]
    if not colons:
        return b"[]"
    start = pick.choice(colons) + 1
    end = min((i for i in (text.find(c, start) for c in ",}") if i > 0), default=start)
    values = ["null", "[]", "{}", '"\\ud800"', "-1", "1e999", "true", "NaN", "[" * 9999]
    return (text[:start] + pick.choice(values) + text[end:]).encode()


# --- Pickles.


def mutate_pickle(data: bytes, pick: random.Random) -> bytes:
    """Change one opcode of a pickle, or of the longest of several."""
    before, ops, after = _split_pickle(data)
    if len(ops) < 3:
        return mutate_bytes(data, pick)
    i = pick.randrange(1, len(ops) - 1)
    kind = pick.randrange(8)
    if kind == 0:
        del ops[i]
    elif kind == 1:
        ops.insert(i, ops[i])
    elif kind == 2:
        j = pick.randrange(1, len(ops) - 1)
        ops[i], ops[j] = ops[j], ops[i]
    elif kind == 3:
        ops[i] = pick.choice(ops[1:-1])
    elif kind == 4:
        ops[i] = _pickled_integer(pick.choice(INTEGERS))
    elif kind == 5:
        ops[i] = b"G" + struct.pack(">d", pick.choice(NUMBERS))
    elif kind == 6:
        module, name = pick.choice(NAMES).split()
        ops[i] = f"c{module}\n{name}\n".encode()
    else:
        ops.insert(
            i, pick.choice([b"}", b"]", b")", b"N", b"\x88", b"0", b"(", b"R", b"b"])
        )
    return before + b"".join(ops) + after


def _split_pickle(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Return the opcodes of the longest pickle, with what is before and after it."""
    start, longest = 0, (0, [0])
    while data[start : start + 1] == b"\x80":
        try:
            found = list(pickletools.genops(data[start:]))
        except ValueError:
            break
        places = [position or 0 for _, _, position in found]
        places.append(places[-1] + 1)
        longest = max(longest, (start, places), key=lambda x: x[1][-1])
        start += places[-1]
    start, places = longest
    pairs = itertools.pairwise(places)
    ops = [data[start + a : start + b] for a, b in pairs]
    return data[:start], ops, data[start + places[-1] :]


def _pickled_integer(number: int) -> bytes:
    content = number.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + content


# --- HDF5.


def mutate_hdf5(data: bytes, pick: random.Random) -> bytes:
    """Change one object or attribute of an HDF5 file."""
    file = io.BytesIO(data)
    with h5py.File(file, "r+") as root:
        names: list[str] = []
        root.visit(names.append)
        name = pick.choice(names)
        parent, _, label = f"/{name}".rpartition("/")
        group: Any = root[parent or "/"]
        node: Any = group[label]
        kind = pick.randrange(9)
        if kind == 0:
            del group[label]
        elif kind == 1:
            del group[label]
            group[label] = _array(pick)
        elif kind == 2 and isinstance(node, h5py.Dataset):
            _overwrite(node, pick)
        elif kind == 3:
            _mutate_attribute(pick.choice([root, node]), pick)
        elif kind == 4:
            group[f"{label}_2"] = node  # a hard link
        elif kind == 5:
            del group[label]
            group[label] = h5py.SoftLink(pick.choice(["/", "/nowhere", f"/{name}"]))
        elif kind == 6:
            del group[label]
            group[label] = h5py.ExternalLink("/etc/passwd", "/x")
        elif kind == 7:
            del group[label]
            group.create_dataset(label, (10**9,), "f4")
        else:
            new = pick.choice(["0", "vars", "x" * 100])
            if new not in group:
                group.move(label, new)
    return file.getvalue()


def _array(pick: random.Random) -> np.ndarray:
    shape = pick.choice([(), (1,), (0,), (2, 3), (8,)])
    dtype = pick.choice(["f4", ">f4", "f8", "i1", "i8", "S5", "V2", "c8"])
    return np.full(shape, pick.choice(NUMBERS[:-2])).astype(dtype, casting="unsafe")


def _overwrite(node: h5py.Dataset, pick: random.Random) -> None:
    if node.dtype.kind == "f":
        node[...] = pick.choice(NUMBERS)
    elif node.dtype.kind in "iu" and node.dtype.itemsize == 8:
        node[...] = pick.choice(INTEGERS)


def _mutate_attribute(node: Any, pick: random.Random) -> None:
    names = list(node.attrs)
    if not names:
        return
    name = pick.choice(names)
    old = node.attrs[name]
    kind = pick.randrange(4)
    if kind == 0:
        del node.attrs[name]
    elif kind == 1:
        node.attrs[name] = _array(pick)
    elif kind == 2 and isinstance(old, str):
        node.attrs[name] = mutate_text(old.encode(), pick).decode("utf-8", "replace")
    else:
        node.attrs[name] = np.array([b"\xff\xfe", b"a/b"])


# --- TensorFlow's index.


def mutate_table(data: bytes, pick: random.Random) -> bytes:
    """Change one entry of the index, and write it anew, with the right checksums."""
    entries = read_entries(data)
    i = pick.randrange(len(entries))
    key, value = entries[i]
    kind = pick.randrange(7)
    if kind == 0:
        del entries[i]
    elif kind == 1:
        entries[i] = pick.choice(entries)[0], value
    elif kind == 2:
        entries[i] = key, pick.choice(entries)[1]
    elif kind == 3:
        entries[i] = key + b"\xff", value
    elif kind == 4:
        entries[i] = key, mutate_bytes(value, pick)
    elif kind == 5:
        number = pick.choice([1, 3, 4, 5])
        entries[i] = key, value + bytes([number << 3]) + b"\xff" * 8 + b"\x01"
    else:
        field, number = pick.choice([1, 2, 3, 4, 5, 6, 7]), pick.randrange(128)
        entries[i] = key, bytes([field << 3, number]) + value
    return write_entries(entries)


def read_entries(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the keys and values of an index of one block of data."""
    from rmsprop_jax.checkpoints._readers import tensor_bundle

    return list(tensor_bundle._read_table(data))


def write_entries(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Write an index. Keys are written whole, which readers allow."""
    block = b"".join(
        b"\0" + varint(len(key)) + varint(len(value)) + key + value
        for key, value in entries
    )
    return write_table([block])


def write_table(blocks: list[bytes], repeat: int = 1) -> bytes:
    """Write an index of blocks of encoded entries, each named so many times."""
    data, handles = b"", []
    for block in blocks:
        data, handle = _add_block(data, block)
        handles += [handle] * repeat
    data, meta = _add_block(data, b"")
    named = [b"\0\x01" + varint(len(handle)) + b"\xff" + handle for handle in handles]
    data, handle = _add_block(data, b"".join(named))
    footer = (meta + handle).ljust(40, b"\0")
    return data + footer + struct.pack("<Q", 0xDB4775248B80FB57)


def write_string(key: str, string: bytes, header: bytes) -> tuple[bytes, bytes]:
    """Write an index and the data of one tensor of one string."""
    length = struct.pack("<I", len(string))
    of_length = struct.pack("<I", mask(google_crc32c.value(length)))
    data = varint(len(string)) + of_length + string
    checksum = mask(google_crc32c.value(length + of_length + string))
    entry = b"\x08\x07\x28" + varint(len(data)) + b"\x35" + struct.pack("<I", checksum)
    return write_entries([(b"", header), (key.encode(), entry)]), data


def _add_block(data: bytes, entries: bytes) -> tuple[bytes, bytes]:
    block = entries + struct.pack("<II", 0, 1)
    handle = varint(len(data)) + varint(len(block))
    checksum = struct.pack("<I", mask(google_crc32c.value(block + b"\0")))
    return data + block + b"\0" + checksum, handle


def mask(crc: int) -> int:
    """Return a checksum as TensorFlow stores it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    """Return a number in 7 bits a byte, the lowest first."""
    made = b""
    while number >= 0x80:
        made += bytes([number & 0x7F | 0x80])
        number >>= 7
    return made + bytes([number])
