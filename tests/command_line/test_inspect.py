"""What `rmsprop-jax inspect` prints is true, and its lines of Python run."""

import io
import json
import pickle
import sys
import warnings
import zipfile

import jax
import numpy as np
import pytest
from recorded.record_runs import FILES
from support.recorded_files import RECORDED, every_file
from support.screens import inspect_file, read_inspected

from rmsprop_jax._cli import terminal
from rmsprop_jax.checkpoints import from_keras, from_tensorflow
from rmsprop_jax.checkpoints._readers import source

INSPECTED = read_inspected()


def leaves_by_path(tree):
    """The leaves, whose paths have Keras's names without those of outer models."""
    found = {}
    for path, x in jax.tree.leaves_with_path(tree):
        *rest, last = path
        label = str(getattr(last, "key", last)).split("/")[-2:]
        found[jax.tree_util.keystr(tuple(rest)), *label] = np.asarray(x)
    return found


def lines_of(out):
    """The lines of Python at the end of what was printed."""
    return out.partition("# Python\n")[2]


def exec_lines(lines):
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(lines, "printed", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", every_file())
def test_printed_lines_resume_the_run(name, folders, run):
    """As they stand, but for what the file does not have."""
    recorded = RECORDED[name]
    path = recorded.path(folders)
    code, out, err = run("inspect", path)
    assert (code, err) == (0, "")
    lines = lines_of(out)
    exec_lines(lines)
    for printed, used in recorded.missing.items():
        assert printed in lines
        lines = lines.replace(printed, used)
    made = exec_lines(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, expected = recorded.resume(path.parent)
    if "tf_keras" in name and name.endswith(".weights.h5"):
        # The file calls the layers by their classes, and so do the lines.
        found, expected = (
            sorted(map(repr, jax.tree.leaves(tree)))
            for tree in (made["opt_state"], expected)
        )
        assert found == expected
        return
    found, expected = leaves_by_path(made["opt_state"]), leaves_by_path(expected)
    if name == "paddle":
        # There the caller says the count, which only a schedule needs.
        found = {k: x for k, x in found.items() if "count" not in str(k)}
        expected = {k: x for k, x in expected.items() if "count" not in str(k)}
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_array_equal(found[key], x)
    params = made["params"]
    structure = jax.tree.structure(jax.eval_shape(made["tx"].init, params))
    assert structure == jax.tree.structure(made["opt_state"])


@pytest.mark.parametrize("name", every_file())
def test_json_holds_what_is_printed(name, folders, run):
    path = RECORDED[name].path(folders)
    code, out, _ = run("inspect", path, "--json", "--statistics")
    found = json.loads(out)
    assert code == 0
    (optimizer,) = found["optimizers"]
    shapes = [x["shape"] for part in found["weights"] for x in part["arrays"].values()]
    assert all(isinstance(shape, list) for shape in shapes)
    text = run("inspect", path, "--all", "--statistics")[1]
    assert f"optimizer: {optimizer['name']}" in text
    for parameter in optimizer["parameters"]:
        for moment in parameter["moments"]:
            numbers = parameter["statistics"][moment]
            assert numbers["size"] == np.prod(parameter["shape"], dtype=int)
            assert numbers["nan"] == 0
            assert f"{numbers['rms']:.3g}" in text
    assert lines_of(text).strip() == found["python"].strip()
    assert all(len(line) <= 88 for line in text.splitlines() if "path" not in line)


@pytest.mark.parametrize("name", every_file())
def test_prints_what_is_recorded(name, folders):
    """Write it anew with `PYTHONPATH=tests python tests/support/screens.py`."""
    assert inspect_file(name, folders) == INSPECTED[name]


@pytest.mark.parametrize("name", every_file())
def test_no_tensor_is_read(name, folders, run, monkeypatch):
    """But for single numbers: counts and learning rates.

    Stable-Baselines3's own optimizer has no keys that tell it from an old torch's, but
    values; they are looked for in the smallest tensors first.
    """
    read = source.StoredArray.read

    def read_number(array, *rows, **options):
        assert np.prod(array.shape) == 1 or name == "stable_baselines3", array
        return read(array, *rows, **options)

    monkeypatch.setattr(source.StoredArray, "read", read_number)
    assert run("inspect", RECORDED[name].path(folders))[0] == 0


# --- Files of torch, written without it: its reader takes NumPy's arrays as well.

NUMBERS = {"alpha": 0.75, "eps": 0.0, "weight_decay": 0, "foreach": None}


def group_of(*params, lr=0.5, **more) -> dict:
    return {"lr": lr, **NUMBERS, **more, "params": [*params]}


def buffers(*shape, step=8):
    return {"step": step, "square_avg": np.ones(shape, np.float32)}


@pytest.fixture
def write(tmp_path):
    """Write a file like torch's, and return its path."""

    def write(content, name="run.pt"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(content, 2))
        return path

    return write


def one_group(**more):
    """A checkpoint of two parameters, whose names the optimizer has."""
    group = group_of(0, 1, param_names=["w", "b"], **more)
    state = {0: buffers(3, 2), 1: buffers(3)}
    weights = {"w": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32)}
    return {"model": weights, "optimizer": {"state": state, "param_groups": [group]}}


STEP_LR = {"step_size": 2, "gamma": 0.5, "base_lrs": [8.0], "_step_count": 1}


@pytest.mark.parametrize(
    ("last_epoch", "lr", "argument"),
    [
        (8, 0.5, "learning_rate='checkpoint'"),
        (2, 4.0, "updates_per_step=4"),
        (3, 4.0, "offset=-5"),
        (10, 0.25, "offset=2"),
        (0, 8.0, "updates_per_step=9"),
    ],
)
def test_lines_resume_the_scheduler(last_epoch, lr, argument, write, run):
    checkpoint = one_group(lr=lr, initial_lr=8.0)
    scheduler = STEP_LR | {"last_epoch": last_epoch, "_last_lr": [lr]}
    out = run("inspect", write(checkpoint | {"lr_schedulers": [scheduler]}))[1]
    assert (
        f"after {last_epoch} steps: step_lr(8.0, step_size=2, gamma=0.5)"
        in " ".join(out.split())
    )
    lines = lines_of(out)
    assert argument in lines
    made = exec_lines(lines)
    ones = jax.tree.map(np.ones_like, made["opt_state"].nu)
    updates, _ = made["tx"].update(ones, made["opt_state"], ones)
    np.testing.assert_allclose(updates["b"], -lr, rtol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (
            {"lr_lambdas": [None], "base_lrs": [8.0], "last_epoch": 8},
            "pass it: learning_rate=schedules.lambda_lr(8, lr_lambda)",
        ),
        (None, "the file does not have that scheduler"),
    ],
)
def test_lines_say_what_a_scheduler_lacks(scheduler, says, write, run):
    """A function that torch does not store, or a scheduler that was not saved."""
    checkpoint = one_group(initial_lr=8.0, max_momentum=0.5, momentum=0.25)
    for buffer in checkpoint["optimizer"]["state"].values():
        buffer["momentum_buffer"] = buffer["square_avg"]
    if scheduler:
        checkpoint["scheduler"] = scheduler | {"_last_lr": [0.5]}
    out = " ".join(run("inspect", write(checkpoint))[1].split())
    assert says in out
    lines = lines_of(run("inspect", write(checkpoint))[1])
    assert "learning_rate=0.5,\n    momentum=0.25," in lines
    assert "give the schedule" in " ".join(lines.split())
    exec_lines(lines)


