"""ZeRO stage 1: each device has its part of the state, and the run is the same."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.meshes import (
    bytes_on_each_device,
    collectives,
    compiled,
    each_axis_type,
    each_option,
    each_option_and_axis_type,
    make_mesh,
    on,
    shardings_of,
)
from support.steps import compile_quickly, train_step
from support.untyped import rmsprop, zero1

from rmsprop_jax.sharding import check_shardings, state_shardings

# Split along the first dimension, the second, neither; of each, elements and zeros.
SHAPES = {"in": (16, 256), "middle": (256,), "out": (3, 8), "odd": (3, 5), "scale": ()}
PARTS = {"in": 512, "middle": 32, "out": 3, "odd": 2, "scale": 1}


def parameters(mesh, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    params = {
        name: np.asarray(rng.normal(size=shape), dtype)
        for name, shape in SHAPES.items()
    }
    return jax.device_put(params, on(mesh))


def batch(mesh, dtype=jnp.float32):
    x = np.random.default_rng(1).normal(size=(32, 16)).astype(dtype)
    return jax.device_put(x, on(mesh, "data"))


def loss(params, x):
    x = jnp.tanh(x @ params["in"] * params["middle"][None])
    x = jnp.sin(x[:, :8] @ params["out"].T * params["scale"])
    return jnp.mean(jnp.cos(x @ params["odd"]))


def data_parallel_step(tx):
    def step(params, state, x):
        return train_step(tx)(params, state, jax.grad(loss)(params, x))

    return step


def trained(tx, params, x, steps=8):
    state = compile_quickly(tx.init)(params)
    step = compile_quickly(data_parallel_step(tx))
    for _ in range(steps):
        params, state = jax.block_until_ready(step(params, state, x))
    return jax.device_get(params)


@functools.cache
def trained_on_one_device(**options):
    one = make_mesh(data=1)
    params, x = parameters(one, jnp.float64), batch(one, jnp.float64)
    return trained(rmsprop(0.01, **options), params, x)


@each_option_and_axis_type
def test_trains_as_the_unsplit_run(x64, axis_type, options):
    """In float64, as in float32 such a run makes much of a last bit.

    The digits' network in float32 ends up to 0.05 away within 132 steps, and as much
    from itself on one device; in float64 it is 5e-13.
    """
    mesh = make_mesh(axis_type)
    params, x = parameters(mesh, jnp.float64), batch(mesh, jnp.float64)
    expected = trained_on_one_device(**options)
    found = trained(zero1(rmsprop(0.01, **options), mesh), params, x)
    for name, p in expected.items():
        np.testing.assert_allclose(found[name], p, rtol=0, atol=1e-8)
        assert abs(p - np.asarray(params[name])).max() > 0.01


@each_option
def test_updates_as_the_unsplit_run(options):
    """The same gradients give the same updates, to the last bits of float32."""
    mesh = make_mesh()
    params = parameters(mesh)
    tx = rmsprop(0.01, **options)
    split = zero1(tx, mesh)
    update, split_update = jax.jit(tx.update), jax.jit(split.update)
    state, split_state = jax.jit(tx.init)(params), jax.jit(split.init)(params)
    sin = jax.jit(lambda t, params: jax.tree.map(lambda p: jnp.sin(t * p), params))
    for t in range(5):
        gradients = sin(t + 2.0, params)
        expected, state = update(gradients, state, params)
        updates, split_state = split_update(gradients, split_state, params)
        jax.block_until_ready((expected, updates))
        jax.tree.map(
            lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6),
            updates,
            expected,
        )


def roots(program):
    return program.cost_analysis()["transcendentals"]


@functools.cache
def roots_on_one_device(**options):
    tx, params = rmsprop(0.01, **options), parameters(make_mesh(data=1))
    state = jax.eval_shape(tx.init, params)
    return roots(compiled(train_step(tx), params, state, params))


@each_option_and_axis_type
def test_each_device_holds_and_updates_its_part(axis_type, options):
    mesh = make_mesh(axis_type)
    params, x = parameters(mesh), batch(mesh)
    tx = zero1(rmsprop(0.01, **options), mesh)
    state = tx.init(params)
    moments = (state.nu, state.mu, state.grad_mean)
    number = sum(moment is not None for moment in moments)
    size = 2 if options.get("state_dtype") == "bfloat16" else 4
    one = number * size * sum(PARTS.values()) + state.count.nbytes
    held = dict.fromkeys(mesh.devices.flat, one)
    assert bytes_on_each_device(state) == held
    expected = state_shardings(tx, params)
    check_shardings(state, expected)
    check_shardings(jax.jit(tx.init)(params), expected)

    # Gradients that are there already need no sum: each device takes its slice.
    alone = compiled(train_step(tx), params, state, params)
    split = sum(np.prod(shape) > 1 for shape in SHAPES.values())
    assert set(collectives(alone)) == {"all-gather"}
    assert len(collectives(alone)) <= split
    # Each takes the roots of its part only.
    assert 7 * roots(alone) < roots_on_one_device(**options)

    step = data_parallel_step(tx)
    program = compiled(step, params, state, x, donate_argnums=(0, 1))
    assert "all-gather" in collectives(program)
    assert set(collectives(program)) <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert len(collectives(program)) <= split + len(SHAPES)
    # The parameters, and the parts of the state, stay where they are.
    kept = bytes_on_each_device((params, state)).values()
    assert {program.memory_analysis().alias_size_in_bytes} == set(kept)
    replicated = shardings_of(params)
    params, state = jax.block_until_ready(program(params, state, x))
    assert bytes_on_each_device(state) == held
    check_shardings(state, expected)
    check_shardings(params, replicated)


def test_the_parameters_stay_whole_from_step_to_step():
    """Of several steps in one program XLA could keep them split in between."""
    mesh = make_mesh()
    params, x = parameters(mesh), batch(mesh)
    tx = zero1(rmsprop(0.01, weight_decay=0.1), mesh)
    step = data_parallel_step(tx)

    @compile_quickly
    def run(params, state, batches):
        def one(carry, x):
            params, state = carry
            return step(params, state, x), None

        return jax.lax.scan(one, (params, state), batches)[0]

    after, _ = run(params, tx.init(params), jnp.stack([x, x]))
    check_shardings(after, shardings_of(params))


@each_option
def test_what_is_padded_never_matters(options):
    mesh = make_mesh()
    params = parameters(mesh)
    tx = zero1(rmsprop(0.01, **options), mesh)

    def poison(x):
        if x.shape != (1, 16):  # that of "odd", whose 16th element is not there
            return x
        return jax.device_put(x.at[0, 15].set(jnp.nan), x.sharding)

    clean = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    updates, state = update(params, clean, params)
    poisoned, after = update(params, jax.tree.map(poison, clean), params)
    jax.tree.map(np.testing.assert_array_equal, poisoned, updates)
    odd, left_alone = after.nu["odd"], state.nu["odd"]
    assert np.isnan(odd[0, 15])
    assert np.isfinite(odd[0, :15]).all()
    assert left_alone[0, 15] == 0


def test_rounds_at_random_as_the_unsplit_run():
    """The random bits are of an element's place in its leaf, however it is split."""
    mesh = make_mesh()
    params = parameters(mesh)
    tx = rmsprop(0.01, alpha=0.5, state_dtype="bfloat16")
    _, unsplit = jax.jit(tx.update)(params, tx.init(params), params)
    tx = zero1(tx, mesh)
    _, split = jax.jit(tx.update)(params, tx.init(params), params)
    for name, shape in SHAPES.items():
        elements = np.ravel(split.nu[name])[: unsplit.nu[name].size]
        np.testing.assert_array_equal(elements.reshape(shape), unsplit.nu[name])


