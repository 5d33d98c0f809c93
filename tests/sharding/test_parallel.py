"""The ways to run a step on many devices, or many steps; and to skip a bad one."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from support.meshes import (
    bytes_on_each_device,
    collectives,
    compiled,
    each_axis_type,
    make_mesh,
    on,
    shardings_of,
)
from support.steps import train_step
from support.untyped import rmsprop, zero1

from rmsprop_jax.sharding import check_shardings, state_shardings

OPTIONS = {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "eps": 1e-3}
NEVER = 2**31 - 1
TX = rmsprop(0.1, **OPTIONS)
# In float64, where rounding leaves no room for another rule.
pytestmark = pytest.mark.usefixtures("x64")
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


def parameters():
    rng = np.random.default_rng(0)
    return jax.device_put(
        {"kernel": rng.normal(size=(16, 4)), "bias": rng.normal(size=4)}
    )


def batches(number):
    return jnp.asarray(np.random.default_rng(1).normal(size=(number, 8, 5, 16)))


def loss(params, x):
    return jnp.mean(jnp.sin(x @ params["kernel"] + params["bias"][None]))


def step(tx, params, state, x, mean=lambda gradients: gradients):
    gradients = mean(jax.grad(loss)(params, x))
    return train_step(tx)(params, state, gradients)


@functools.cache
def compile_alone(tx):
    """The functions of a run on one device, which several tests compare with."""
    return jax.jit(tx.init), jax.jit(functools.partial(step, tx))


def alone(tx, params, xs):
    """What every other way must come to: one device, one step after the other."""
    init, run = compile_alone(tx)
    state = init(params)
    for x in xs:
        params, state = run(params, state, x)
    return jax.device_get((params, state))


def replicate(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * 8), tree)


def test_pmap_with_a_replicated_state():
    tx, params, xs = TX, parameters(), batches(4)
    expected = alone(tx, params, xs.reshape(4, 40, 16))
    mean = functools.partial(jax.lax.pmean, axis_name="devices")
    run = jax.pmap(functools.partial(step, tx, mean=mean), axis_name="devices")
    params = replicate(params)
    state = jax.pmap(tx.init)(params)
    assert len(bytes_on_each_device(state)) == 8
    for x in xs:
        params, state = jax.block_until_ready(run(params, state, x))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, x[:1].repeat(8, 0)), state)
    jax.tree.map(lambda x, y: close(x[0], y), jax.device_get((params, state)), expected)


def test_pmap_with_a_state_per_device():
    """Eight runs side by side, each with its own data, parameters and state."""
    tx, xs = TX, batches(3)
    params = jax.tree.map(
        lambda p: p * jnp.arange(1.0, 9).reshape(8, *[1] * (p.ndim - 1)),
        replicate(parameters()),
    )
    first = params
    state = jax.pmap(tx.init)(params)
    run = jax.pmap(functools.partial(step, tx))
    for x in xs:
        params, state = jax.block_until_ready(run(params, state, x))
    after = jax.device_get((params, state))
    for device in (0, 3, 7):
        its = jax.tree.map(operator.itemgetter(device), (first, after))
        jax.tree.map(close, its[1], alone(tx, its[0], xs[:, device]))


@each_axis_type
def test_shard_map(axis_type):
    """Every device holds and updates its rows, and init and update run inside."""
    mesh = make_mesh(axis_type)
    tx, gradients = TX, parameters()["kernel"]
    rows = PartitionSpec("data")
    specs = jax.tree.map(
        lambda x: rows if x.ndim else PartitionSpec(),
        jax.eval_shape(tx.init, gradients),
    )

    def two_steps(params):
        state = tx.init(params)
        for _ in range(2):
            params, state = train_step(tx)(params, state, jnp.sin(params))
        return params, state

    mapped = jax.shard_map(two_steps, mesh=mesh, in_specs=rows, out_specs=(rows, specs))
    split = jax.device_put(gradients, on(mesh, "data"))
    program = compiled(mapped, split)
    assert not collectives(program)
    after, state = program(split)
    check_shardings(state, state_shardings(tx, split))
    jax.tree.map(close, (after, state), jax.jit(two_steps)(gradients))


@each_axis_type
def test_vmap_over_a_sharded_population(axis_type):
    mesh = make_mesh(axis_type)
    tx, xs = TX, batches(1)[0]
    population = jax.device_put(replicate(parameters()), on(mesh, "data"))
    # The counts are made of nothing, but on explicit axes what is mapped over must be
    # split alike.
    members = on(mesh, "data")
    state = jax.jit(jax.vmap(tx.init), out_shardings=members)(population)
    run = jax.jit(jax.vmap(functools.partial(step, tx)))
    after = run(population, state, jax.device_put(xs, members))
    check_shardings(after, jax.tree.map(lambda _: members, after))
    for member in (0, 7):
        its = jax.tree.map(operator.itemgetter(member), jax.device_get(after))
        jax.tree.map(close, its, alone(tx, parameters(), xs[member][None]))


@pytest.mark.parametrize("remat", [False, True], ids=["", "remat"])
@each_axis_type
def test_scan_over_steps(axis_type, remat):
    """Data-parallel, all steps in one program; the state goes around split."""
    mesh = make_mesh(axis_type)
    tx, xs = zero1(TX, mesh), batches(4).reshape(4, 40, 16)
    params = jax.device_put(parameters(), on(mesh))

    def body(carry, x):
        one: Any = functools.partial(step, tx)
        one = jax.checkpoint(one) if remat else one
        return one(*carry, x), None

    state = tx.init(params)
    run = jax.jit(lambda *carry: jax.lax.scan(body, carry[:2], carry[2])[0])
    before = shardings_of((params, state))
    after = run(params, state, jax.device_put(xs, on(mesh, None, "data")))
    check_shardings(after, before)
    jax.tree.map(close, after[0], alone(TX, parameters(), xs)[0])


def test_remat_of_a_run_keeps_its_derivative():
    tx, xs = rmsprop(0.1, momentum=0.9), batches(3).reshape(3, 40, 16)

    def end(params, wrap):
        def body(carry, x):
            return wrap(functools.partial(step, tx))(*carry, x), None

        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), xs)
        return loss(params, xs[0])

    plain = jax.jit(jax.grad(lambda p: end(p, lambda f: f)))(parameters())
    again = jax.jit(jax.grad(lambda p: end(p, jax.checkpoint)))(parameters())
    jax.tree.map(close, again, plain)
    assert float(abs(plain["kernel"]).max()) > 0


WRAPPERS = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, NEVER),
    "MultiSteps": lambda tx: optax.MultiSteps(
        tx, 1, should_skip_update_fn=optax.skip_not_finite
    ),
}


def layouts(axis_type):
    mesh = make_mesh(axis_type)
    fsdp = {"kernel": on(mesh, "data"), "bias": on(mesh)}
    return mesh, {"FSDP": fsdp, "zero1": on(mesh)}


# Each two of the three in every pairing.
@pytest.mark.parametrize(
    ("axis_type", "layout", "wrapper"),
    [
        (AxisType.Auto, "FSDP", "apply_if_finite"),
        (AxisType.Auto, "zero1", "MultiSteps"),
        (AxisType.Explicit, "FSDP", "MultiSteps"),
        (AxisType.Explicit, "zero1", "apply_if_finite"),
    ],
)
def test_a_bad_step_is_skipped(axis_type, layout, wrapper):
    """One bad element, on one device, and parameters and state stay to the bit."""
    mesh, places = layouts(axis_type)
    tx = WRAPPERS[wrapper](rmsprop(0.1, **OPTIONS))
    tx = zero1(tx, mesh) if layout == "zero1" else tx

    def poisoned(bad):
        gradients = parameters()
        gradients["kernel"] = gradients["kernel"].at[9, 2].set(bad)
        return jax.device_put(gradients, places[layout])

    good = params = jax.device_put(parameters(), places[layout])
    with jax.numpy_dtype_promotion("standard"):  # optax's own MultiSteps needs it
        expected = state_shardings(tx, params)
        state = jax.jit(tx.init, out_shardings=expected)(params)
        run = jax.jit(train_step(tx))
        params, state = jax.block_until_ready(run(params, state, good))
        before = jax.device_get((params, inner(state)))
        for bad in (np.nan, np.inf, np.nan):
            after = run(params, state, poisoned(bad))
            params, state = jax.block_until_ready(after)
            check_shardings(state, expected)
        jax.tree.map(np.testing.assert_array_equal, (params, inner(state)), before)
        params, state = jax.block_until_ready(run(params, state, good))
    assert inner(state).count == 2
    assert float(abs(params["kernel"] - before[0]["kernel"]).min()) > 0


def inner(state):
    return getattr(state, "inner_state", None) or state.inner_opt_state


@each_axis_type
def test_multi_steps_accumulates_where_the_parameters_are(axis_type):
    mesh, places = layouts(axis_type)
    tx = rmsprop(0.1, momentum=0.9)
    params = jax.device_put(parameters(), places["FSDP"])
    parts = [jax.tree.map(lambda p, t=t: t * p, params) for t in (1.0, 3.0)]
    mean = jax.tree.map(lambda p: 2 * p, params)
    expected = jax.jit(train_step(tx))(params, tx.init(params), mean)
    multi = optax.MultiSteps(tx, 2)
    with jax.numpy_dtype_promotion("standard"):  # optax's own MultiSteps needs it
        state = multi.init(params)
        run = jax.jit(train_step(multi))
        for gradients in parts:
            assert not collectives(run.lower(params, state, gradients).compile())
            params, state = jax.block_until_ready(run(params, state, gradients))
    # MultiSteps accumulates in float32.
    close_in_float32 = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close_in_float32, (params, state.inner_opt_state), expected)
    assert state.acc_grads["kernel"].sharding.is_equivalent_to(on(mesh, "data"), 2)
