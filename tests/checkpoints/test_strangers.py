"""Files that a stranger made: nothing is run, nothing crashes, nothing is silent.

Each file is read in another process, which may take 300 MB and 20 s.
"""

import functools
import io
import json
import os
import pickle
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import mutations
from support.strangers import FORMATS, Reader, describe, unpack
from support.untyped import checkpoints

from rmsprop_jax.checkpoints._readers import keras_h5, source, tensor_bundle
from rmsprop_jax.checkpoints._readers.h5_attributes import AttributeReader
from rmsprop_jax.checkpoints._readers.source import Budget, DamagedError


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


# --- Pickles, written by hand.


def integer(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + sequence(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def storage(
    kind: bytes = name("torch.FloatStorage"), size: bytes = integer(16)
) -> bytes:
    return sequence(text("storage"), kind, text("0"), text("cpu"), size) + b"Q"


def tensor(
    offset: bytes = integer(0),
    shape: bytes = sequence(integer(2)),
    strides: bytes = sequence(integer(1)),
    of: bytes = storage(),
) -> bytes:
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", of, offset, shape, strides, b"\x89", hooks
    )


def numpy_scalar(number: int, code: str = "i2") -> bytes:
    dtype = call("numpy.dtype", text(code), b"\x89", b"\x88")
    content = number.to_bytes(int(code[1:]), "little")
    encoded = call("_codecs.encode", text(content.decode("latin1")), text("latin1"))
    return call("numpy.core.multiarray.scalar", dtype, encoded)


# A dtype that has a Python object in a field, and does not say so.
HIDDEN_OBJECT = (
    call("numpy.dtype", text("V8"), b"\x89", b"\x88")
    + sequence(
        integer(3),
        text("|"),
        b"N",
        sequence(text("a")),
        b"}"
        + text("a")
        + sequence(call("numpy.dtype", text("O8"), b"\x89", b"\x88"), integer(0))
        + b"s",
        integer(8),
        integer(1),
        integer(0),
    )
    + b"b"
)
EIGHT_BYTES = call("_codecs.encode", text("\x01" * 8), text("latin1"))


def as_pickle(*ops: bytes) -> bytes:
    return b"\x80\x02" + b"".join(ops) + b"."


def as_torch(pickled: bytes, data: bytes = bytes(64)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return file.getvalue()


def as_legacy(pickled: bytes, keys: list[str]) -> bytes:
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(x, 2) for x in before)
    return head + pickled + pickle.dumps(keys, 2) + bytes(72)


def in_state(moment: bytes) -> bytes:
    """A state_dict of torch, whose second moment this is."""
    numbers = dict.fromkeys(("alpha", "eps", "weight_decay", "momentum"), integer(0))
    group = mapping(
        lr=integer(1),
        **numbers,
        centered=b"\x89",
        foreach=b"N",
        params=b"]" + integer(0) + b"a",
        param_names=b"]" + text("w") + b"a",
    )
    state = b"}" + integer(0) + mapping(step=integer(1), square_avg=moment) + b"s"
    return as_torch(as_pickle(mapping(state=state, param_groups=b"]" + group + b"a")))


# What reading it says, and the file. Nothing: whatever is in it can be read.
PICKLES = {
    # Memory of the process, and its objects.
    "a storage of hidden objects": (
        "unknown kind ''",
        in_state(tensor(of=storage(HIDDEN_OBJECT))),
    ),
    "an array of hidden objects": (
        "NumPy array of text or objects",
        in_state(
            call(
                "numpy.core.multiarray._reconstruct",
                name("numpy.ndarray"),
                sequence(integer(0)),
                text("b"),
            )
            + sequence(
                integer(1), sequence(integer(1)), HIDDEN_OBJECT, b"\x89", EIGHT_BYTES
            )
            + b"b"
        ),
    ),
    "a number that is a hidden object": (
        "NumPy array of text or objects",
        in_state(call("numpy.core.multiarray.scalar", HIDDEN_OBJECT, EIGHT_BYTES)),
    ),
    "a set of hidden objects": (
        "unknown kind ''",
        in_state(call("builtins.set", b"]" + storage(HIDDEN_OBJECT) + b"a")),
    ),
    "strides that wrap around": (
        "non-negative integer, but it was np.int16\\(9\\)",
        in_state(
            tensor(
                shape=sequence(numpy_scalar(9)), strides=sequence(numpy_scalar(4096))
            )
        ),
    ),
    "an offset that wraps around": (
        "non-negative integer, but it was np.int16",
        in_state(tensor(offset=numpy_scalar(2**16 - 8))),
    ),
    "a size that wraps around": (
        "non-negative integer, but it was np.int16",
        in_state(tensor(of=storage(size=numpy_scalar(2**16 - 1)))),
    ),
    "strides that go back": (
        "it was -1",
        in_state(tensor(strides=sequence(integer(-1)))),
    ),
    "an offset before the bytes": (
        "it was -4",
        in_state(tensor(offset=integer(-4))),
    ),
    "a tensor beyond its bytes": (
        "does not fit its memory",
        in_state(tensor(shape=sequence(integer(17)))),
    ),
    "a namespace of foreign memory": (
        "floating-point numbers, but it was of Namespace",
        in_state(
            call("argparse.Namespace")
            + mapping(
                __array_interface__=mapping(
                    data=sequence(integer(2**40), b"\x88"),
                    shape=sequence(integer(2)),
                    typestr=text("<f4"),
                    version=integer(3),
                )
            )
            + b"b"
        ),
    ),
    "a namespace with an array method": (
        "it was of Namespace",
        in_state(
            call("types.SimpleNamespace") + mapping(__array__=name("os.getcwd")) + b"b"
        ),
    ),
    "a namespace with a class": (
        "it was of Namespace",
        in_state(
            call("types.SimpleNamespace")
            + mapping(__class__=name("numpy.ndarray"))
            + b"b"
        ),
    ),
    "an array that was never filled": (
        "numpy.ndarray. was not read",
        in_state(call("numpy.ndarray", sequence(integer(1000)), text("f8"))),
    ),
    "an array without its state": (
        "numpy.ndarray. was not read",
        in_state(
            call(
                "numpy.core.multiarray._reconstruct",
                name("numpy.ndarray"),
                sequence(integer(9)),
                text("b"),
            )
        ),
    ),
    "a number without its bytes": (
        "NumPy array of text or objects",
        in_state(call("numpy.core.multiarray.scalar", name("numpy.float64"))),
    ),
    # Memory and time.
    "a memo of four billions": (
        "",
        b"\x80\x02]r\x00\x00\x00\x10.",
    ),
    "a text of 2⁶² bytes": (
        "ends too early",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    ),
    "a frame of 2⁶³ bytes": (
        "ends too early",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"].",
    ),
    "a bytearray of 2⁴⁰ bytes": (
        "ends too early",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    ),
    "a number of 2³¹ bytes": (
        "ends too early",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    ),
    "a number of a million digits": (
        "bad value",
        b"\x80\x02I" + b"9" * 10**6 + b"\n.",
    ),
    "an expanded tensor of 2⁴⁴ numbers": (
        "made to fill the memory",
        in_state(
            tensor(
                shape=sequence(integer(2**22), integer(2**22)),
                strides=sequence(integer(0), integer(0)),
            )
        ),
    ),
    "a shape of a thousand sizes": (
        "at most 64 sizes",
        in_state(
            tensor(
                shape=sequence(*[integer(1)] * 1000),
                strides=sequence(*[integer(1)] * 1000),
            )
        ),
    ),
    "references to one list, 7 million times": (
        "made to fill the memory",
        as_pickle(b"]q\x00(" + b"h\x00" * 7 * 10**6 + b"l"),
    ),
    # Depth.
    "a key of 300,000 levels": (
        "a tuple as a key",
        as_pickle(b"})" + b"\x85" * 300_000 + b"Ns"),
    ),
    "a set with an element of 300,000 levels": (
        "a tuple as a key",
        as_pickle(
            name("builtins.set") + b"(](" + b")" + b"\x85" * 300_000 + b"et" + b"R"
        ),
    ),
    "lists in lists, 300,000 levels": (
        "more than 200 levels",
        as_pickle(b"]" * 300_000 + b"a" * 299_999),
    ),
    # What exceptions of others came from.
    "an unhashable key": (
        "a list as a key",
        as_pickle(b"}]Ns"),
    ),
    "a key of 10⁵ bits": (
        "more than 64 bits",
        as_pickle(b"}\x8b" + struct.pack("<i", 12500) + b"\x7f" * 12500 + b"Ns"),
    ),
    "a class without a name": (
        "class without a name",
        as_pickle(b"]]\x93"),
    ),
    "a call of a number": (
        "",
        as_pickle(integer(1) + b")R"),
    ),
    "an empty stack": (
        "did not put there",
        b"\x80\x02.",
    ),
    "an unknown opcode": (
        "no opcode",
        b"\x80\x02\xff.",
    ),
    "letters that are not UTF-8": (
        "bad value",
        as_pickle(b"X\x02\x00\x00\x00\xff\xfe"),
    ),
}


# It takes seconds to come to what is too much.
LONG = "references to one list, 7 million times"


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=[pytest.mark.slow] * (what == LONG)) for what in PICKLES],
)
def test_pickles(what, reader, tmp_path):
    match, content = PICKLES[what]
    path = tmp_path / "file"
    path.write_bytes(content)
    is_torch = content.startswith(b"PK")
    outcome = reader.read(path, "from_torch" if is_torch else "read")
    assert outcome.kind == ("refused" if match else "read"), outcome
    assert not match or re.search(match, outcome.detail), outcome
    if is_torch:
        for function in ("read", "load_weights"):
            assert reader.read(path, function).kind in ("read", "refused")


