"""The real Keras and TensorFlow: files that they write now, in every combination.

N gradients there, the file, then M there and here.
"""

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from recorded.keras_runs import FRAMEWORKS
from recorded.record_keras_runs import FILE, RECORDED, make_apart
from support import keras_files
from support.untyped import from_keras

from rmsprop_jax.checkpoints import load_weights

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


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with files of models that have unusual layers."""
    folder = tmp_path_factory.mktemp("models")
    script = Path(keras_files.__file__).with_name("keras_models.py")
    subprocess.run(
        [sys.executable, script, folder],
        env={**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )
    return folder


@pytest.mark.parametrize("model", ["nested", "image", "frozen", "lora", "of_steps"])
def test_names_in_a_wrong_order(models, model):
    path, info = models / f"{model}.keras", _read_info(models, model)
    names, shapes = info["trainable"], info["shapes"]
    _, state = from_keras(path, names=names)
    assert [[*state.nu[name].shape] for name in names] == shapes
    refused = 0
    for seed in range(30):
        order = random.Random(seed).sample(range(len(names)), len(names))
        moved = [names[n] for n in order]
        if _list_by_layer(moved, shapes) != _list_by_layer(names, shapes):
            with pytest.raises(ValueError, match="names must be in the order"):
                from_keras(path, names=moved)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("model", ["nested", "image", "frozen", "of_steps", "tied"])
def test_weights_of_unusual_layers(models, model):
    names = _read_info(models, model)["all"]
    weights = load_weights(models / f"{model}.keras", names=names)
    with np.load(models / f"{model}.npz") as expected:
        for i, name in enumerate(names):
            np.testing.assert_array_equal(weights[name], expected[str(i)], name)


def test_a_layer_that_saves_itself(models):
    info = _read_info(models, "own")
    _, state = from_keras(models / "own.keras", names=info["trainable"])
    assert {*state.nu} == {*info["trainable"]}
    with pytest.raises(ValueError, match=r"names its variables, ..mine"):
        load_weights(models / "own.keras", names=info["all"])


def _read_info(folder, model):
    return json.loads((folder / f"{model}.json").read_text())


def _list_by_layer(names, shapes):
    """The shapes of each layer's variables; which of them is which, no file knows."""
    by_layer = {}
    for name, shape in zip(names, shapes, strict=True):
        by_layer.setdefault(name.rpartition("/")[0], []).append(shape)
    return by_layer
