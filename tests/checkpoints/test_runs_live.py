"""The real frameworks: files that they write now, and what they take back.

N steps there, the file, then M steps there and here on the same gradients. Then back,
and some more steps there.
"""

import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import record_runs, runs
from recorded.record_runs import FILES, RUNS
from support.continued import continued, far
from support.untyped import checkpoints as functions

from rmsprop_jax import checkpoints

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore:No ccache found"),  # as Paddle is imported
]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
CROSS = [
    {"momentum": momentum, "centered": centered, "weight_decay": decay, "scheduled": s}
    for momentum, centered, decay, s in itertools.product(
        (0.0, 0.875), (False, True), (0.0, 1 / 64), (False, True)
    )
]
TORCH = {"alpha": 0.875, "eps": 1 / 1024}
DECOUPLED = {"weight_decay": 1 / 64, "decoupled_decay": True, "scheduled": True}
SOURCES = {
    "torch": (runs.torch, TORCH, CROSS),
    "timm": (
        runs.timm,
        TORCH,
        [
            *CROSS,
            DECOUPLED,
            {**DECOUPLED, "corrected_weight_decay": True},
            {"momentum": 0.875, "lr_in_momentum": False, "scheduled": True},
            {"momentum": 0.875, "caution": True, "scheduled": True},
        ],
    ),
    "stable_baselines3": (
        runs.stable_baselines3,
        TORCH,
        CROSS + [{**options, "like_tensorflow": False} for options in CROSS[::3]],
    ),
    "paddle": (runs.paddle, {"rho": 0.875, "epsilon": 1 / 1024}, CROSS),
}


def schedule(count):
    return runs.RATE * jnp.asarray([1, 0.5, 0.25])[count % 3]


def transposed(weights):
    """Paddle's kernels are (in, out)."""
    return {name: weight.T for name, weight in weights.items()}


def moved_over(framework, path, settings, *, scheduled):
    """Our transformation, state and parameters of a file."""
    weights = path
    more: dict[str, Any] = {"learning_rate": schedule if scheduled else None}
    if framework == "paddle":
        weights = path.with_suffix(".pdparams")
        more = {"learning_rate": schedule if scheduled else runs.RATE, **settings}
        more |= {"names": weights, "count": runs.BEFORE, "to_params": transposed}
    tx, state = getattr(functions, f"from_{framework}")(path, **more)
    found = more.get("to_params", dict)(checkpoints.load_weights(weights))
    return tx, state, jax.tree.map(jnp.array, found)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("framework", SOURCES)
def test_goes_on_here_and_back_there(framework, dtype, tmp_path, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    make, settings, cases = SOURCES[framework]
    ending = {"paddle": ".pdopt", "stable_baselines3": ".zip"}.get(framework, ".pt")
    theirs, moved = {}, {}
    shapes = {n: w.shape for n, w in make(dtype, **settings).weights().items()}
    gradients = runs.gradients(runs.BEFORE + 2 * runs.AFTER, shapes)

    def steps(run, first, last, *, scheduled):
        for t in range(first, last):
            run.step(gradients[t], runs.rate(t, scheduled=scheduled))

    middle, end = runs.BEFORE + runs.AFTER, len(gradients)
    for i, options in enumerate(cases):
        of_case = settings | {k: v for k, v in options.items() if k != "scheduled"}
        scheduled = options.get("scheduled", False)
        run = make(dtype, **of_case)
        steps(run, 0, runs.BEFORE, scheduled=scheduled)
        path = tmp_path / f"{i}{ending}"
        run.save(path)
        moved[i] = moved_over(framework, path, of_case, scheduled=scheduled)
        like = run.optimizer.state_dict()
        steps(run, runs.BEFORE, middle, scheduled=scheduled)
        theirs[i] = run, make(dtype, **of_case), like
    params, states = continued(
        moved, [dict.fromkeys(moved, g) for g in gradients[runs.BEFORE : middle]]
    )
    for i, (run, again, like) in theirs.items():
        assert far(params[i], run.weights()) <= TOLERANCE[dtype], cases[i]
        if framework == "paddle":
            continue
        to = getattr(functions, f"to_{framework}")
        again.load(params[i], to(states[i], like=like, names=run.names))
        for one in (run, again):
            steps(one, middle, end, scheduled=cases[i].get("scheduled", False))
        assert far(again.weights(), run.weights()) <= TOLERANCE[dtype], cases[i]
        for back, pure in zip(
            again.optimizer.state_dict()["state"].values(),
            run.optimizer.state_dict()["state"].values(),
            strict=True,
        ):
            assert back.keys() == pure.keys()
            assert type(back["step"]) is type(pure["step"])
            assert int(back["step"]) == int(pure["step"]) == end


@pytest.mark.parametrize("rate", [7e-4, lambda progress: 7e-4 * progress])
def test_an_agent_with_a_schedule(rate, tmp_path):
    agent = pytest.importorskip("stable_baselines3").A2C(
        "MlpPolicy", "CartPole-v1", learning_rate=rate, device="cpu", seed=0
    )
    agent.learn(10)
    path = tmp_path / "agent.zip"
    agent.save(path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        checkpoints.from_stable_baselines3(path)
    told = [x for x in found if "which may be a schedule" in str(x.message)]
    assert len(told) == len(found) == callable(rate)
    checkpoints.from_stable_baselines3(path, learning_rate=7e-4)


@pytest.mark.parametrize("name", RUNS)
def test_recorded_files_are_what_they_write(name, tmp_path):
    record_runs.record(name, tmp_path)
    recorded = RUNS[name].file
    one, other = (checkpoints.read(f / recorded) for f in (tmp_path, FILES))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(b, np.ndarray | float):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        else:
            assert type(a).__name__ == type(b).__name__
    with np.load(tmp_path / f"{name}.npz") as a, np.load(FILES / f"{name}.npz") as b:
        assert a.keys() == b.keys()
        for weight in set(a) - {"made_by"}:
            np.testing.assert_allclose(a[weight], b[weight], rtol=1e-12)