# --- Files of torch.


def zip_of(members: dict[str, bytes], *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED * compressed) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


# How an entry of the list of members begins: two versions, and the flags.
CENTRAL = b"PK\x01\x02\x14\x03\x14\x00\x00\x00"


def zip_with(changes: list[tuple[bytes, bytes]]) -> bytes:
    """A zip file in which some bytes of its own are others."""
    content = as_torch(as_pickle(b"]"))
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    return content


def legacy_of_storages(count: int, size: int) -> bytes:
    """A file of torch before 1.6 with storages of a size, but few bytes."""

    def one(key: int) -> bytes:
        words = (text("storage"), name("torch.FloatStorage"), text(str(key)))
        return sequence(*words, text("cpu"), integer(size), b"N") + b"Q"

    tensors = b"".join(tensor(of=one(key)) for key in range(count))
    return as_legacy(as_pickle(b"](" + tensors + b"e"), [str(k) for k in range(count)])


def state_dict(**group: Any) -> bytes:
    """A pickle that `read` reads."""
    numbers = {
        "lr": 0.1,
        "alpha": 0.9,
        "eps": 0.1,
        "weight_decay": 0.0,
        "foreach": None,
    }
    group = {**numbers, "params": [0], "param_names": ["w"], **group}
    return as_torch(pickle.dumps({"state": {}, "param_groups": [group]}, 2))


