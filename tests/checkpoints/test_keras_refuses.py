"""Files and arguments that do not fit: a sentence each, nothing half-read."""

import json
import re
import shutil
import sys
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
from support.keras_files import from_keras, from_tensorflow, names_of

from rmsprop_jax import checkpoints
from rmsprop_jax.checkpoints._keras_family.bundle_slots import (
    find_object_weights,
    read_objects,
    read_saver,
)
from rmsprop_jax.checkpoints._readers.tensor_bundle import Bundle, Node, Slot

KERAS = {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-6, "centered": True}
KERAS |= {"weight_decay": 0.0}
TENSORFLOW = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, "epsilon": 1e-10}


@pytest.fixture
def run(files):
    """A run of Keras 3: its path without the ending, and its names."""
    folder = files / "keras_jax"
    return folder / "momentum-centered", names_of(folder, "momentum-centered")


@pytest.mark.parametrize(
    ("ending", "arguments", "sentence"),
    [
        (
            ".keras",
            {},
            "names must be given, .* has its variables by number",
        ),
        (".keras", {"names": ["a", "b"]}, "names must be those of the trainable"),
        (".keras", {"names": [1]}, "names must be strings"),
        (".keras", {"names": ["a", "a:0"]}, "names must all be different"),
        (
            ".keras",
            {"rho": 0.5},
            r"rho must be left out, .* has its own, 0\.9",
        ),
        (".keras", {"use_ema": True}, "use_ema must be left out"),
        (".keras", {"momentum": -1.0}, "momentum must be a finite number"),
        (
            ".weights.h5",
            {},
            "rho, momentum, epsilon, centered and weight_decay must be given, .* "
            r"does not hold them\. .*\(weight_decay=0 for none\)",
        ),
        (".weights.h5", KERAS | {"centered": False}, "check momentum and centered"),
        (".weights.h5", KERAS | {"momentum": 0}, "check momentum and centered"),
        (".weights.h5", KERAS | {"use_ema": True}, "and use_ema"),
        (
            ".weights.h5",
            KERAS | {"gradient_accumulation_steps": 2},
            "and gradient_accumulation_steps",
        ),
        (".h5", {"names": ["first/kernel"]}, "but one was 'first/kernel'"),
    ],
)
def test_arguments_that_do_not_fit(run, ending, arguments, sentence):
    path, names = run
    needs = ending != ".h5" and arguments and "names" not in arguments
    arguments = (
        {"names": names, **arguments} if needs or ending[1] == "w" else arguments
    )
    with pytest.raises((TypeError, ValueError), match=sentence):
        from_keras(f"{path}{ending}", **arguments)


def edited(run, tmp_path, edit):
    """A copy of a ``.h5``, after `edit` of its training_config."""
    path = tmp_path / "edited.h5"
    shutil.copy(f"{run[0]}.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(str(file.attrs["training_config"]))
        edit(config["optimizer_config"], file)
        file.attrs["training_config"] = json.dumps(config)
    return path


def change(**settings):
    def edit(optimizer, file):
        optimizer["config"].update(settings)

    return edit


def rename(optimizer, file):
    optimizer["class_name"] = "Adam"


def drop_state(optimizer, file):
    del file["optimizer_weights"]


def drop_count(optimizer, file):
    labels = file["optimizer_weights"].attrs["weight_names"]
    file["optimizer_weights"].attrs["weight_names"] = labels[2:]


def as_keras_2(first):
    """Before TensorFlow had it, Keras gave other names to the optimizer's variables."""

    def edit(optimizer, file):
        others = [f"training/RMSprop/Variable_{i}:0" for i in range(1, 4)]
        file["optimizer_weights"].attrs["weight_names"] = [first, *others]
        file.attrs["keras_version"] = "2.3.1"

    return edit


def link(kind):
    def edit(optimizer, file):
        group = file["optimizer_weights/rm_sprop"]
        del group["iteration"]
        group["iteration"] = (
            h5py.SoftLink("/model_weights")
            if kind == "soft"
            else h5py.ExternalLink("/etc/passwd", "/")
        )

    return edit


MINE = {"class_name": "Mine", "config": {}}


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (rename, "must be of Keras's RMSprop, but its optimizer was Adam"),
        (
            change(learning_rate=MINE),
            "learning_rate must be given, .* hold it",
        ),
        (drop_state, "must hold the optimizer's state, but it holds none"),
        (drop_count, "must have the optimizer's iteration among"),
        (as_keras_2("RMSprop/iterations:0"), "of standalone Keras 2.3.1, whose"),
        (as_keras_2("training/RMSprop/Variable:0"), "of standalone Keras 2.3.1, whose"),
        (change(centered=False), "names must be those of the trainable variables"),
        (
            link("soft"),
            "rm_sprop/iteration is a link, which may lead into another file",
        ),
        (
            link("external"),
            "rm_sprop/iteration is a link, which may lead into another file",
        ),
    ],
)
def test_files_of_others(run, tmp_path, edit, sentence):
    path = edited(run, tmp_path, edit)
    with pytest.raises(ValueError, match=sentence):
        from_keras(path)


