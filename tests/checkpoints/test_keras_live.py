"""The real Keras and TensorFlow: files that they write now, in every combination.

N gradients there, the file, then M there and here.
"""

import json
import zipfile

import jax
import numpy as np
import pytest
from recorded.keras_runs import FRAMEWORKS
from recorded.record_keras_runs import FILE, RECORDED, make_apart
from support import keras_files, peers

pytestmark = pytest.mark.live
TOLERANCE = {
    "float32": 1e-6,
    "mixed_float16": 1e-6,
    "float64": 1e-12,
    "bfloat16": 0.0,
}


@pytest.fixture(scope="module", params=FRAMEWORKS)
def live(request, tmp_path_factory):
    """A framework, and the folder of files that it just wrote."""
    name = request.param
    peers.need(*FRAMEWORKS[name].packages)
    folder = tmp_path_factory.mktemp(name)
    make_apart(name, folder)
    return name, folder


@pytest.mark.usefixtures("x64")  # it resets what is changed here
def test_goes_on_here(live):
    framework, folder = live
    for dtype in keras_files.dtypes(folder):
        jax.config.update("jax_enable_x64", dtype == "float64")
        assert keras_files.check(framework, folder, dtype) <= TOLERANCE[dtype], dtype


def test_recorded_files_are_what_they_write(live, files):
    framework, folder = live
    recorded = files / framework
    infos = [json.loads((f / "info.json").read_text()) for f in (folder, recorded)]
    for name in RECORDED[framework]:
        one, other = (info["runs"][name] for info in infos)
        assert one == other
        with (
            np.load(folder / f"{name}.npz") as now,
            np.load(recorded / f"{name}.npz") as then,
        ):
            assert set(now) == set(then)
            for key in now:
                np.testing.assert_allclose(now[key], then[key], rtol=1e-5, atol=1e-7)
    with zipfile.ZipFile(FILE) as archive:
        written = {n for n in archive.namelist() if n.startswith(f"{framework}/")}
    assert written <= {f"{framework}/{path.name}" for path in folder.iterdir()}