@functools.cache
def bomb() -> bytes:
    """200 MB of zeros in 200 kB."""
    return zip_of({"a/data.pkl": bytes(2 * 10**8)}, compressed=True)


TORCH: dict[str, tuple[str, Any]] = {
    "a zip file of zeros": ("made to fill the memory", bomb),
    "a .pth of zeros": (
        "made to fill the memory",
        lambda: bomb().replace(b"a/data.pkl", b"policy.pth"),
    ),
    "a zip file of zeros in a zip file": (
        "made to fill the memory",
        lambda: zip_of({"a.pth": bomb()}),
    ),
    "6,000 storages, each as large as the file": (
        "the last tensors are missing",
        legacy_of_storages(6000, 2**18),
    ),
    "a storage of 2⁴⁶ numbers": (
        "last tensors are missing",
        legacy_of_storages(1, 2**45),
    ),
    "a list of storages that is not one": (
        "its list of storages",
        as_legacy(as_pickle(b"]"), ["0"]),
    ),
    "a name that is not UTF-8": (
        "codec can't decode",
        zip_with(
            [
                (b"archive/data/0", b"archive/data/\xff"),
                (CENTRAL, CENTRAL[:-1] + b"\x08"),
            ]
        ),
    ),
    "zip version 9.9": (
        "zip file version 9.9",
        zip_with([(CENTRAL, CENTRAL[:6] + b"\x63" + CENTRAL[7:])]),
    ),
    "an encrypted member": (
        "is encrypted",
        zip_with([(CENTRAL, CENTRAL[:-2] + b"\x01\x00")]),
    ),
    "100,000 equal parameters": (
        "parameter 0 is in 100000",
        state_dict(params=[0] * 10**5, param_names=["w"] * 10**5),
    ),
    "a learning rate of 10⁴⁰⁰": ("'lr' in group 0", state_dict(lr=10**400)),
    "a negative learning rate": ("'lr' in group 0", state_dict(lr=-1.0)),
    "an alpha of 2": ("'alpha' in group 0.*at most 1", state_dict(alpha=2.0)),
    "a momentum of NaN": ("'momentum' in group 0", state_dict(momentum=float("nan"))),
    "a flag of text": ("'centered' in group 0", state_dict(centered="yes")),
    "lists that hold a list twice, 40 deep": (
        "must be the state_dict",
        as_torch(
            as_pickle(
                b"]q\x00"
                + b"".join(b"](h%ch%cEq%c" % (i, i, i + 1) for i in range(40)).replace(
                    b"E", b"e"
                )
            )
        ),
    ),
}


