"""Runs of Keras and TensorFlow that go on here from their files."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recorded.keras_runs import AFTER, BEFORE, FRAMEWORKS, RATE, gradients
from support.continued import continued, far
from support.untyped import from_keras, from_tensorflow

from rmsprop_jax import checkpoints
from rmsprop_jax.checkpoints._keras_family.keras_schedules import make_schedule

# A file without settings can't have them.
CLIPS = {"clipnorm", "global_clipnorm", "clipvalue"}


def names_of(folder, run):
    """The trainable variables of a run."""
    return json.loads((folder / "info.json").read_text())["runs"][run]["names"]


def dtypes(folder):
    """Those of the runs in a folder."""
    info = json.loads((folder / "info.json").read_text())
    return {run["dtype"] for run in info["runs"].values()}


def check(framework, folder, dtype):
    """The files have the framework's own numbers, and the runs go on as they did.

    Returns the largest distance of a run, as a part of its largest parameter.
    """
    info = json.loads((folder / "info.json").read_text())
    runs = {n: run for n, run in info["runs"].items() if run["dtype"] == dtype}
    moved, expected = {}, {}
    steps: list[dict[str, Any]] = [{} for _ in range(AFTER)]
    for name, run in runs.items():
        recorded = _recorded(folder / f"{name}.npz")
        for ending in FRAMEWORKS[framework].endings:
            bare = ending in (".weights.h5", ".index")
            if bare and (CLIPS & set(run["arguments"])):
                continue
            key = f"{name}{ending}"
            tx, state = read(framework, folder, name, run, ending)
            _check_state(state, recorded["optimizer"], run)
            _check_weights(framework, folder, name, run, ending, recorded)
            params = {n: jnp.array(recorded["weights"][n]) for n in run["names"]}
            _check_like(state, jax.eval_shape(tx.init, params))
            moved[key] = tx, state, params
            expected[key] = recorded["after"]
            shapes = [params[n].shape for n in run["names"]]
            for all_runs, of_run in zip(steps, gradients(shapes)[BEFORE:], strict=True):
                all_runs[key] = dict(zip(run["names"], of_run, strict=True))
    if dtype == "bfloat16":  # in which the framework rounds the weights
        return 0.0
    with jax.numpy_dtype_promotion("standard"):  # optax's own MultiSteps needs it
        ended, _ = continued(moved, steps)
    return max(far(ended[key], expected[key]) for key in ended)


def _check_like(state, expected):
    """The same tree, shapes and dtypes."""
    one, other = jax.tree.flatten(state), jax.tree.flatten(expected)
    assert one[1] == other[1]
    for x, y in zip(one[0], other[0], strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def _recorded(path):
    parts: dict[str, dict[str, Any]] = {}
    with np.load(path) as file:
        for key in file:
            part, _, label = key.partition("/")
            parts.setdefault(part, {})[label] = file[key]
    return parts


def read(framework, folder, name, run, ending, **more):
    """The transformation and the state, from one of a run's files."""
    arguments = {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-6} | run["arguments"]
    schedule = arguments.pop("schedule", None)
    decay = arguments.get("weight_decay", 0.0)
    settings: dict[str, Any] = {}
    if ending == ".weights.h5":
        settings = {"centered": False, "weight_decay": decay} | arguments
        settings |= {"learning_rate": RATE} if framework == "tf_keras" else {}
        settings.pop("ema_overwrite_frequency", None)
        settings = {k: v for k, v in settings.items() if k not in CLIPS}
    elif ending == ".index" and framework == "keras_legacy":
        settings = {"epsilon": arguments["epsilon"]}
    elif ending == ".index" and framework == "tensorflow":
        settings = {"learning_rate": RATE, "decay": 0.9}
        settings |= {k: arguments[k] for k in ("momentum", "epsilon")}
    elif ending == ".index":
        settings = {k: arguments[k] for k in ("rho", "momentum", "epsilon")}
        settings["weight_decay"] = decay
        if every := arguments.get("gradient_accumulation_steps"):
            settings["gradient_accumulation_steps"] = every
    if schedule and ending in (
        ".weights.h5",
        ".index",
    ):  # where the file has none of its own
        settings["learning_rate"] = _schedule(schedule, arguments)
    if decay and framework != "keras_legacy":
        settings["weight_decay_mask"] = True
    if ending == ".index":
        return from_tensorflow(folder / name, **settings, **more)
    names = {} if ending == ".h5" else {"names": run["names"]}
    return from_keras(folder / f"{name}{ending}", **names, **settings, **more)


