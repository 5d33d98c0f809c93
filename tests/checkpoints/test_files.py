"""Files are read without their framework, and never executed."""

import io
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import runs
from recorded.record_runs import FILES, PADDLE, RUNS

from rmsprop_jax import checkpoints
from rmsprop_jax.checkpoints import load_weights, read
from rmsprop_jax.checkpoints._readers import read_file
from rmsprop_jax.checkpoints._readers.source import StoredArray

CHECKPOINTS = [run.file for run in RUNS.values()]
FROM: dict[str, Any] = {
    "torch": checkpoints.from_torch,
    "timm": checkpoints.from_timm,
    "stable_baselines3": checkpoints.from_stable_baselines3,
    "paddle": lambda path: checkpoints.from_paddle(path, learning_rate=0.1, **PADDLE),
}


def refused(match, function, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
        function(*args, **kwargs)


# --- Pickles that would run something.


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def as_zip(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("archive/data.pkl", pickled)
    return file.getvalue()


def as_legacy(pickled):
    before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(x, 2) for x in before) + pickled + pickle.dumps([], 2)


def as_agent(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("policy.pth", as_zip(pickled))
    return file.getvalue()


FORMATS = {
    "torch": as_zip,
    "torch before 1.6": as_legacy,
    "stable_baselines3": as_agent,
    "paddle": lambda pickled: pickled,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch here"),
        Calls(subprocess.Popen, ["touch", "here"]),
        Calls(eval, "open('here', 'w')"),
        Calls(getattr, "here", "upper"),
        Calls(open, "here", "w"),
        Calls(np.save, "here", 1),
        Calls(shutil.copy, "archive", "here"),
    ],
    ids=lambda call: call.call[0].__name__,
)
def test_nothing_is_run(call, protocol, form, tmp_path, monkeypatch):
    """The rest of the file is read, and the call raises when it is used."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "archive"
    content = {"state": {0: {"square_avg": call}}, "epoch": 3}
    path.write_bytes(FORMATS[form](pickle.dumps(content, protocol)))
    found = read(path)
    found = found["policy.pth"] if form == "stable_baselines3" else found
    assert found["epoch"] == 3
    opaque = found["state"][0]["square_avg"]
    name = call.call[0].__name__
    assert re.fullmatch(rf"<[\w.]+\.{name}, which was not read>", repr(opaque))
    for use in (np.asarray, float, len, iter, bool, lambda x: x[0], lambda x: x()):
        refused(rf"\.{name}\) was not read.*Nothing in it was executed", use, opaque)
    assert os.listdir(tmp_path) == ["archive"]


# --- Files that are not whole, or another framework's.


@given(st.data())
def test_refuses_a_file_that_is_cut_off(tmp_path_factory, data):
    """Wherever it is cut, the file is named, and nothing else is raised."""
    name = data.draw(st.sampled_from([*CHECKPOINTS, "paddle.pdparams"]))
    content = (FILES / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(f"{name}' (must be a complete file|can't be read: it must be)", read, path)


def test_refuses_what_no_framework_wrote(tmp_path):
    refused("must be a file, or a folder that torch.distributed", read, tmp_path)
    for content, match in {
        b"": "but it is empty",
        b"hello, world": r"begins with b'hello, w'",
        b'\x20\0\0\0\0\0\0\0{"a":': "safetensors.numpy.load_file reads it",
        b"\x89HDF\r\n\x1a\n": "is one of keras: use from_keras",
    }.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        refused(match, read, path)
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("a.txt", "")
    refused(r"is a zip file of \['a.txt'\]", read, tmp_path / "zip")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_refuses_tensors_outside_of_their_memory(tmp_path):
    """As a file that was made by hand may have them."""
    with zipfile.ZipFile(FILES / "torch.pt") as file:
        members = {name: file.read(name) for name in file.namelist()}
    for name in members:
        if "/data/" in name:
            members[name] = members[name][: len(members[name]) // 2]
    path = tmp_path / "torch.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    refused("truncated or corrupted: .*does not fit its memory", read, path)


@pytest.mark.parametrize("framework", FROM)
@pytest.mark.parametrize("file", CHECKPOINTS)
def test_names_the_function_for_another_framework_s_file(framework, file):
    wrote = file.partition(".")[0].removesuffix("_legacy")
    # Stable-Baselines3's agents have torch's optimizer, too.
    if framework not in (wrote, {"torch": "stable_baselines3"}.get(wrote)):
        refused(f"use (from_torch or )?from_{wrote}", FROM[framework], FILES / file)


# --- What is in them.


def test_read_holds_what_was_saved():
    whole = read(FILES / "timm.pth.tar")
    assert (whole["epoch"], whole["args"].model) == (3, "layers")
    assert whole["state_dict"].keys() == runs.SHAPES.keys()
    assert whole["optimizer"]["state"][0]["square_avg"].dtype == np.float64


@pytest.mark.parametrize("name", RUNS)
def test_weights_have_the_names_that_to_params_gets(name):
    path = FILES / RUNS[name].file
    found = load_weights(path.with_suffix(".pdparams") if name == "paddle" else path)
    if name != "stable_baselines3":
        assert found.keys() == runs.SHAPES.keys()
    with np.load(FILES / f"{name}.npz") as after:
        for weight, array in found.items():
            shape = after[weight].shape
            assert array.shape == (shape[::-1] if name == "paddle" else shape)


def test_averages_where_the_file_keeps_them():
    path = FILES / "timm.pth.tar"
    averages, latest = load_weights(path, ema=True), load_weights(path)
    assert averages.keys() == latest.keys()
    whole = read(path)
    for name in latest:
        np.testing.assert_array_equal(averages[name], whole["state_dict_ema"][name])
        assert not np.array_equal(averages[name], latest[name])
    refused(
        "averaged weights .* holds none", load_weights, FILES / "torch.pt", ema=True
    )


@pytest.mark.parametrize("name", ["ema", "model_ema", "ema_state_dict"])
def test_averages_by_their_part_s_name(name):
    ones, twos = {"a": np.ones(1)}, {"a": np.full(1, 2.0)}
    checkpoint = {"schema": ones, name: twos}
    assert load_weights(checkpoint) == ones
    assert load_weights(checkpoint, ema=True) == twos


def test_weights_of_a_part():
    ones, twos = {"a": np.ones(1)}, {"a": np.full(1, 2.0)}
    checkpoint = {"generator": ones, "discriminators": [twos], "epoch": 3}
    refused(
        r"one model, but it holds \['generator'\], \['discriminators'\]\[0\]. Give",
        load_weights,
        checkpoint,
    )
    assert load_weights(checkpoint["discriminators"][0]) == twos
    refused("it holds none", load_weights, {"epoch": 3})
    refused("names must be left out", load_weights, ones, names=["a"])
    refused("must hold weights by name", load_weights, FILES / "paddle.pdopt")


def test_names_without_what_wrappers_add():
    """Of DistributedDataParallel only where all have it: a layer may be called so."""
    a, b = np.ones(1), np.ones(2)
    assert load_weights({"module.a": a, "module._orig_mod.b": b}).keys() == {"a", "b"}
    assert load_weights({"_orig_mod.module.a": a, "b": b}).keys() == {"module.a", "b"}


def test_bfloat16_of_paddle(tmp_path):
    """NumPy has no bfloat16, so Paddle saves the bits."""
    array = jax.random.normal(jax.random.key(0), (3,), jnp.bfloat16)
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({"w": np.asarray(array).view(np.uint16)}, 4))
    found = load_weights(path)["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_large_arrays_stay_in_a_pickle_until_they_are_read(protocol, tmp_path):
    """As Paddle's are; torch's are not in the pickle."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(200, 300)).astype(np.float32)
    content = {
        "c": wide,
        "fortran": np.asfortranarray(wide),
        "big_endian": wide.astype(">f4"),
        "bfloat16": np.asarray(jnp.asarray(wide, jnp.bfloat16)).view(np.uint16),
        "bytes": bytes(2**17),
        "bytearray": bytearray(2**17),
        "twice": [wide, wide],
    }
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps(content, protocol))
    lazy = read_file(path).content
    is_lazy = protocol > 2  # before, bytes were text
    assert isinstance(lazy["c"], StoredArray) == is_lazy
    found = read(path)
    assert (found["bytes"], found["bytearray"]) == (bytes(2**17), bytes(2**17))
    assert found["twice"][0] is not None
    for name in ("c", "fortran", "big_endian", "bfloat16"):
        np.testing.assert_array_equal(found[name], content[name])
        assert found[name].shape == content[name].shape
    np.testing.assert_array_equal(found["twice"][1], wide)
    del content["bytes"], content["bytearray"], content["twice"]
    path.write_bytes(pickle.dumps(content, protocol))
    weights = load_weights(path)
    assert weights["bfloat16"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(weights["fortran"], wide)
    path.write_bytes(pickle.dumps(content, protocol)[: -(2**18)])
    refused("truncated or corrupted", read, path)