def test_averages_over_the_weights_are_the_loops(files, tmp_path):
    path = tmp_path / "all.h5"
    shutil.copy(files / "keras_jax/all.h5", path)
    with h5py.File(path, "r+") as file:
        text = str(file.attrs["training_config"])
        before, after = (f'"ema_overwrite_frequency": {x}' for x in ("null", "100"))
        assert before in text
        file.attrs["training_config"] = text.replace(before, after)
    with pytest.raises(
        ValueError, match=r"use_ema must be True, to confirm .* every 100"
    ):
        from_keras(path)
    from_keras(path, use_ema=True, weight_decay_mask=True)


def test_clipnorm_is_of_each_variable(run, tmp_path):
    path = edited(run, tmp_path, change(clipnorm=1.0))

    def joined(weights):
        return {"all": np.concatenate([x.ravel() for x in weights.values()])}

    with pytest.raises(ValueError, match="to_params must make one leaf from each"):
        from_keras(path, joined)
    from_keras(path)


def test_files_that_are_cut_off(files, run, tmp_path):
    for ending in (".keras", ".h5", ".weights.h5"):
        path = tmp_path / f"cut{ending}"
        whole = run[0].with_name(run[0].name + ending).read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(
            ValueError, match="must be a complete file, but it is truncated"
        ):
            from_keras(path, names=run[1], **(KERAS if ending == ".weights.h5" else {}))
    source = files / "keras_tensorflow/all"
    for ending in (".index", ".data-00000-of-00001"):
        for at in (0, 100, 1000):
            for each in source.parent.glob("all.*"):
                shutil.copy(each, tmp_path)
            cut = tmp_path / f"all{ending}"
            cut.write_bytes(cut.read_bytes()[:at])
            with pytest.raises(
                ValueError, match="a complete file, but it is truncated"
            ):
                from_tensorflow(tmp_path / "all", **KERAS)


def test_a_zip_without_weights(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"its member 'model\.weights\.h5' is missing"):
        from_keras(path, names=["a"])


def test_without_h5py(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"read with h5py, .*: pip install h5py"):
        from_keras(f"{run[0]}.h5")


