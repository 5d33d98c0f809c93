"""What Flax trains with, of a resumed run of one group and of several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from recorded import runs
from recorded.record_runs import FILES
from support.comparisons import assert_near
from support.continued import continued, far
from support.untyped import from_torch, to_torch

from rmsprop_jax.checkpoints import load_weights, read

# Paths of files, and the names where the file holds none.
MATRICES = ["dense.weight", "head.weight"]
RUNS = {
    "torch.pt": None,
    "torch_legacy.pt": MATRICES + [n for n in runs.SHAPES if n not in MATRICES],
}


class Model(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


def to_params(weights):
    def linear(name):
        kernel, bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
        return {"kernel": kernel, "bias": bias}

    norm = {"scale": weights["norm.weight"], "bias": weights["norm.bias"]}
    return {"dense": linear("dense"), "norm": norm, "head": linear("head")}


def from_params(params):
    def linear(name):
        layer = params[name]
        return {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}

    norm = params["norm"]
    norms = {"norm.weight": norm["scale"], "norm.bias": norm["bias"]}
    return {**linear("dense"), **norms, **linear("head")}


def expected(path):
    """The same steps without Flax; and the gradients."""
    gradients = [to_params(of_step) for of_step in runs.gradients()[runs.BEFORE :]]
    tx, state = from_torch(path, to_params, names=RUNS[path.name])
    params = jax.tree.map(jnp.array, to_params(load_weights(path)))
    ended, _ = continued(
        {"": (tx, state, params)}, [{"": of_step} for of_step in gradients]
    )
    narrow = [jax.tree.map(jnp.float32, of_step) for of_step in gradients]
    return narrow, ended[""]


def assert_same_parameters(ours, theirs):
    for layer, params in theirs.items():
        assert far(ours[layer], params) <= 1e-6


@pytest.mark.parametrize("name", RUNS)
def test_train_state(name):
    path = FILES / name
    gradients, ended = expected(path)
    tx, opt_state = from_torch(path, to_params, names=RUNS[name])
    params = jax.tree.map(jnp.array, to_params(load_weights(path)))
    state = TrainState.create(apply_fn=lambda: None, params=params, tx=tx)
    state = state.replace(step=runs.BEFORE, opt_state=opt_state)
    for of_step in gradients:
        state = state.apply_gradients(grads=of_step)
    assert_same_parameters(state.params, ended)


@pytest.mark.parametrize("name", RUNS)
def test_nnx_optimizer(name):
    """Its optimizer computes with a State of arrays, so to_params makes one."""
    path = FILES / name
    gradients, ended = expected(path)
    model = Model(nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.array, to_params(load_weights(path))))
    tx, opt_state = from_torch(
        path, lambda w: nnx.State(to_params(w)), names=RUNS[name]
    )
    tx = tx._replace(init=lambda _: opt_state)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, gradients):
        optimizer.update(model, gradients)

    for of_step in gradients:
        grads = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(grads, of_step)
        step(model, optimizer, grads)
    assert_same_parameters(nnx.to_pure_dict(nnx.state(model, nnx.Param)), ended)
    names = RUNS[name]
    back = to_torch(optimizer.opt_state, from_params, like=read(path), names=names)
    _, again = from_torch(back, to_params, names=names)
    leaves = [np.asarray(x) for x in jax.tree.leaves(optimizer.opt_state)]
    assert_near(jax.tree.leaves(again), leaves, 1e-6)