@pytest.mark.parametrize("what", TORCH)
def test_files_of_torch(what, reader, tmp_path):
    match, content = TORCH[what]
    path = tmp_path / "file"
    path.write_bytes(content() if callable(content) else content)
    outcome = reader.read(path, "from_torch")
    assert outcome.kind == "refused", outcome
    assert re.search(match, outcome.detail), outcome
    for function in ("read", "load_weights"):
        assert reader.read(path, function).kind in ("read", "refused")


@pytest.mark.parametrize("step", [-5, 1.5, float("nan"), True, "1"])
def test_steps_that_cannot_be(step, tmp_path):
    state = {"step": step, "square_avg": np.ones(1)}
    with pytest.raises(ValueError, match="'step' of parameter 'w' must be a whole"):
        checkpoints.from_torch(whole_state(state))


@pytest.mark.parametrize("step", [2**31, 2.0**40, float("inf"), np.float32(2**31)])
def test_steps_beyond_int32_stay_at_the_largest(step):
    state = {"step": step, "square_avg": np.ones(1)}
    _, opt_state = checkpoints.from_torch(whole_state(state))
    assert opt_state.count == 2**31 - 1


@pytest.mark.parametrize("nu", [[-1.0], [float("nan")], [1], ["a"], [None]])
def test_second_moments_that_cannot_be(nu):
    with pytest.raises(ValueError, match="'square_avg' of parameter 'w' must"):
        checkpoints.from_torch(whole_state({"step": 1, "square_avg": np.array(nu)}))


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    numbers = {
        "lr": 0.1,
        "alpha": 0.9,
        "eps": 0.1,
        "weight_decay": 0.0,
        "foreach": None,
    }
    group = {**numbers, "params": [0], "param_names": ["w"]}
    return {"state": {0: state}, "param_groups": [group]}


# --- HDF5.


def weights_h5(change: Any) -> bytes:
    """A ``.weights.h5`` of one variable, changed."""
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        root["optimizer/vars/0"] = 7
        root["optimizer/vars/1"] = 0.5
        root["optimizer/vars/2"] = np.ones(2, np.float32)
        root["layers/dense/vars/0"] = np.ones(2, np.float32)
        change(root)
    return file.getvalue()


def link(path: str, target: Any) -> Any:
    def change(root: Any) -> None:
        if path in root:
            del root[path]
        root[path] = target

    return change


def nest(root: Any) -> None:
    root["a" + "/a" * 5000 + "/b"] = 1


def link_twice(root: Any) -> None:
    group = root.create_group("g")
    for _ in range(30):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def declare(**options: Any) -> Any:
    def change(root: Any) -> None:
        del root["optimizer/vars/2"]
        root.create_dataset("optimizer/vars/2", (10**9,), "f4", **options)

    return change


def deflate(stored: bytes) -> bytes:
    """A file with a moment whose one chunk is stored as these bytes."""

    def change(root: Any) -> None:
        del root["optimizer/vars/2"]
        options = {"chunks": (2,), "compression": "gzip"}
        moment = root.create_dataset("optimizer/vars/2", (2,), "f4", **options)
        moment.id.write_direct_chunk((0,), stored)

    return weights_h5(change)


def declare_chunk(size: int) -> bytes:
    """Let the chunk of a moment declare how many bytes it takes in the file."""
    stored = zlib.compress(np.ones(2, "f4").tobytes())
    content = deflate(stored)
    # The size, the mask of filters, and where it begins in two axes; in the file's only
    # tree of chunks, which has the type 1.
    start = content.index(b"TREE\1")
    declared = content.index(struct.pack("<IIQQ", len(stored), 0, 0, 0), start)
    return content[:declared] + struct.pack("<I", size) + content[declared + 4 :]