def test_leaves_without_state_and_masks_by_rank():
    mesh = make_mesh()
    params = parameters(mesh) | {"step": jnp.array([1, 2, 3]), "none": None}
    params = jax.device_put(params, on(mesh))
    gradients = params | {"middle": None}

    tx = rmsprop(0.01, weight_decay=0.1, weight_decay_mask=matrices)
    expected, _ = tx.update(gradients, tx.init(params), params)
    tx = zero1(tx, mesh)
    updates, state = tx.update(gradients, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert state.nu["step"] is None


def test_sums_over_all_elements_are_those_of_the_unsplit_run():
    mesh = make_mesh()
    params, x = parameters(mesh), batch(mesh)
    tx = optax.chain(optax.clip_by_global_norm(1e-3), rmsprop(0.01, eps=0.01))
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=1e-5),
        trained(zero1(tx, mesh), params, x),
        trained(tx, params, x),
    )


@each_axis_type
def test_on_one_axis_of_two(axis_type):
    mesh = make_mesh(axis_type, replica=2, data=4)
    params = parameters(mesh)
    tx = zero1(rmsprop(0.01), mesh)
    state = tx.init(params)
    check_shardings(state, state_shardings(tx, params))
    assert state.nu["in"].sharding.shard_shape((16, 24)) == (4, 24)
    assert state.nu["odd"].shape == (1, 16)


