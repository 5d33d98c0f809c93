"""Recorded in Keras by the recorder, on each backend, and found here.

Each backend has a process of its own, because a process has only one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.live
SCRIPT = Path(__file__).parents[1] / "support" / "keras_recording.py"
BACKENDS = ["jax", "tensorflow", "torch"]


@pytest.fixture(scope="module", params=BACKENDS)
def folder(request, tmp_path_factory):
    """The recordings of a backend."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = {
        "KERAS_BACKEND": request.param,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def facts(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_a_schedule_and_a_clip(folder, run):
    """Of a sample, with the norms of the whole gradients after the clip."""
    path = folder / "plain.npz"
    found = load(path)
    assert facts(path)["iterations"] == 77
    assert found["count"] == 0
    (first,) = (k for k in found if k.startswith("params/") and "first/kernel" in k)
    assert found[first].shape == (61, 34, 1)
    assert found["gradient_norms"].max() <= 0.50001
    rates = found["learning_rate"]
    np.testing.assert_allclose(rates[[0, 29, 30, 59]], [4e-3, 4e-3, 1e-3, 1e-3], 1e-6)
    made_by = json.loads(str(found["made_by"]))
    assert made_by["backend"] in BACKENDS
    assert made_by["optimizer"] == "RMSprop"
    code, out, _ = run("identify", path)
    assert code == 0
    assert "dialects.keras(" in out
    assert "rho=0.8, momentum=0.5, epsilon=0.001" in " ".join(out.split())


def test_steps_that_a_loss_scale_skips(folder, run):
    path = folder / "mixed_float16.npz"
    found = load(path)
    steps = len(found["learning_rate"])
    assert steps == 40
    # Some were skipped, and some came after the last one that was recorded.
    assert 40 < facts(path)["iterations"] < 57
    gradients = [x for k, x in found.items() if k.startswith("gradients/")]
    assert all(np.isfinite(x).all() for x in gradients)
    code, out, _ = run("identify", path)
    assert code == 0
    assert "dialects.keras(0.003, rho=0.8, momentum=0.5" in out


def test_bfloat16_is_stored_as_it_is(folder):
    found = load(folder / "bfloat16.npz")
    for name, x in found.items():
        if name.startswith("params/"):
            assert x.dtype == np.dtype("V2")
            assert len(x) == 11
            assert (x[0] != x[-1]).any()


def test_a_loop_of_ones_own(folder):
    """It compared the gradients itself."""
    path = folder / "own_loop.npz"
    found = load(path)
    assert found["count"] == 3
    assert f"params/{facts(path)['left_out']}" not in found
    assert sum(k.startswith("params/") for k in found) == 3