def virtual(root: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,))
    root.create_virtual_dataset("v", layout)


def replace(value: Any, path: str = "optimizer/vars/2") -> Any:
    return link(path, np.asarray(value))


def damage_heap(content: bytes, index: int, size: int) -> bytes:
    """Set what the first object in a heap of strings says of itself."""
    start = content.index(b"GCOL") + 16
    changed = struct.pack("<HHIQ", index, 0, 0, size)
    return content[:start] + changed + content[start + 16 :]


def damage_names(content: bytes) -> bytes:
    """Let the first heap of names declare that it takes 4 GB."""
    start = content.index(b"HEAP") + 8
    return content[:start] + struct.pack("<Q", 2**32) + content[start + 8 :]


def narrow_addresses(content: bytes) -> bytes:
    return content[:13] + b"\4" + content[14:]


def strings(root: Any) -> None:
    root.attrs["layer_names"] = np.array(["a", "b"], dtype=h5py.string_dtype())


def many_attributes(root: Any) -> None:
    group = root.create_group("g", track_order=True)
    for i in range(100):
        group.attrs[f"weight_names{i}"] = np.array([b"a"])


OUTSIDE = h5py.ExternalLink("/etc/passwd", "/x")
HDF5 = {
    f"{path} in another file": ("is a link", weights_h5(link(path, OUTSIDE)))
    for path in ("optimizer", "optimizer/vars", "optimizer/vars/2", "layers/dense/vars")
} | {
    "a soft link": ("is a link", weights_h5(link("x", h5py.SoftLink("/optimizer")))),
    "bytes in another file": (
        "are in another file",
        weights_h5(declare(external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])),
    ),
    "a virtual dataset": ("are in another file", weights_h5(virtual)),
    "a rare filter": ("an unsupported filter", weights_h5(declare(compression="lzf"))),
    "10⁹ numbers that nobody wrote": ("fewer bytes", weights_h5(declare())),
    "10⁹ numbers in no chunk": ("fewer bytes", weights_h5(declare(chunks=(1024,)))),
    "10⁹ numbers, compressed to nothing": (
        "made to fill the memory",
        weights_h5(declare(chunks=(2**20,), compression="gzip")),
    ),
    "a chunk of 64 MB, deflated": (
        "more bytes than it declares",
        deflate(zlib.compress(bytes(2**26))),
    ),
    "a chunk of 4 GB, by its own account": (
        "it ends at byte",
        declare_chunk(2**32 - 8),
    ),
    "a chunk that is not deflated": ("incorrect header check", deflate(b"abcdefgh")),
    "5,000 levels": ("levels deep", weights_h5(nest)),
    "2³⁰ ways to a group": ("in the file twice", weights_h5(link_twice)),
    "a heap with free space of no size": (
        "has no string of",
        damage_heap(weights_h5(strings), 0, 0),
    ),
    "a heap with a size that wraps around": (
        "does not end in its heap",
        damage_heap(weights_h5(strings), 1, 2**64 - 18),
    ),
    "a heap with an object beyond its end": (
        "does not end in its heap",
        damage_heap(weights_h5(strings), 1, 2**20),
    ),
    "a heap of names of 4 GB": (
        "larger than the file",
        damage_names(weights_h5(strings)),
    ),
    "addresses of 4 bytes": (
        "addresses have 8 bytes",
        narrow_addresses(weights_h5(strings)),
    ),
    "a link to itself": (
        "in the file twice",
        weights_h5(lambda root: link("x", root)(root)),
    ),
    "a hundred attributes in a heap": (
        "outside their object",
        weights_h5(many_attributes),
    ),
    "a name that is not UTF-8": (
        "is not text in UTF-8",
        weights_h5(lambda root: root.attrs.create("layer_names", np.array([b"\xff"]))),
    ),
    "text in place of a moment": (
        "must hold|not hold numbers",
        weights_h5(replace([b"a", b"b"])),
    ),
    "integers in place of a moment": (
        "must hold floating-point",
        weights_h5(replace([1, 2])),
    ),
    "a negative moment": ("must not be negative", weights_h5(replace([-1.0, 1.0]))),
    "a step of −5": (
        "whole number of iterations",
        weights_h5(replace(-5, "optimizer/vars/0")),
    ),
    "a learning rate of NaN": (
        "'learning_rate' in .* must be a finite number",
        weights_h5(replace(np.nan, "optimizer/vars/1")),
    ),
}


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("version", ["earliest", "v108", "latest"])
def test_text_in_hdf5_is_what_h5py_reads(version, track_order):
    """In the object headers of both kinds, and where a header has a second part."""
    file = io.BytesIO()
    texts = {
        "name": "é" * 3000,
        "backend": "",
        "layer_names": np.array([b"abc", b"d"]),
        "weight_names0": np.array([], "S3"),
        "weight_names1": np.array(["x", "yé"], h5py.string_dtype()),
    } | {f"weight_names{i}": np.array([b"x" * 1000] * 8) for i in (2, 3)}
    with h5py.File(file, "w", libver=version, track_order=track_order) as root:
        root.attrs["another"] = np.arange(3.0)
        for name, value in texts.items():
            root.attrs[name] = value
        low_level: Any = h5py
        address = low_level.h5o.get_info(root.id).addr
        values: dict[str, Any] = {name: root.attrs[name] for name in texts}
    data = file.getvalue()
    kinds = {name.rstrip("0123456789") for name in texts}
    reader = AttributeReader(io.BytesIO(data), len(data), Budget(len(data)))
    found = reader.read_texts(address, kinds)
    assert found == {
        name: [x if isinstance(x, bytes) else x.encode() for x in np.ravel(value)]
        for name, value in values.items()
    }