def test_unused_weights_are_left_out(write, run):
    checkpoint = one_group()
    checkpoint["model"] |= {f"bn.running_{x}": np.ones(3) for x in ("mean", "var")}
    lines = lines_of(run("inspect", write(checkpoint))[1])
    assert "not_trained = ('running_mean', 'running_var')" in lines
    assert [*exec_lines(lines)["params"]] == ["w", "b"]
    checkpoint["model"]["x.b"] = checkpoint["model"]["y.b"] = np.ones(3)
    checkpoint["model"]["z.b"] = np.ones(3)
    lines = lines_of(run("inspect", write(checkpoint))[1])
    assert [*exec_lines(lines)["params"]] == ["w", "b"]


def test_names_that_the_shapes_do_not_tell(write, run):
    """Two groups of equal shapes: the numbers of the file take the place of names."""
    checkpoint = one_group()
    state = {i: buffers(3) for i in range(4)}
    groups = [group_of(0, 1), group_of(2, 3, lr=0.25)]
    checkpoint["optimizer"] = {"state": state, "param_groups": groups}
    checkpoint["model"] = {x: np.ones(3, np.float32) for x in "abcd"}
    lines = lines_of(run("inspect", write(checkpoint))[1])
    assert "names = ['0', '1', '2', '3']" in lines
    assert "give the model's names in this order" in " ".join(
        lines.replace("#", "").split()
    )
    assert exec_lines(lines)["opt_state"]
    # Of one group, the model's order is the only one.
    checkpoint["optimizer"]["param_groups"] = [group_of(0, 1, 2, 3)]
    lines = lines_of(run("inspect", write(checkpoint))[1])
    assert [*exec_lines(lines)["opt_state"].nu] == [*"abcd"]


def test_several_optimizers(write, run):
    checkpoint = {"g": one_group()["optimizer"], "d": one_group()["optimizer"]}
    code, out, _ = run("inspect", write(checkpoint))
    assert code == 0
    assert "optimizer in ['g']: torch.optim.RMSprop" in out
    parts = lines_of(out).split("\n\nfrom ")
    assert len(parts) == 2
    assert "from_torch(read(path)['d'])" in parts[1]
    exec_lines(lines_of(out))


