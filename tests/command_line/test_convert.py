"""What `rmsprop-jax convert` writes is read back to the bit, or nothing is written."""

import os
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded.record_runs import FILES
from support.recorded_files import KINDS, RECORDED

from rmsprop_jax._cli import writing
from rmsprop_jax.checkpoints import load_weights

ENDINGS = {"npz": ".npz", "safetensors": ".safetensors", "orbax": ""}
# Orbax takes its time, so each kind of state is written once.
OF_ORBAX = [
    "torch",
    "torch before 1.6",
    "keras_jax/all.keras",
    "tensorflow/plain.index",
]
QUICK = ["torch", "keras_jax/all.keras"]
CASES = [
    pytest.param(
        form,
        name,
        marks=[] if name in (KINDS if form == "npz" else QUICK) else [pytest.mark.slow],
    )
    for form in ENDINGS
    for name in RECORDED
    if form != "orbax" or name in OF_ORBAX
]
TORCH = FILES / "torch.pt"


@pytest.fixture
def wide():
    """float64, so that nothing is rounded; restored even where a test fails."""
    jax.config.update("jax_enable_x64", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_enable_x64", False)


def exec_printed(lines, namespace):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(lines, "printed", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(("form", "name"), CASES)
def test_and_back(form, name, folders, run, tmp_path, wide):
    """By the lines that both commands print, one after the other."""
    path = RECORDED[name].path(folders)
    out = tmp_path / f"out{ENDINGS[form]}"
    inspected = run("inspect", path)[1].partition("# Python\n")[2]
    made = exec_printed(inspected, {})
    # A .weights.h5 of tf_keras does not say which layer is which.
    has_weights = "params" in made
    code, lines, err = run(
        "convert", path, out, "--to", form, *["--weights"][:has_weights]
    )
    assert (code, err) == (0, "")
    if not has_weights:
        moment = made["opt_state"].nu
        made["params"] = jax.tree.map(jnp.zeros_like, moment)
    expected = made["opt_state"]
    found = exec_printed(lines, made)["opt_state"]
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    if has_weights:
        for weight, array in made["params"].items():
            back = np.asarray(made["weights"][weight])
            if form == "npz" and array.dtype == jnp.bfloat16:
                back = back.view(jnp.bfloat16)
            assert back.dtype == array.dtype
            np.testing.assert_array_equal(back, array)
    assert os.listdir(tmp_path) == [out.name]


def test_what_force_does_not_replace(run, tmp_path):
    """The checkpoint itself, a folder that has it, and one that is not orbax's."""
    folder = tmp_path / "run"
    (folder / "other").mkdir(parents=True)
    own = folder / "torch.pt"
    own.write_bytes(TORCH.read_bytes())
    for out, form in (
        (own, "npz"),
        (folder, "orbax"),
        (folder / "other", "orbax"),
        (folder / "other", "npz"),
    ):
        code, _, err = run("convert", own, out, "--to", form, "--force")
        assert code == 2
        assert "Write to another place" in err or "write to another place" in err
    assert own.read_bytes() == TORCH.read_bytes()
    assert (folder / "other").is_dir()
    assert "OUT must be the name" in run("convert", own, ".", "--to", "npz")[2]


@pytest.mark.parametrize("form", ENDINGS)
def test_nothing_is_replaced_without_force(form, run, tmp_path):
    out = tmp_path / "out"
    out.write_text("precious")
    code, _, err = run("convert", TORCH, out, "--to", form)
    assert code == 2
    assert "exists already. --force replaces it" in err
    assert out.read_text() == "precious"
    assert run("convert", TORCH, out, "--to", form, "--force")[0] == 0
    assert out.is_dir() == (form == "orbax")
    assert os.listdir(tmp_path) == ["out"]
    assert run("convert", TORCH, out, "--to", form, "--force")[0] == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failure_leaves_all_as_it_was(is_there, run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if is_there:
        out.write_text("precious")

    def fail(path, arrays, tree):
        path.write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setitem(writing.WRITERS, "npz", fail)
    code, _, err = run("convert", TORCH, out, "--to", "npz", "--force")
    assert code == 2
    assert "No space left on device" in err
    assert os.listdir(tmp_path) == (["out"] if is_there else [])
    assert not is_there or out.read_text() == "precious"


@pytest.mark.parametrize(
    ("signal", "is_clean"),
    [("SIGKILL", False), pytest.param("SIGTERM", True, marks=pytest.mark.slow)],
)
def test_a_process_that_is_killed(signal, is_clean, run, tmp_path):
    """Nothing can clean up after SIGKILL, but the next command."""
    out = tmp_path / "out"
    program = f"""
import os, signal, sys
from rmsprop_jax._cli import main, writing
def half(path, arrays, tree):
    path.write_text("half")
    os.kill(os.getpid(), signal.{signal})
writing.WRITERS["npz"] = half
main(sys.argv[1:])
"""
    argv = ["convert", str(TORCH), str(out), "--to", "npz"]
    done = subprocess.run([sys.executable, "-c", program, *argv], check=False)
    assert done.returncode != 0
    assert not out.exists()
    assert os.listdir(tmp_path) == ([] if is_clean else [".out.partial"])
    assert run(*argv)[0] == 0
    assert os.listdir(tmp_path) == ["out"]


def test_refuses_what_it_can_not_convert(run, tmp_path):
    for argv, says in (
        ([FILES / "paddle.pdparams", tmp_path / "x"], "holds no RMSProp's state"),
        ([FILES / "none", tmp_path / "x"], "There is no file"),
        ([TORCH, tmp_path / "none" / "x"], "There is no folder"),
    ):
        code, out, err = run("convert", *argv, "--to", "npz")
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_safetensors_own_reader_and_dtypes(tmp_path):
    """bfloat16 as it is, and what the format does not have is refused."""
    from safetensors.numpy import load_file

    arrays = {
        "a": np.arange(3, dtype=np.int32),
        "b": np.asarray(jnp.arange(4, dtype=jnp.bfloat16)).reshape(2, 2).T,
        "c": np.zeros((0, 2)),
        "d": np.float64(0.5) * np.ones(()),
    }
    path = tmp_path / "x.safetensors"
    writing.write_safetensors(path, arrays, {})
    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(found[name], x)
    with pytest.raises(
        ValueError, match="safetensors has no dtype complex128, which 'z'"
    ):
        writing.write_safetensors(path, {"z": np.ones(1, complex)}, {})


def test_missing_orbax_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    code, _, err = run("convert", TORCH, tmp_path / "out", "--to", "orbax")
    assert code == 2
    assert "pip install orbax-checkpoint" in err
    assert os.listdir(tmp_path) == []


def test_npz_is_not_pickled(run, tmp_path):
    out = tmp_path / "x.npz"
    assert run("convert", TORCH, out, "--to", "npz", "--weights")[0] == 0
    with np.load(out, allow_pickle=False) as found:
        assert {f"weights/{x}" for x in load_weights(TORCH)} < {*found}
        assert "opt_state/nu/dense.weight" in found
    with zipfile.ZipFile(out) as file:
        assert file.testzip() is None