def _schedule(schedule, arguments):
    """Keras's schedule as a function of the count of updates."""
    kind, numbers = schedule
    if "boundaries" not in numbers:
        numbers = {"initial_learning_rate": RATE, **numbers}
    found: Any = make_schedule("file", {"class_name": kind, "config": numbers})
    every = arguments.get("gradient_accumulation_steps", 1)
    return lambda count: found(count * every + every - 1)


def _check_state(state, theirs, run):
    """Every moment, and the count, as the framework itself says; bit for bit."""
    labels = [f"/{label.removesuffix(':0')}" for label in run["optimizer"]]

    def slot(name, *keys):
        ends = [f"/{name.replace('/', '_')}_{key}" for key in keys]
        ends += [f"/{key}/{name}" for key in keys] + [f"/{name}/{key}" for key in keys]
        (n,) = [n for n, label in enumerate(labels) if label.endswith(tuple(ends))]
        return theirs[str(n)]

    every = run["arguments"].get("gradient_accumulation_steps", 1)
    if every > 1:
        since = BEFORE % every
        assert (state.mini_step, state.gradient_step) == (since, BEFORE // every)
        for name, mean in state.acc_grads.items():
            expected = slot(name, "gradient_accumulator") / np.float32(since)
            np.testing.assert_array_equal(mean, expected)
        state = state.inner_opt_state
    if not hasattr(state, "nu"):
        state = state[-1]  # after a clip
    assert state.count == BEFORE // every
    assert (state.mu is None) == ("momentum" not in run["arguments"])
    assert (state.grad_mean is None) == ("centered" not in run["arguments"])
    assert [*state.nu] == sorted(run["names"])
    for name, nu in state.nu.items():
        expected = slot(name, "velocity", "rms")
        if state.mu is not None:
            np.testing.assert_array_equal(state.mu[name], slot(name, "momentum"))
        if state.grad_mean is not None:
            mean = slot(name, "average_gradient", "mg")
            np.testing.assert_array_equal(state.grad_mean[name], mean)
            square = expected.astype(float) - np.square(mean.astype(float))
            expected = square.astype(expected.dtype)
        np.testing.assert_array_equal(nu, expected)
        assert nu.dtype == expected.dtype


def _check_weights(framework, folder, name, run, ending, recorded):
    """The weights, and their averages, as the framework itself says."""
    path = folder / (name if ending == ".index" else f"{name}{ending}")
    numbered = ending in (".keras", ".weights.h5")
    if not (framework == "tf_keras" and ending == ".weights.h5"):
        names = run["weights"] if numbered else None
        found = checkpoints.load_weights(path, names=names)
        assert set(run["weights"]) <= set(found)
        for weight in run["weights"]:
            np.testing.assert_array_equal(found[weight], recorded["weights"][weight])
    averages = recorded.get("average", {})
    if run["arguments"].get("use_ema"):
        ends = {
            n: (f"{n.replace('/', '_')}_average", f"/average/{n}:0")
            for n in run["names"]
        }
        averages = {
            name: recorded["optimizer"][str(n)]
            for name, of_name in ends.items()
            for n, label in enumerate(run["optimizer"])
            if label.endswith(of_name)
        }
    if averages and ending != ".weights.h5":
        names = run["names"] if numbered else None
        found = checkpoints.load_weights(path, names=names, ema=True)
        assert set(found) == set(run["names"])
        for weight, average in averages.items():
            np.testing.assert_array_equal(found[weight], average)