@pytest.mark.parametrize(
    ("keys", "more", "name"),
    [
        (["exp_avg", "exp_avg_sq"], {"betas": (0.9, 0.999)}, "Adam"),
        (
            ["exp_avg", "exp_avg_sq"],
            {"betas": (0.9, 0.999), "decoupled_weight_decay": True},
            "AdamW",
        ),
        (["momentum_buffer"], {"nesterov": False}, "SGD"),
        (["exp_avg"], {"betas": (0.9, 0.99)}, "Lion"),
        (["sum"], {"lr_decay": 0}, "Adagrad"),
    ],
)
def test_other_optimizers(keys, more, name, write, run):
    """They are named, and shown, and the weights can be loaded."""
    checkpoint = one_group()
    state = {i: {k: np.ones(3) for k in keys} | {"step": 7} for i in range(2)}
    group = {"lr": 0.5, "weight_decay": 0, **more, "params": [0, 1]}
    checkpoint["optimizer"] = {"state": state, "param_groups": [group]}
    code, out, _ = run("inspect", write(checkpoint))
    assert code == 0
    assert f"optimizer: {name}\n" in out
    assert "step        7" in out
    assert all(key in out for key in keys)
    assert "it is not RMSProp's. You can still load" in " ".join(out.split())
    assert exec_lines(lines_of(out))["params"].keys() == {"w", "b"}
    del checkpoint["model"]
    out = run("inspect", write(checkpoint))[1]
    assert "it is not RMSProp's" in " ".join(out.split())
    assert "load_weights" not in out


def test_state_that_can_not_be_resumed_is_shown(write, run):
    checkpoint = one_group()
    del checkpoint["optimizer"]["state"][0]["square_avg"]
    code, out, _ = run("inspect", write(checkpoint))
    assert code == 0
    assert "It can't be resumed: '" in " ".join(out.split())
    assert "from_torch" not in lines_of(out)


def test_statistics_mark_what_is_not_finite(write, run):
    checkpoint = one_group()
    state = checkpoint["optimizer"]["state"]
    state[0]["square_avg"][1, 1] = np.nan
    state[1]["square_avg"][:] = 0
    out = run("inspect", write(checkpoint), "--statistics")[1]
    assert "1, 1 NaN" in out
    assert "all 0" in out
    assert "NaN" not in run("inspect", write(checkpoint))[1]
    checkpoint["optimizer"]["param_groups"][0]["odd"] = [np.inf, float("nan")]
    found = json.loads(run("inspect", write(checkpoint), "--json")[1])
    assert found["optimizers"][0]["groups"][0]["settings"]["odd"] == ["inf", "nan"]


def test_tables_are_cut_unless_all_is_asked_for(write, run, monkeypatch):
    names = [f"{'encoder.' * 20}{i}.weight" for i in range(30)]
    checkpoint = one_group()
    group = group_of(*range(30), param_names=names)
    state = {i: buffers(3) for i in range(30)}
    checkpoint["optimizer"] = {"state": state, "param_groups": [group]}
    out = run("inspect", write(checkpoint))[1].partition("# Python")[0]
    assert "… and 10 more (--all)" in out
    assert "19.weight" in out
    assert "20.weight" not in out
    assert all(len(line) <= 88 for line in out.splitlines()[2:])
    out = run("inspect", write(checkpoint), "--all")[1]
    assert "29.weight" in out
    for columns, width in (("60", 60), ("200", 88)):
        monkeypatch.setenv("COLUMNS", columns)
        out = run("inspect", write(checkpoint))[1].partition("# Python")[0]
        assert max(map(len, out.splitlines()[2:])) == width
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    out = run("inspect", write(checkpoint))[1].partition("Python")[0]
    plain = out.replace("\x1b[0m", "")
    assert all(len(line.partition("m")[2] or line) <= 54 for line in plain.splitlines())


def test_colours_only_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    assert terminal.style("x", "heading", stream) == "x"
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.style("x", "heading", stream) == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.style("x", "heading", stream) == "x"


def test_nothing_in_a_file_reaches_the_terminal_as_a_control(write, run):
    """Nor ends a comment in the lines of Python."""
    evil = "w\x1b[2J\x9b1m\r\n\u202eimport os\n\ud800"
    checkpoint = one_group()
    group = group_of(0, 1, param_names=[evil, "b"]) | {evil: evil}
    checkpoint["optimizer"]["param_groups"] = [group]
    checkpoint[evil] = STEP_LR | {"last_epoch": evil, "_last_lr": [0.5]}
    checkpoint["model"] = {evil: np.ones((3, 2), np.float32), "b": np.ones(3)}
    path = write(checkpoint)
    for argv in (["--all"], ["--json"], ["--statistics"]):
        code, out, err = run("inspect", path, *argv)
        assert code == 0
        text = out + err
        assert all(x == "\n" or x.isprintable() for x in text)
        assert "\nimport os" not in text
    lines = lines_of(run("inspect", path)[1])
    assert [*exec_lines(lines)["opt_state"].nu] == ["b", evil]


