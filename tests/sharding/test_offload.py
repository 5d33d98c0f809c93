"""The state in the host's memory: where it is, and the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType
from support.meshes import (
    OPTIONS,
    compiled,
    make_mesh,
    on,
    shardings_of,
)
from support.steps import train_step
from support.untyped import offload, rmsprop, zero1

from rmsprop_jax.sharding import check_shardings, state_shardings

needs_host_memory = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="this jax can't shard arrays in the host's memory",
)
SHAPES = {"kernel": (16, 24), "bias": (8,), "scale": ()}


def parameters(mesh, *spec):
    """Of float32, all but the scalar split in this way."""
    rng = np.random.default_rng(0)
    return {
        name: jax.device_put(
            np.asarray(rng.normal(size=shape), np.float32),
            on(mesh, *(spec if shape else ())),
        )
        for name, shape in SHAPES.items()
    }


def gradients(params, t):
    return jax.tree.map(lambda p: jnp.sin(p * t), params)


def memories(tree):
    return [x.sharding.memory_kind for x in jax.tree.leaves(tree)]


def train(tx, params, steps=4):
    """The parameters and the state after some donated steps under jit."""
    expected = state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=expected)(params)
    params = jax.tree.map(jnp.copy, params)
    places = shardings_of(params)
    step = jax.jit(
        train_step(tx), donate_argnums=(0, 1), out_shardings=(places, expected)
    )
    for t in range(steps):
        given = gradients(params, t + 1.0)
        params, state = step(params, state, given)
        check_shardings(state, expected)
    return params, state


def assert_same(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        jax.device_get(found),
        jax.device_get(expected),
    )


# Where the state is does not change the arithmetic: each option and each type of axes
# in one of the three ways.
@needs_host_memory
@pytest.mark.parametrize(
    ("around", "option", "axis_type"),
    [
        ("alone", "all", AxisType.Auto),
        ("FSDP", "plain", AxisType.Auto),
        ("FSDP", "bfloat16", AxisType.Explicit),
        ("zero1", "all", AxisType.Explicit),
        ("zero1", "bfloat16", AxisType.Auto),
    ],
)
def test_the_numbers_are_those_without(around, option, axis_type):
    options = OPTIONS[option]
    mesh = make_mesh(axis_type)
    params = parameters(mesh, *(["data"] if around == "FSDP" else []))
    tx = rmsprop(0.01, **options)
    if around == "zero1":
        tx = zero1(tx, mesh)
    expected = train(tx, params)
    found = train(offload(tx), params)
    assert_same(found, expected)
    scalars = {"device"}
    for x in jax.tree.leaves(found[1]):
        assert {x.sharding.memory_kind} == ({"pinned_host"} if x.ndim else scalars)
    # But for the memory, they are where they are without.
    moved = jax.tree.map(lambda x: x.with_memory_kind("device"), shardings_of(found[1]))
    check_shardings(jax.device_put(found[1], moved), shardings_of(expected[1]))


@needs_host_memory
def test_outside_of_jit():
    options = OPTIONS["all"]
    params = jax.device_put(parameters(make_mesh()), jax.devices()[0])
    plain = optax.chain(optax.clip_by_global_norm(1.0), rmsprop(0.01, **options))
    tx = offload(plain)
    expected_state, state = plain.init(params), tx.init(params)
    for t in range(3):
        given = gradients(params, t + 1.0)
        expected, expected_state = plain.update(given, expected_state, params)
        updates, state = tx.update(given, state, params)
        assert_same((updates, state), (expected, expected_state))
        check_shardings(state, state_shardings(tx, params))
        assert set(memories(updates)) == {"device"}


SCALE_BY_VALUE = optax.GradientTransformationExtraArgs(
    lambda params: (),
    lambda updates, state, params=None, **extra: (
        jax.tree.map(lambda u: u * extra["value"], updates),
        state,
    ),
)
CHAINS = {
    "clipped first": lambda tx: optax.chain(optax.clip_by_global_norm(0.1), tx),
    "clipped last": lambda tx: optax.chain(tx, optax.clip_by_global_norm(0.1)),
    "optax's": lambda tx: optax.rmsprop(0.1, momentum=0.9),
    "injected": lambda tx: optax.inject_hyperparams(rmsprop)(0.1, momentum=0.9),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.sgd(0.1)},
        {"kernel": "a", "bias": "b", "scale": "a"},
    ),
    "extra arguments": lambda tx: optax.chain(tx, SCALE_BY_VALUE),
}


@needs_host_memory
@pytest.mark.parametrize("chain", CHAINS)
def test_chains(chain):
    params = parameters(make_mesh(), "data")
    plain = optax.with_extra_args_support(CHAINS[chain](rmsprop(0.1, momentum=0.9)))
    tx = offload(plain)
    places = state_shardings(tx, params)
    expected_state = plain.init(params)
    state = jax.jit(tx.init, out_shardings=places)(params)
    for t in range(3):
        given = gradients(params, t + 1.0)
        updates, state = jax.jit(tx.update)(given, state, params, value=t * 1.0)
        expected, expected_state = plain.update(
            given, expected_state, params, value=t * 1.0
        )
        assert_same((updates, state), (expected, expected_state))
    assert "pinned_host" in memories(state)


@needs_host_memory
@pytest.mark.parametrize(
    ("around", "operation"),
    [
        (lambda tx: optax.apply_if_finite(tx, 5), "cond"),
        (
            lambda tx: optax.GradientTransformation(tx.init, jax.jit(tx.update)),
            "(pjit|jit)",
        ),
    ],
    ids=["apply_if_finite", "jit"],
)
def test_all_leaves_at_once_are_warned_of(around, operation):
    params = {k: jnp.ones(3) for k in "abc"}
    plain = around(rmsprop(0.1, momentum=0.9))
    tx = offload(plain)
    match = rf"offload has 6 arrays of the state .* in one {operation}\."
    with pytest.warns(UserWarning, match=match):
        updates, _ = tx.update(params, tx.init(params), params)
    assert_same(updates, plain.update(params, plain.init(params), params)[0])


@needs_host_memory
def test_the_memories_are_told_apart():
    params = parameters(make_mesh(), "data")
    tx = rmsprop(0.1)
    expected = state_shardings(tx, params, memory_kind="pinned_host")
    assert expected == state_shardings(offload(tx), params)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"\.nu\['bias'\] must be .* in pinned_host"):
        check_shardings(state, expected)
    check_shardings(jax.device_put(state, expected), expected)
    with pytest.raises(ValueError, match="tape"):
        state_shardings(tx, params, memory_kind="tape")


@needs_host_memory
def test_orbax_saves_and_restores_it(tmp_path):
    params = parameters(make_mesh(), "data")
    tx = offload(rmsprop(0.01, momentum=0.9))
    params, state = train(tx, params)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(tx.init, params),
            state_shardings(tx, params),
        )
        restored = saver.restore(tmp_path / "state", like)
    check_shardings(restored, state_shardings(tx, params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    given = gradients(params, 1.0)
    found, expected = (
        jax.jit(tx.update)(given, of, params) for of in (restored, state)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@needs_host_memory
def test_donated_state_is_updated_in_place():
    params = parameters(make_mesh(), "data")
    tx = offload(rmsprop(0.01, momentum=0.9))
    state = tx.init(params)
    program = compiled(train_step(tx), params, state, params, donate_argnums=(0, 1))
    memory = program.memory_analysis()
    kept = memory.alias_size_in_bytes + memory.host_alias_size_in_bytes
    assert kept >= sum(x.nbytes for x in jax.tree.leaves((params, state))) // 8


def test_an_older_jax_can_not(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    with pytest.raises(NotImplementedError, match="offload needs jax 0"):
        offload(rmsprop(0.1))
