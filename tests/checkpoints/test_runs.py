"""Files that the frameworks wrote: the run goes on where it went on there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import runs
from recorded.record_runs import FILES, PADDLE, RUNS
from support.continued import continued, far
from support.untyped import checkpoints as functions

from rmsprop_jax import checkpoints

pytestmark = pytest.mark.numerics


def schedule(count):
    return runs.RATE * jnp.asarray([1, 0.5, 0.25])[count % 3]


def path_of(name):
    return FILES / RUNS[name].file


def transposed(weights):
    """Paddle's kernels are (in, out)."""
    return {name: weight.T for name, weight in weights.items()}


def resumed(name, **more):
    """What our function makes of a recorded run's file."""
    if name == "paddle":
        more |= {"names": FILES / "paddle.pdparams", "count": runs.BEFORE, **PADDLE}
        more["to_params"] = transposed
    if name == "torch_legacy":
        matrices = ["dense.weight", "head.weight"]
        more["names"] = matrices + [n for n in runs.SHAPES if n not in matrices]
    function = getattr(functions, f"from_{name.removesuffix('_legacy')}")
    return function(path_of(name), learning_rate=schedule, **more)


def weights_of(name):
    if name == "paddle":
        return transposed(checkpoints.load_weights(FILES / "paddle.pdparams"))
    return checkpoints.load_weights(path_of(name))


@pytest.mark.usefixtures("x64")
def test_recorded_runs_go_on():
    """All of them as one program, with a schedule and in float64."""
    moved, expected = {}, {}
    gradients = [{} for _ in range(runs.AFTER)]
    for name in RUNS:
        with np.load(FILES / f"{name}.npz") as file:
            assert json.loads(str(file["made_by"]))["packages"]
            expected[name] = {n: file[n] for n in file if n != "made_by"}
        shapes = {n: w.shape for n, w in expected[name].items()}
        tx, state = resumed(name)
        params = jax.tree.map(jnp.array, weights_of(name))
        structure = jax.tree.structure(jax.eval_shape(tx.init, params))
        assert jax.tree.structure(state) == structure, name
        moved[name] = tx, state, params
        for all_runs, of_run in zip(
            gradients, runs.gradients(shapes=shapes)[runs.BEFORE :], strict=True
        ):
            all_runs[name] = of_run
    ended, _ = continued(moved, gradients)
    for name, params in ended.items():
        assert far(params, expected[name]) <= 1e-12, name
