"""Files that Keras and TensorFlow wrote: the run goes on where it went on there."""

import functools
import random
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded.keras_runs import BEFORE, FRAMEWORKS
from support import keras_files
from support.comparisons import assert_near, assert_same
from support.keras_files import from_keras, from_tensorflow, names_of

from rmsprop_jax import checkpoints
from rmsprop_jax.checkpoints._keras_family.keras_schedules import make_schedule

TOLERANCE = {"float32": 1e-6, "mixed_float16": 1e-6, "bfloat16": 0.0}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_recorded_runs_go_on(framework, files):
    folder = files / framework
    for dtype in keras_files.dtypes(folder):
        assert keras_files.check(framework, folder, dtype) <= TOLERANCE[dtype], dtype


def test_to_params_carries_all(files):
    """The moments, and the gradients of within an accumulation."""
    folder = files / "keras_jax"
    names = names_of(folder, "momentum-centered")

    def to_params(weights):
        return {"all": np.concatenate([weights[n].ravel() for n in names])}

    path = folder / "momentum-centered.keras"
    _, joined = from_keras(path, to_params, names=names)
    _, apart = from_keras(path, names=names)
    for moment in ("nu", "mu", "grad_mean"):
        expected = to_params(jax.tree.map(np.asarray, getattr(apart, moment)))
        np.testing.assert_array_equal(getattr(joined, moment)["all"], expected["all"])

    def turned(weights):
        return {name: weight.T for name, weight in weights.items()}

    names = names_of(folder, "all")
    decayed = {"names": names, "weight_decay_mask": True}
    _, there = from_keras(folder / "all.keras", turned, **decayed)
    _, here = from_keras(folder / "all.keras", **decayed)
    assert_same(
        jax.tree.map(np.asarray, turned(there.acc_grads)),
        jax.tree.map(np.asarray, here.acc_grads),
    )


def test_names_choose_where_the_file_has_them(files):
    for path, function, more in (
        (files / "tf_keras/mixed_float16.h5", from_keras, {}),
        (files / "keras_legacy/mixed_float16", from_tensorflow, {"epsilon": 1e-6}),
    ):
        _, state = function(path, names=["dense/bias:0", "first/kernel"], **more)
        _, whole = function(path, **more)
        assert [*state.nu] == ["dense/bias", "first/kernel"]
        np.testing.assert_array_equal(state.nu["dense/bias"], whole.nu["dense/bias"])


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_names_in_a_wrong_order(files, ending):
    folder = files / "keras_jax"
    path = folder / f"momentum-centered{ending}"
    names = names_of(folder, "momentum-centered")
    settings = {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-6, "centered": True}
    settings = settings | {"weight_decay": 0} if ending != ".keras" else {}
    _, state = from_keras(path, names=names, **settings)
    shapes = [state.nu[name].shape for name in names]
    rng = random.Random(0)
    for order in [rng.sample(range(len(names)), len(names)) for _ in range(40)]:
        assert [shapes[n] for n in order] != shapes
        with pytest.raises(ValueError, match="names must be in the order"):
            from_keras(path, names=[names[n] for n in order], **settings)


class TestWeightDecayMask:
    """No file holds what exclude_from_weight_decay excluded."""

    @pytest.fixture(params=[".h5", ".index"])
    def resume(self, files, request):
        path = files / "tf_keras/momentum-centered-decayed"
        if request.param == ".h5":
            return functools.partial(from_keras, f"{path}.h5")
        settings = {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-6, "weight_decay": 0.01}
        return functools.partial(from_tensorflow, path, **settings)

    def decayed(self, run):
        """The leaves that decay by the first update, where the gradients are 0."""
        tx, state = run
        params = jax.tree.map(jnp.ones_like, state.nu)
        zeros = jax.tree.map(jnp.zeros_like, params)
        still = state._replace(mu=zeros)
        updates = tx.update(zeros, still, params)[0]
        return {name for name, update in updates.items() if np.any(update != 0)}

    def test_asks(self, resume):
        with pytest.warns(
            UserWarning, match=r"weight_decay_mask must be given if .*0\."
        ):
            run = resume()
        assert self.decayed(run) == {*run[1].nu}
        assert self.decayed(resume(weight_decay_mask=True)) == {*run[1].nu}

    def test_takes_names_or_parameters(self, resume):
        names = [*resume(weight_decay_mask=True)[1].nu]
        mask = {name: "kernel" in name for name in names}
        kernels = {name for name in names if mask[name]}
        assert kernels < {*names}
        assert self.decayed(resume(weight_decay_mask=mask)) == kernels
        assert self.decayed(resume(weight_decay_mask=lambda params: mask)) == kernels

        def rename(weights):
            return {f"my/{name}": weight.T for name, weight in weights.items()}

        ours = {f"my/{name}" for name in kernels}
        assert self.decayed(resume(rename, weight_decay_mask=mask)) == ours
        assert self.decayed(resume(rename, weight_decay_mask=rename_keys(mask))) == ours

    def test_asks_for_one_answer_per_leaf(self, resume):
        names = [*resume(weight_decay_mask=True)[1].nu]

        def join(weights):
            return {"all": np.concatenate([x.ravel() for x in weights.values()])}

        mask = {name: name != names[0] for name in names}
        with pytest.raises(
            ValueError, match=r"weight_decay_mask .* leaf \['all'\] from"
        ):
            resume(join, weight_decay_mask=mask)
        mask = dict.fromkeys(names, False)
        assert self.decayed(resume(join, weight_decay_mask=mask)) == set()

    def test_is_refused_where_nothing_decays(self, files):
        path = files / "keras_legacy/plain.h5"
        with pytest.raises(ValueError, match="weight_decay_mask must be left out"):
            from_keras(path, weight_decay_mask=True)