@each_axis_type
def test_refuses_what_is_split_already(axis_type):
    mesh = make_mesh(axis_type)
    params = {"a": jnp.ones(8), "b": jax.device_put(jnp.ones(8), on(mesh, "data"))}
    tx = zero1(rmsprop(0.01), mesh)
    with pytest.raises(ValueError, match=r"Leaf \['b'\] .* it was P.*'data'") as error:
        tx.init(params)
    assert "must be replicated" in str(error.value)
    with pytest.raises(ValueError, match=r"Leaf \['b'\] of params must be replicated"):
        state_shardings(tx, jax.device_put(params, on(mesh, "data")) | {"a": None})


@each_axis_type
def test_refuses_another_mesh(axis_type):
    params = jax.device_put(jnp.ones(8), on(make_mesh(axis_type, data=4)))
    with pytest.raises(ValueError, match=r"on zero1's mesh, .*8.* but .*4"):
        zero1(rmsprop(0.01), make_mesh(axis_type)).init(params)


def test_refuses_an_update_of_another_shape():
    """Both would be padded to the same one."""
    params = {"p": jax.device_put(jnp.ones((2, 3)), on(make_mesh()))}
    tx = zero1(rmsprop(0.01), make_mesh())
    with pytest.raises(
        ValueError, match=r"leaf \['p'\] must have .*\(2, 3\), .*\(1, 3\)"
    ):
        tx.update({"p": jnp.ones((1, 3))}, tx.init(params), params)


def matrices(params):
    return jax.tree.map(lambda p: p.ndim == 2, params)


WRAPPERS: dict[str, Any] = {
    "masked MultiSteps": lambda tx: optax.MultiSteps(optax.masked(tx, matrices), 2),
    "partition": lambda tx: optax.partition(
        {True: tx, False: optax.sgd(0.1)}, matrices
    ),
    "inject_hyperparams": lambda tx: optax.chain(
        tx, optax.inject_hyperparams(rmsprop)(optax.linear_schedule(0.1, 0.01, 5))
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_around_what_is_around_rmsprop(x64, wrapper):
    mesh = make_mesh()
    params, x = parameters(mesh, jnp.float64), batch(mesh, jnp.float64)
    tx = wrapper(rmsprop(0.01, momentum=0.9, weight_decay=0.1))
    with jax.numpy_dtype_promotion("standard"):  # for optax's own
        expected = trained(tx, params, x, 5)
        jax.tree.map(
            lambda p, q: np.testing.assert_allclose(p, q, rtol=0, atol=1e-8),
            trained(zero1(tx, mesh), params, x, 5),
            expected,
        )


def test_refuses_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match="an axis of the mesh, 'data', but it was 'x'"):
        zero1(rmsprop(0.01), make_mesh(), "x")


@each_axis_type
def test_an_abstract_mesh_works_like_a_concrete_one(axis_type):
    mesh = make_mesh(axis_type)
    params, x = parameters(mesh), batch(mesh)
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else mesh:
        abstract = trained(zero1(rmsprop(0.01), mesh.abstract_mesh), params, x)
        concrete = trained(zero1(rmsprop(0.01), mesh), params, x)
    jax.tree.map(np.testing.assert_array_equal, abstract, concrete)
