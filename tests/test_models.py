"""The models of four libraries, sharded, and the state where their parameters are."""

import functools
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from support.meshes import (
    collectives,
    compiled,
    make_mesh,
    on,
    shardings_of,
)
from support.steps import train_step
from support.untyped import from_torch, rmsprop

from rmsprop_jax.sharding import check_shardings, state_shardings

OPTIONS = {"momentum": 0.9, "centered": True, "weight_decay": 0.1}
AXES = (None, "model")


def x_and_tx():
    return jnp.linspace(-1.0, 1.0, 32).reshape(2, 16), rmsprop(0.1, **OPTIONS)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.Dense(32, kernel_init=nn.with_partitioning(init, AXES))(x)
        return nn.Dense(8, use_bias=False)(jnp.tanh(x))


@pytest.mark.parametrize("boxed", [True, False], ids=["boxed", "unboxed"])
def test_linen_train_state_with_partitioned_metadata(boxed):
    mesh = make_mesh(data=4, model=2)
    x, tx = x_and_tx()
    model = Linen()

    def create(key):
        params = model.init(key, x)["params"]
        params = params if boxed else nn.unbox(params)
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    # As Flax's guide has it: the parameters' shardings by their metadata, ...
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    placed = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s),
        nn.unbox(abstract),
        nn.get_sharding(abstract, mesh),
    )
    if boxed:
        placed = jax.tree.unflatten(
            jax.tree.structure(abstract), jax.tree.leaves(placed)
        )
    # ... and those of the state by ours.
    expected = state_shardings(tx, placed)
    shapes = jax.eval_shape(create, jax.random.key(0))
    shardings = shapes.replace(
        step=on(mesh), params=shardings_of(placed), opt_state=expected
    )
    state = jax.jit(create, out_shardings=shardings)(jax.random.key(0))
    kernel = nn.unbox(state.opt_state.nu)["Dense_0"]["kernel"]
    assert kernel.sharding.is_equivalent_to(on(mesh, *AXES), 2)
    check_shardings(tx.init(state.params), expected)
    check_shardings(jax.jit(tx.init)(state.params), expected)

    # Without out_shardings XLA may split what is replicated as it finds the gradients.
    @functools.partial(jax.jit, out_shardings=shardings)
    def step(state, x):
        def loss(params):
            return jnp.mean(state.apply_fn({"params": nn.unbox(params)}, x) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    after = jax.block_until_ready(step(state, jax.device_put(x, on(mesh))))
    check_shardings(after.opt_state, expected)
    check_shardings(after.params, shardings.params)
    assert after.opt_state.count == 1


class Nnx(nnx.Module):
    def __init__(self, mesh, rngs):
        init = nnx.initializers.lecun_normal()
        self.dense = nnx.Linear(16, 32, use_bias=False, rngs=rngs, kernel_init=init)
        kernel = self.dense.kernel
        kernel[...] = jax.device_put(kernel[...], on(mesh, *AXES))

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


def test_nnx_optimizer_with_sharded_variables():
    mesh = make_mesh(data=4, model=2)
    x, tx = x_and_tx()
    model = Nnx(mesh, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def moments():
        state = optimizer.opt_state
        return [
            m["dense"]["kernel"][...] for m in (state.nu, state.mu, state.grad_mean)
        ]

    @nnx.jit
    def step(model, optimizer, x):
        gradients = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        optimizer.update(model, gradients)

    expected = [on(mesh, *AXES)] * 3
    check_shardings(moments(), expected)
    before = np.asarray(model.dense.kernel[...])
    for _ in range(2):
        step(model, optimizer, jax.device_put(x, on(mesh)))
        jax.block_until_ready(nnx.state(optimizer))
    check_shardings([model.dense.kernel[...], *moments()], [on(mesh, *AXES), *expected])
    assert float(abs(model.dense.kernel[...] - before).max()) > 0


def test_nnx_state_shardings_of_its_parameters():
    mesh = make_mesh(data=4, model=2)
    _, tx = x_and_tx()
    params = nnx.state(Nnx(mesh, nnx.Rngs(0)), nnx.Param)
    expected = state_shardings(tx, params)
    check_shardings(jax.jit(tx.init, out_shardings=expected)(params), expected)
    assert jax.tree.leaves(expected.nu) == [on(mesh, *AXES)]


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    frozen: Any
    name: str = "static"

    def __init__(self, key):
        # Without a bias there is a None in its place.
        self.first = eqx.nn.Linear(16, 32, use_bias=False, key=key)
        self.second = eqx.nn.Linear(32, 8, key=key)
        self.frozen = jnp.arange(3)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def test_equinox_modules_with_none_leaves():
    mesh = make_mesh()
    x, tx = x_and_tx()
    model = Equinox(jax.random.key(0))
    model = eqx.filter_shard(model, on(mesh))
    weight = jax.device_put(model.first.weight, on(mesh, "data"))
    model = eqx.tree_at(lambda model: model.first.weight, model, weight)
    params = eqx.filter(model, eqx.is_inexact_array)
    state = tx.init(params)
    expected = state_shardings(tx, params)
    check_shardings(state, expected)
    assert state.nu.first.weight.sharding.is_equivalent_to(on(mesh, "data"), 2)
    assert state.nu.first.bias is None
    assert state.nu.frozen is None

    places = shardings_of(params)

    @eqx.filter_jit
    def step(model, state, x):
        def loss(model):
            return jnp.mean(jax.vmap(model)(x) ** 2)

        gradients = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        gradients = eqx.filter_shard(gradients, places)
        updates, state = tx.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(2):
        model, state = jax.block_until_ready(
            step(model, state, jax.device_put(x, on(mesh)))
        )
    check_shardings(state, expected)
    check_shardings(eqx.filter(model, eqx.is_inexact_array), places)
    assert state.count == 2
    assert float(abs(model.first.weight - params.first.weight).max()) > 0


def test_an_equinox_module_that_can_be_called_is_a_tree():
    """As a mask, and as the parameters of several groups from torch."""
    model = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    mask = eqx.tree_at(lambda model: (model.weight, model.bias), model, (True, False))
    by_mask = rmsprop(0.1, 0.9, weight_decay=0.5, weight_decay_mask=mask)

    def to_params(weights):
        leaves = (weights["weight"], weights["bias"])
        return eqx.tree_at(lambda model: (model.weight, model.bias), model, leaves)

    group = {"lr": 0.1, "alpha": 0.9, "eps": 1e-8}
    by_groups, state = from_torch(
        {
            "state": {
                i: {"step": 0, "square_avg": np.zeros(shape, np.float32)}
                for i, shape in enumerate([(2, 2), (2,)])
            },
            "param_groups": [
                group | {"weight_decay": 0.5, "params": [0]},
                group | {"weight_decay": 0.0, "params": [1]},
            ],
        },
        to_params,
        names=["weight", "bias"],
    )
    expected, _ = by_mask.update(model, by_mask.init(model), model)
    for start in (by_groups.init(model), state):
        updates, _ = by_groups.update(model, start, model)
        np.testing.assert_allclose(updates.weight, expected.weight, rtol=1e-6)
        np.testing.assert_allclose(updates.bias, expected.bias, rtol=1e-6)


def test_haiku_parameters():
    mesh = make_mesh()
    x, tx = x_and_tx()
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 8])(x)))
    params = model.init(jax.random.key(0), x)
    params = jax.tree.map(
        lambda p: jax.device_put(p, on(mesh, *[None] * (p.ndim - 1), "data")), params
    )
    state = tx.init(params)
    expected = state_shardings(tx, params)
    check_shardings(state, expected)
    check_shardings(state.nu, shardings_of(params))
    gradients = jax.jit(
        jax.grad(lambda p: jnp.mean(model.apply(p, x) ** 2)),
        out_shardings=shardings_of(params),
    )(params)
    program = compiled(train_step(tx), params, state, gradients)
    assert not collectives(program)
    after, state = program(params, state, gradients)
    check_shardings(state, expected)
    updates, _ = tx.update(gradients, tx.init(params), params)
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6),
        after,
        optax.apply_updates(params, updates),
    )


def test_a_whole_model_is_refused_by_its_leaf():
    model = {"layer": jnp.ones(3), "activation": jnp.tanh}
    with pytest.raises(TypeError, match=r"leaf \['activation'\] must be an array"):
        rmsprop(0.01).init(model)
