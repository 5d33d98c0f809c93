"""`rmsprop-jax identify` prints what `identify` says, and its exit codes."""

import dataclasses
import io
import pickle
import re
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recorded.record_runs import FILES
from support.screens import PAGE, SCREEN

from rmsprop_jax import dialects, identify
from rmsprop_jax._cli import identifying
from rmsprop_jax._cli.float64 import use_float64
from rmsprop_jax._cli.recordings import Recording


def simulate(tx: Any, steps=24, size=9, dtype=np.float32) -> Any:
    """The parameters and the gradients of a run of two leaves."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (size, 2), "bias": (size,)}
    params: list[Any] = [{k: jnp.zeros(s, dtype) for k, s in shapes.items()}]
    gradients = [
        {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}
        for _ in range(steps)
    ]
    state = tx.init(params[0])
    for g in gradients:
        updates, state = tx.update(g, state, params[-1])
        params.append(optax.apply_updates(params[-1], updates))

    def stack(trees):
        return {k: np.stack([np.asarray(x[k]) for x in trees]) for k in shapes}

    return stack(params), stack(gradients)


def save(path, params, gradients, **more):
    arrays = {f"params/{k}": x for k, x in params.items()}
    arrays |= {f"gradients/{k}": x for k, x in gradients.items()}
    np.savez(path, **arrays, **more)
    return path


@pytest.fixture(scope="module")
def keras_run():
    with jax.numpy_dtype_promotion("standard"):
        return simulate(dialects.keras(0.01, rho=0.8, momentum=0.5, epsilon=1e-3))


@pytest.fixture(scope="module")
def match(keras_run):
    """What `identify` says of it, which takes seconds."""
    return identify(*keras_run)


@pytest.fixture
def calls(match, monkeypatch):
    """The calls of `identify` by the command, each answered by the match."""
    made = []

    def answer(*trees, **more):
        made.append((trees, more))
        return match

    monkeypatch.setattr(identifying, "identify", answer)
    return made


def test_prints_what_the_match_prints(keras_run, match, run, tmp_path):
    """The real one, and draws it."""
    path = save(tmp_path / "x.npz", *keras_run)
    picture = tmp_path / "x.png"
    code, out, err = run("identify", path, "--plot", picture)
    assert (code, err) == (0, "")
    assert out == f"{match}\n"
    assert out.startswith("dialects.keras(0.01, rho=0.8, momentum=0.5, epsilon=0.001)")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_it(match):
    """But for what rounding does on another machine."""
    shown = {c: out for c, out in SCREEN.findall(PAGE.read_text())}

    def mask(text):
        return re.sub(r"[\d.]+e-\d+|[\d.]+%", "#", text).split()

    assert mask(shown["identify recording.npz"]) == mask(str(match))


def test_the_plot_lies_on_the_diagonal(keras_run, match):
    params, gradients = keras_run
    recording = Recording(params, gradients, None, None, 0)
    with use_float64():
        made, observed = identifying._compare(match.best, recording)
    for name, updates in made.items():
        np.testing.assert_allclose(updates, observed[name], rtol=0, atol=1e-6)
        assert np.std(observed[name]) > 1e-3


@pytest.mark.slow
def test_a_clip_is_drawn_by_the_whole_gradient_s_norm(match):
    """Of which the recording has a part: here by norms four times as large."""
    keras = dialects.keras(0.01, rho=0.8, momentum=0.5, epsilon=1e-3)
    with jax.numpy_dtype_promotion("standard"):
        params, gradients = simulate(optax.chain(optax.clip_by_global_norm(1.0), keras))
    squares = [np.square(g).reshape(len(g), -1).sum(1) for g in gradients.values()]
    norms = np.sqrt(np.sum(squares, axis=0))
    assert np.all(norms > 1)
    recipe = match.best.recipe._replace(before={"clip_by_global_norm": 4.0})
    best = dataclasses.replace(match.best, recipe=recipe)
    recording = Recording(params, gradients, 4 * norms, None, 0)
    with use_float64():
        made, observed = identifying._compare(best, recording)
    for name, updates in made.items():
        np.testing.assert_allclose(updates, observed[name], rtol=0, atol=1e-6)


def test_plain_arrays_and_what_is_known(keras_run, run, calls, tmp_path):
    """Arrays without names, in a part, with the learning rates and the count."""
    params, gradients = (x["bias"] for x in keras_run)
    path = tmp_path / "x.npz"
    rates = np.linspace(1, 2, len(gradients) - 5)
    norms = np.linalg.norm(gradients[5:], axis=1)
    np.savez(
        path,
        params=params[5:],
        gradients=gradients[5:],
        learning_rate=rates,
        count=np.int64(5),
        gradient_norms=norms,
    )
    code, _, err = run("identify", path, "--plot", tmp_path / "no.png")
    assert code == 0
    ((given, more),) = calls
    np.testing.assert_array_equal(given[0], params[5:])
    np.testing.assert_array_equal(given[1], gradients[5:])
    np.testing.assert_array_equal(more["gradient_norms"], norms)
    assert more["count"] == 5
    np.testing.assert_array_equal(more["learning_rate"], rates)
    assert "begins in the middle of the run" in err
    assert not (tmp_path / "no.png").exists()


def test_options_come_before_the_recording(keras_run, run, calls, tmp_path):
    path = save(tmp_path / "x.npz", *keras_run, learning_rate=1.0, count=3)
    assert run("identify", path, "--learning-rate", "0.5", "--count", "7")[0] == 0
    assert calls[0][1]["learning_rate"] == 0.5
    assert calls[0][1]["count"] == 7


def test_exit_code_of_what_is_not_explained(
    keras_run, match, run, calls, tmp_path, monkeypatch
):
    path = save(tmp_path / "x.npz", *keras_run)
    nothing = dataclasses.replace(match, is_explained=False)
    monkeypatch.setattr(identifying, "identify", lambda *_, **__: nothing)
    code, out, err = run("identify", path, "--plot", tmp_path / "x.png")
    assert code == 1
    assert out.startswith("Nothing explains this run")
    assert "no RMSProp explains the run" in err


@pytest.mark.slow
def test_a_run_of_another_optimizer_is_explained(run, tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        recorded = simulate(optax.sgd(0.1, momentum=0.9), 40, 24)
    code, out, _ = run("identify", save(tmp_path / "x.npz", *recorded))
    assert code == 0
    assert "optax.sgd(0.1, momentum=0.9)" in out


def test_bfloat16_as_two_bytes(keras_run, run, calls, tmp_path):
    """As the recorders store it, because NumPy has no name for it."""
    p, g = (
        {k: np.asarray(x).astype(jnp.bfloat16).view("V2") for k, x in tree.items()}
        for tree in keras_run
    )
    assert run("identify", save(tmp_path / "x.npz", p, g))[0] == 0
    given = calls[0][0][0]["bias"].view(jnp.bfloat16)
    np.testing.assert_array_equal(given, keras_run[0]["bias"].astype(jnp.bfloat16))


def member(shape, dtype, content, **more):
    """The bytes of an array whose header says something else than there is."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header | more)
    return file.getvalue() + content