SETTINGS = {
    "names": ["w"],
    "rho": 0.9,
    "momentum": 0.0,
    "epsilon": 0.0,
    "centered": False,
    "weight_decay": 0.0,
}


@pytest.mark.parametrize("what", HDF5)
def test_hdf5(what, reader, tmp_path):
    match, content = HDF5[what]
    path = tmp_path / "file.weights.h5"
    path.write_bytes(content)
    outcome = reader.read(path, "from_keras", **SETTINGS)
    assert outcome.kind == "refused", outcome
    assert re.search(match, outcome.detail), outcome
    assert reader.read(path, "load_weights").kind == "refused"


def test_big_endian_numbers_are_read(tmp_path):
    path = tmp_path / "file.weights.h5"
    path.write_bytes(weights_h5(replace(np.array([3, 1], ">f4"))))
    _, opt_state = checkpoints.from_keras(path, **SETTINGS)
    assert opt_state.nu["w"].tolist() == [3, 1]


CONFIGS: dict[str, tuple[str, Any]] = {
    "a rho of 2": ("'rho' in .* at most 1", {"rho": 2.0}),
    "a negative momentum": ("'momentum' in", {"momentum": -0.5}),
    "an epsilon of text": ("'epsilon' in", {"epsilon": "small"}),
    "a flag that is a number": ("'centered' in .* True or False", {"centered": 1}),
    "steps of accumulation that are not whole": (
        "'gradient_accumulation_steps' in",
        {"gradient_accumulation_steps": 1.5},
    ),
    "a schedule without its numbers": (
        "'decay_steps' of the CosineDecay in .* positive",
        {
            "learning_rate": {
                "class_name": "CosineDecay",
                "config": {"initial_learning_rate": 0.1, "alpha": 0.0},
            }
        },
    ),
    "a schedule that divides by 0": (
        "The InverseTimeDecay in .*: decay_steps must be .* at least 1, but it was 0",
        {
            "learning_rate": {
                "class_name": "InverseTimeDecay",
                "config": {
                    "initial_learning_rate": 0.1,
                    "decay_rate": 0.1,
                    "decay_steps": 0,
                },
            }
        },
    ),
    "a schedule of more boundaries than values": (
        "The PiecewiseConstantDecay in .*: values must be one more than the bound",
        {
            "learning_rate": {
                "class_name": "PiecewiseConstantDecay",
                "config": {"boundaries": [1, 2], "values": [0.1]},
            }
        },
    ),
    "a schedule that is not one": (
        "must have a number or a schedule as its learning rate",
        {"learning_rate": {"class_name": []}},
    ),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_settings_of_keras(what, reader, tmp_path):
    match, settings = CONFIGS[what]
    path = unpack(".keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["compile_config"]["optimizer"]["config"] |= settings
    members["config.json"] = json.dumps(config).encode()
    path.write_bytes(zip_of(members))
    outcome = reader.read(path, "from_keras", names=["w"])
    assert outcome.kind == "refused", outcome
    assert re.search(match, outcome.detail), outcome


def test_settings_that_fill_the_memory(reader, tmp_path):
    """Each value in JSON takes more memory than bytes, and bytes compress well."""
    bomb = b'{"learning_rate": [' + b"[]," * 2**22 + b"[]]}"
    for name, member, function, kind in (
        (".keras", "config.json", "from_keras", "refused"),
        ("stable_baselines3", "data", "from_stable_baselines3", "read"),
    ):
        path = unpack(name, tmp_path)
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        path.write_bytes(zip_of(members | {member: bomb}, compressed=True))
        outcome = reader.read(path, function)
        assert outcome.kind == kind, outcome
        assert kind == "read" or "to fill the memory" in outcome.detail


# --- TensorFlow.


def message(**fields: Any) -> bytes:
    """A protobuf message: a field's number is the one in its name."""
    made = b""
    for field, value in fields.items():
        number = int(field.strip("f"))
        if isinstance(value, int):
            made += mutations.varint(number << 3) + mutations.varint(value)
        else:
            made += mutations.varint(number << 3 | 2)
            made += mutations.varint(len(value)) + value
    return made


HEADER = message(f1=1)


def growing_keys(count: int) -> bytes:
    """An index in which each key is longer by a letter than the one before."""
    entries = b"".join(
        mutations.varint(n) + b"\x01" + b"\x00" + b"a" for n in range(count)
    )
    return mutations.write_table([entries])


def same_block(count: int) -> bytes:
    entry = b"\0\x01\x00a"
    return mutations.write_table([entry], repeat=count)


def index_of(*entries: tuple[bytes, bytes]) -> bytes:
    return mutations.write_entries([*entries])


def float_entry(**more: Any) -> bytes:
    shape = message(f2=message(f1=2))
    return message(f1=1, f2=shape, f4=0, f5=8, f6=0, **more)


def chained_objects(count: int) -> tuple[bytes, bytes]:
    """An index and the data of a chain of objects."""
    child = [message(f1=message(f1=n + 1, f2=b"x")) for n in range(count - 1)]
    graph = b"".join(message(f1=node) for node in [*child, b""])
    return mutations.write_string("_CHECKPOINTABLE_OBJECT_GRAPH", graph, HEADER)


TENSORFLOW: dict[str, tuple[str, bytes]] = {
    "keys that grow by prefixes": ("grow too long", growing_keys(20_000)),
    "a block named 20,000 times": ("a block twice", same_block(20_000)),
    "2³¹ files": (
        "is in a file that there is not|is missing",
        index_of((b"", message(f1=2**31)), (b"w", float_entry(f3=2**30))),
    ),
    "a number of a megabyte": (
        "longer than 64 bits",
        index_of((b"", HEADER), (b"w", b"\x08" + b"\xff" * 2**20)),
    ),
    "the order of another machine": (
        "in the order of another machine",
        index_of((b"", message(f1=1, f2=1)), (b"w", float_entry())),
    ),
    "a shape of 2⁶² numbers": (
        "too large",
        index_of(
            (b"", HEADER),
            (b"w", message(f1=1, f2=message(f2=message(f1=2**62)), f5=8)),
        ),
    ),
    "a file that is not there": (
        "is missing",
        index_of((b"", HEADER), (b"w", float_entry())),
    ),
    "a key that is not UTF-8": (
        "not UTF-8",
        index_of((b"", HEADER), (b"\xff\xfe", float_entry())),
    ),
    "an empty message": ("", index_of((b"", b""))),
    "text as a number": (
        "in its field 1",
        index_of((b"", HEADER), (b"w", message(f1=b"abc"))),
    ),
}


@pytest.mark.parametrize("what", TENSORFLOW)
def test_indices_of_tensorflow(what, reader, tmp_path):
    match, content = TENSORFLOW[what]
    path = tmp_path / "model.index"
    path.write_bytes(content)
    for function in ("from_tensorflow", "load_weights"):
        outcome = reader.read(path, function)
        assert outcome.kind in (("refused",) if match else ("refused", "read")), outcome
        assert re.search(match, outcome.detail), outcome


@pytest.mark.parametrize("count", [2_000, 100_000])
def test_a_chain_of_objects(count, reader, tmp_path):
    index, data = chained_objects(count)
    (tmp_path / "model.index").write_bytes(index)
    (tmp_path / "model.data-00000-of-00001").write_bytes(data)
    outcome = reader.read(tmp_path / "model", "from_tensorflow")
    assert outcome.kind == "refused", outcome
    assert "optimizer must name one RMSprop" in outcome.detail


# --- Checksums.


CHECKED = [
    "torch",
    "timm",
    "stable_baselines3",
    ".keras",
    "tf.train.Saver",
    "tf.train.Checkpoint",
]


@pytest.mark.parametrize("name", CHECKED)
def test_a_flipped_bit_in_the_numbers_is_found(name, reader, tmp_path):
    """Of the formats that have checksums; of the others the documentation says so."""
    checked = Reader(name)
    path = unpack(name, tmp_path)
    path = tmp_path / (*FORMATS[name].beside, path.name)[0]
    whole = path.read_bytes()
    pick = random.Random(0)
    found = 0
    for place in places_of_numbers(whole, pick):
        changed = bytearray(whole)
        changed[place] ^= 1 << pick.randrange(8)
        path.write_bytes(changed)
        outcomes = checked.read_folder(tmp_path)
        # A function that does not take these numbers returns what it returned before.
        for outcome, before in zip(outcomes, checked.whole, strict=True):
            assert outcome.kind == "refused" or outcome == before, place
        found += outcomes != checked.whole
    assert found > 15
    checked.close()


def places_of_numbers(content: bytes, pick: random.Random) -> list[int]:
    """20 places in the arrays of a file."""
    if not content.startswith(b"PK"):
        return [pick.randrange(len(content)) for _ in range(20)]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = [
            info
            for info in archive.infolist()
            if "/data/" in info.filename or info.filename.endswith((".pth", ".h5"))
        ]
    places: list[int] = []
    while len(places) < 20:
        info = pick.choice(infos)
        names = content[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", names))
        places.append(start + pick.randrange(info.compress_size))
    return places


# --- Not files.


def test_only_regular_files_are_read(reader, tmp_path):
    """Reading a pipe would wait forever, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        outcome = reader.read(path)
        assert outcome.kind == "refused"
        assert "is not a regular file" in outcome.detail
    outcome = reader.read(tmp_path)
    assert "or a folder that torch.distributed.checkpoint wrote" in outcome.detail


def test_one_boundary_says_what_nobody_foresaw(tmp_path):
    """It chains the cause. The fuzzer takes it for a fault of ours."""
    with (
        pytest.raises(
            source.UnforeseenError, match=r"'x' can't be read, because .*KeyError: 'k'"
        ) as e,
        source.explain_errors("x"),
    ):
        raise KeyError("k")
    assert isinstance(e.value.__cause__, KeyError)


# --- Whole files, changed.


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_changed_files(name):
    """Refused with a sentence that names the file, or read; nothing else.

    ``python -m support.strangers 2000``, with tests/ on the path, tries many more.
    """
    changed = Reader(name)
    for seed in range(150):
        outcomes = changed.read_changed(seed)
        assert describe(outcomes, changed.whole) in (
            "refused",
            "the same",
            "another",
        ), (
            seed,
            outcomes,
        )
    changed.close()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 9])
def test_a_number_that_goes_beyond_the_end_of_its_bytes(data):
    with pytest.raises(DamagedError, match="beyond the end"):
        tensor_bundle._decode_varint(data, 0)


def test_heaps_are_found_wherever_a_piece_of_the_file_ends(monkeypatch):
    monkeypatch.setattr(keras_h5, "_PIECE", 32)
    head = b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08" + bytes(49)
    for offset in range(80):
        for size, is_refused in ((200, False), (2**40, True)):
            heap = b"HEAP\0\0\0\0" + size.to_bytes(8, "little")
            content = head + bytes(offset) + heap + bytes(150 - offset)
            part = source.Source(Path("x"), content)
            if is_refused:
                with pytest.raises(DamagedError, match="a heap of names is larger"):
                    keras_h5._check_layout(part)
            else:
                keras_h5._check_layout(part)