@pytest.mark.parametrize(
    ("ending", "arguments", "sentence"),
    [
        (".keras", {}, r"names=\[v\.path for v in model\.weights\]"),
        (
            ".keras",
            {"names": ["sequential/first/kernel"]},
            "names must be those of all",
        ),
        (".keras", {"names": ["second/kernel"]}, "does not say which layer it is"),
        (".keras", {"names": None, "ema": True}, "names must be given"),
        (".h5", {"ema": True}, "ema must be False, .* holds no averages"),
        (
            ".weights.h5",
            {"ema": True},
            "ema must be False, .* does not say whether",
        ),
    ],
)
def test_weights_that_are_not_there(run, ending, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        checkpoints.load_weights(f"{run[0]}{ending}", **arguments)


@pytest.mark.parametrize(
    ("path", "arguments", "sentence"),
    [
        ("tensorflow/plain", {}, "learning_rate, decay, momentum and epsilon must be"),
        (
            "tensorflow/plain",
            TENSORFLOW | {"rho": 0.9},
            "rho must be left out, .* is resumed as dialects.tensorflow, whose "
            "settings are learning_rate, decay, momentum, epsilon and centered",
        ),
        (
            "keras_legacy/plain",
            {},
            "epsilon must be given, .* does not hold it",
        ),
        (
            "keras_legacy/plain",
            {"epsilon": 1e-6, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps must be left out, .* no accumulated",
        ),
        ("keras_tensorflow/all", {}, "gradient_accumulation_steps must be given"),
        (
            "keras_tensorflow/all",
            {"count": 1},
            "count must be left out, .* own, 7",
        ),
        ("tensorflow/nothing", {}, r"but there is no '.*nothing\.index'"),
        ("tensorflow/plain", {"optimizer": "b"}, "optimizer must be left out"),
        (
            "tensorflow/plain",
            TENSORFLOW | {"centered": True},
            "centered must be left out, .* has its own, False, but it was True",
        ),
    ],
)
def test_checkpoints_that_lack_something(files, path, arguments, sentence):
    with pytest.raises((FileNotFoundError, ValueError), match=sentence):
        from_tensorflow(files / path, **arguments)


def array(*values) -> Any:
    return np.array(values, np.float32)


def test_a_saver_without_one_rmsprop():
    """Nor with two, whose slots nobody can tell apart; in scopes, with no step."""
    with pytest.raises(ValueError, match=r"but it has none\. It has"):
        read_saver("it", Bundle({"w": array(1), "w/Adam": array(1)}, []), 0)
    slots = {f"w/RMSProp{end}": array(n) for n, end in enumerate(("", "_1", "_2"))}
    two = {**slots, "v/RMSProp": array(1), "v/RMSProp_1": array(1)}
    with pytest.raises(ValueError, match=re.escape("(0, 1) and others have (0, 1, 2)")):
        read_saver("it", Bundle(two, []), 0)
    scoped = {"w": array(1), **{f"train/{key}": x for key, x in slots.items()}}
    with pytest.raises(ValueError, match=r"count must be given, .* has no 'global_"):
        read_saver("it", Bundle(scoped, []), None)
    with pytest.raises(ValueError, match=r"count must be left out, .* has its own, 4"):
        read_saver("it", Bundle({**scoped, "global_step": array(4)}, []), 3)
    saved: Any = read_saver("it", Bundle(scoped, []), 3)
    assert (saved.names, saved.iterations) == (["w"], 3)
    assert {m: float(x[0][0]) for m, x in saved.blocks.items()} == {
        "nu": 0,
        "grad_mean": 1,
        "mu": 2,
    }


def variable(name, key=None):
    return Node({}, key or f"{name}/.ATTRIBUTES/VARIABLE_VALUE", name, [])


def test_one_of_several_optimizers():
    """And of two variables with one name."""
    slots = [[Slot(1, "rms", 5), Slot(1, "momentum", 6)], [Slot(2, "rms", 6)]]
    nodes = [
        Node({"a": 3, "b": 4, "x": 1, "y": 2}, "", "", []),
        variable("w", "x/.ATTRIBUTES/VARIABLE_VALUE"),
        variable("w", "y/.ATTRIBUTES/VARIABLE_VALUE"),
        *(Node({}, "", "", of) for of in slots),
        variable("w/RMSProp"),
        variable("w/RMSProp_1"),
    ]
    arrays = {node.key: array(n) for n, node in enumerate(nodes) if node.key}
    with pytest.raises(ValueError, match=r"optimizer must name one .* \['a', 'b'\]"):
        read_objects("it", Bundle(arrays, nodes), None, 0)
    saved: Any = read_objects("it", Bundle(arrays, nodes), "b", 7)
    assert saved.names == ["w"]
    assert saved.iterations == 7
    assert [*saved.blocks] == ["nu"]
    assert [*find_object_weights(Bundle(arrays, nodes))] == ["x", "y"]