def rename_keys(mask):
    return {f"my/{name}": decays for name, decays in mask.items()}


def test_other_rates_and_momenta_take_the_place_of_the_files(files):
    folder = files / "keras_jax"
    names = names_of(folder, "momentum-centered")
    path = folder / "momentum-centered.keras"
    tx, state = from_keras(path, names=names)
    schedule = jnp.array([0.0] * BEFORE + [0.25])
    other, same = from_keras(
        path,
        names=names,
        learning_rate=lambda count: schedule[count],
        momentum=lambda count: jnp.where(count < BEFORE, 0.0, 0.5),
    )
    assert_same(same, state)
    gradients = jax.tree.map(jnp.ones_like, state.nu)
    params = jax.tree.map(jnp.zeros_like, state.nu)
    ours, _ = tx.update(gradients, state, params)
    theirs, _ = other.update(gradients, state, params)
    for name, mu in state.mu.items():
        step = (0.9 * mu + ours[name]) / 0.01  # the rule without rate and momentum
        assert_near(theirs[name], 0.25 * step - 0.5 * mu, 1e-5)
    _, without = from_keras(path, names=names, momentum=0)
    assert without.mu is None
    plain = files / "keras_legacy/plain"
    _, begun = from_keras(f"{plain}.h5", momentum=0.5)
    assert not any(mu.any() for mu in begun.mu.values())
    tx, _ = from_tensorflow(plain, epsilon=1e-6, learning_rate=0.5)
    one = {name: jnp.ones_like(nu) for name, nu in begun.nu.items()}
    updates, _ = tx.update(one, begun._replace(mu=None))
    bias = begun.nu["first/bias"]
    expected = -0.5 / (np.sqrt(0.9 * bias + 0.1) + 1e-6)
    assert_near(updates["first/bias"], expected, 1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "rates"),
    [
        ("ExponentialDecay", {"decay_steps": 2, "decay_rate": 0.25}, [8, 4, 2, 1]),
        (
            "ExponentialDecay",
            {"decay_steps": 2, "decay_rate": 0.25, "staircase": True},
            [8, 8, 2, 2],
        ),
        ("InverseTimeDecay", {"decay_steps": 2, "decay_rate": 2.0}, [8, 4, 8 / 3, 2]),
        (
            "InverseTimeDecay",
            {"decay_steps": 2, "decay_rate": 3.0, "staircase": True},
            [8, 8, 2, 2],
        ),
        (
            "PolynomialDecay",
            {"decay_steps": 2, "end_learning_rate": 4.0, "power": 2.0},
            [8, 5, 4, 4],
        ),
        (
            "PolynomialDecay",
            {
                "decay_steps": 2,
                "end_learning_rate": 4.0,
                "power": 1.0,
                "cycle": True,
            },
            [8, 6, 4, 5],
        ),
        ("CosineDecay", {"decay_steps": 2, "alpha": 0.5}, [8, 6, 4, 4]),
        (
            "CosineDecay",
            {
                "decay_steps": 2,
                "alpha": 0.5,
                "warmup_target": 16.0,
                "warmup_steps": 2,
            },
            [8, 12, 16, 12, 8, 8],
        ),
        (
            "CosineDecayRestarts",
            {"first_decay_steps": 2, "t_mul": 1.0, "m_mul": 0.5, "alpha": 0.5},
            [8, 6, 6, 5, 5],
        ),
        (
            "CosineDecayRestarts",
            {"first_decay_steps": 1, "t_mul": 2.0, "m_mul": 0.5, "alpha": 0.0},
            [8, 4, 2, 2],
        ),
        (
            "PiecewiseConstantDecay",
            {"boundaries": [1, 3], "values": [3.0, 2.0, 1.0]},
            [3, 3, 2, 2, 1],
        ),
    ],
)
def test_schedules(kind, config, rates):
    config = {"initial_learning_rate": 8.0, "name": None, **config}
    schedule: Any = make_schedule("file", {"class_name": kind, "config": config})
    found = [schedule(jnp.int32(count)) for count in range(len(rates))]
    np.testing.assert_allclose(found, rates, rtol=1e-6)


def test_schedules_of_others_are_asked_for():
    assert make_schedule("file", {"class_name": "Mine", "config": {}}) is None


def test_accumulating_without_a_gradient_since_the_last_update(files, tmp_path):
    import h5py

    path = tmp_path / "all.h5"
    shutil.copy(files / "keras_jax/all.h5", path)
    with h5py.File(path, "r+") as file:
        optimizer: Any = file["optimizer_weights"]
        (count,) = (k for k in optimizer if "loss" not in k)
        optimizer[count]["iteration"][()] = 8
    _, state = from_keras(path, weight_decay_mask=True)
    assert (state.mini_step, state.gradient_step) == (0, 2)


def test_weights_of_all_kinds_have_the_same_names(files):
    folder = files / "keras_jax"
    names = names_of(folder, "momentum-centered")
    with np.load(folder / "momentum-centered.npz") as recorded:
        expected = {n: recorded[f"weights/{n}"] for n in names}
    path = folder / "momentum-centered"
    named = checkpoints.load_weights(f"{path}.h5")
    numbered = checkpoints.load_weights(f"{path}.keras", names=[*named])
    assert_same(named, numbered)
    assert_same({n: named[n] for n in names}, expected)