class Evil:
    def __reduce__(self):
        return open, ("here", "w")


HOSTILE = {
    "huge": (member((2**40,), "<f4", bytes(64)), "another size than it declares"),
    "negative": (member((-4,), "<f4", bytes(16)), "another size than it declares"),
    "objects": (member((1,), "|O", pickle.dumps(Evil())), "Python objects"),
    "records": (member((1,), [("a", "<f4")], bytes(4)), "Python objects or records"),
    "text": (b"\x93NUMPY\x01\0\x04\0spam", "has no header"),
    "nothing": (b"", "has no header"),
    "not an array": (b"hello, world, and more", "has no header"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_recordings(case, run, tmp_path, monkeypatch):
    content, says = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.npz", "w") as file:
        file.writestr("params.npy", content)
    code, out, err = run("identify", "x.npz")
    assert (code, out) == (2, "")
    assert says in err
    assert "x.npz" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "here").exists()


def test_a_bomb_is_refused(run, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("params.npy", bytes(160 * 2**20))
    code, _, err = run("identify", path)
    assert code == 2
    assert "made to fill the memory" in err


def test_what_is_not_a_recording(keras_run, run, tmp_path):
    params, gradients = keras_run
    path = tmp_path / "x.npz"
    np.savez(path, weights=np.ones(3))
    assert "it has ['weights']" in run("identify", path)[2]
    save(path, params, {k: x[:9] for k, x in gradients.items()})
    code, _, err = run("identify", path)
    assert code == 2
    assert "one more than there are gradients" in err
    save(path, params, gradients, learning_rate=np.ones(3))
    assert "'learning_rate' must be one number for each" in run("identify", path)[2]
    save(path, params, gradients, count=np.float32(1))
    assert "'count' must be the number of updates" in run("identify", path)[2]
    assert run("identify", tmp_path / "none")[0] == 2


def test_missing_matplotlib_is_said_before_the_search(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run("identify", "none.npz", "--plot", tmp_path / "x.png")
    assert code == 2
    assert "matplotlib" in err


@pytest.mark.parametrize(
    ("picture", "says"),
    [("x.foo", "--plot must end in one of"), ("no/x.png", "there is no folder 'no'")],
)
def test_a_plot_that_can_not_be_written_is_said_before_the_search(picture, says, run):
    code, _, err = run("identify", "none.npz", "--plot", picture)
    assert code == 2
    assert says in err


def test_another_file_is_no_recording(run):
    code, _, err = run("identify", FILES / "torch.pt")
    assert code == 2
    assert "it is not an .npz file" in err