def test_plain_files_answer_too(write, run):
    """No optimizer, no weights, or nothing at all."""
    assert "no optimizer's state" in run("inspect", write({"model": {"w": 1}}))[1]
    assert run("inspect", write([1, 2]))[0] == 0
    scheduler = STEP_LR | {"last_epoch": 2, "_last_lr": [4.0]}
    out = run("inspect", write({"scheduler": scheduler}))[1]
    assert "holds the state of a scheduler (['scheduler'])" in " ".join(out.split())
    code, out, _ = run("inspect", FILES / "paddle.pdparams")
    assert code == 0
    assert exec_lines(lines_of(out))["params"].keys() > {"dense.weight"}


def test_errors_are_one_sentence(tmp_path, run):
    for name, content, says in (
        ("none", None, "There is no file"),
        ("empty", b"", "it is empty"),
        ("text", b"hello, world", "begins with b'hello, w'"),
        ("cut", (FILES / "torch.pt").read_bytes()[:-99], "truncated or corrupted"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        code, out, err = run("inspect", path)
        assert (code, out) == (2, "")
        assert err.startswith("rmsprop-jax: ")
        assert says in err
        assert err.count("\n") == 1
    assert run("inspect", tmp_path)[0] == 2


@pytest.mark.parametrize("given", ["", "model.ckpt"])
def test_prefixes_of_tensorflow_are_listed(given, tmp_path, run):
    """For a folder, or what the names of several checkpoints begin with."""
    for step in (50, 100):
        (tmp_path / f"model.ckpt-{step}.index").write_bytes(b"")
    code, _, err = run("inspect", tmp_path / given)
    assert code == 2
    assert all(repr(str(tmp_path / f"model.ckpt-{step}")) in err for step in (50, 100))
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt-100"):
        from_tensorflow(tmp_path / given)


def test_no_command_prints_the_help(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "inspect" in out


# --- Files of Keras, written without it.


@pytest.fixture
def write_keras(tmp_path):
    """Write a .keras of one layer, of an optimizer with these variables."""
    h5py = pytest.importorskip("h5py")

    def write(name, variables, **settings):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file["layers/dense/vars/0"] = np.ones((3, 2), np.float32)
            file["layers/dense/vars/1"] = np.ones(2, np.float32)
            for n, x in enumerate(variables):
                file[f"optimizer/vars/{n}"] = np.asarray(x)
        optimizer = {"class_name": name, "config": {"learning_rate": 0.5} | settings}
        layer = {"class_name": "Dense", "config": {"name": "dense"}}
        config = {
            "class_name": "Sequential",
            "config": {"name": "sequential", "layers": [layer]},
            "compile_config": {"optimizer": optimizer},
        }
        path = tmp_path / "run.keras"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
            file.writestr("config.json", json.dumps(config))
            file.writestr("model.weights.h5", content.getvalue())
        return path

    return write


RMSPROP = {"rho": 0.75, "momentum": 0.0, "epsilon": 0.5, "centered": False}


@pytest.mark.parametrize(
    ("name", "variables", "says"),
    [
        ("RMSprop", [0, 0.5], "has not made a step, so there is no state to resume."),
        ("RMSprop", [0], "has not made a step, so there is no state to resume."),
        ("RMSprop", [1, 0.5], "2 variables"),
        ("Adam", [0, 0.5], "it is not RMSProp's. You can still load the weights"),
    ],
)
def test_keras_weights_without_a_state(name, variables, says, write_keras, run):
    path = write_keras(name, variables, **RMSPROP)
    out = run("inspect", path)[1]
    assert says in " ".join(out.split())
    params = exec_lines(lines_of(out))["params"]
    assert params.keys() == {"dense/kernel", "dense/bias"}
    if "no step" in says:
        with pytest.raises(ValueError, match=r"has not made a step.*tx\.init"):
            from_keras(path, names=[*params])


def test_keras_clips_are_shown(write_keras, run):
    moments = [np.ones((3, 2), np.float32), np.ones(2, np.float32)]
    path = write_keras("RMSprop", [3, 0.5, *moments], **RMSPROP, clipnorm=1.0)
    out = " ".join(run("inspect", path)[1].split())
    assert "dialects.keras(0.5, rho=0.75, epsilon=0.5), with clipnorm=1 step" in out
