"""The state is where the parameters are, and an update communicates nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
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
from support.steps import train_step
from support.untyped import RMSPropState, offload, rmsprop, state_shardings, zero1

from rmsprop_jax.precision import master_weights, stochastic_rounding
from rmsprop_jax.sharding import check_shardings

# How leaves are split over a mesh of four by two devices.
LEAVES = {
    "replicated": ((32, 1024), ()),
    "tensor": ((32, 1024), (None, "model")),
    "FSDP": ((32, 1024), ("data",)),
    "both": ((32, 1024), ("data", "model")),
    "FSDP over both": ((32, 1024), (None, ("model", "data"))),
    "bias": ((8,), ("model",)),
    "scale": ((), ()),
}
FEW = ("FSDP", "bias", "scale")


def parameters(axis_type=AxisType.Auto, names=tuple(LEAVES)):
    mesh = make_mesh(axis_type, data=4, model=2)
    rng = np.random.default_rng(0)
    params = {}
    for name in names:
        shape, spec = LEAVES[name]
        p = np.asarray(rng.normal(size=shape), np.float32)
        params[name] = jax.device_put(p, on(mesh, *spec))
    return params


def expected_of(state, params):
    """What the shardings must be, by hand: every moment's its parameter's."""
    shardings = shardings_of(params)
    moments = (None if moment is None else shardings for moment in state[1:])
    return RMSPropState(on(params["scale"].sharding.mesh), *moments)


@each_option_and_axis_type
def test_the_state_is_where_the_parameters_are(axis_type, options):
    params = parameters(axis_type)
    tx = rmsprop(0.1, **options)
    state = tx.init(params)
    expected = expected_of(state, params)
    check_shardings(state, expected)
    check_shardings(jax.jit(tx.init)(params), expected)
    structs = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
    )
    check_shardings(tx.init(structs), expected)
    # Equivalent here means: the same parts on the same devices.
    check_shardings(state, state_shardings(tx, params))
    check_shardings(state, state_shardings(tx, structs))


@each_option_and_axis_type
def test_an_update_communicates_nothing_and_donates_all(axis_type, options):
    params = parameters(axis_type)
    gradients = parameters(axis_type)
    tx = rmsprop(0.1, **options)
    state = jax.jit(tx.init)(params)
    held = bytes_on_each_device((params, state)).values()
    step = train_step(tx)
    program = compiled(step, params, state, gradients, donate_argnums=(0, 1))
    assert not collectives(program)
    assert {program.memory_analysis().alias_size_in_bytes} == set(held)
    before = shardings_of((params, state))
    after = jax.block_until_ready(program(params, state, gradients))
    check_shardings(after, before)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_split_it_is_the_same_run():
    # Nothing of it is summed, so that it is the same to the bit.
    params = parameters()
    tx = rmsprop(0.1, momentum=0.9, centered=True, weight_decay=0.1)

    def run(params):
        state = tx.init(params)
        step = jax.jit(train_step(tx))
        for _ in range(3):
            params, state = jax.block_until_ready(step(params, state, params))
        return jax.device_get((params, state))

    alone = run(jax.device_put(params, jax.devices()[0]))
    jax.tree.map(np.testing.assert_array_equal, run(params), alone)


@each_option
def test_uneven_shards(options):
    """Ten rows on eight devices, which jit allows within a program only."""
    mesh = make_mesh()
    tx = rmsprop(0.1, **options)
    p = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)

    def run(p, constrain):
        p = constrain(p)
        state = tx.init(p)
        for _ in range(3):
            updates, state = tx.update(constrain(jnp.sin(p)), state, p)
            p = constrain(optax.apply_updates(p, updates))
        return p, state.nu

    def rows(x):
        return jax.lax.with_sharding_constraint(x, on(mesh, "data"))

    whole = jax.jit(lambda p: run(p, lambda x: x))(p)
    everywhere = {"in_shardings": on(mesh), "out_shardings": on(mesh)}
    split = compiled(lambda p: run(p, rows), p, **everywhere)
    # As they are split the two results are gathered in the end, and nothing else is.
    assert set(collectives(split)) == {"all-gather"}
    assert len(collectives(split)) <= 2
    jax.tree.map(np.testing.assert_array_equal, split(p), whole)


def weights_only(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


CHAINS: dict[str, Any] = {
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), rmsprop(0.1), optax.trace(0.9)
    ),
    "masked": optax.masked(rmsprop(0.1, momentum=0.9), weights_only),
    "MultiSteps": optax.MultiSteps(rmsprop(0.1, centered=True), 4),
    "inject_hyperparams": optax.inject_hyperparams(rmsprop)(0.1, momentum=0.9),
    "partition": optax.partition(
        {True: rmsprop(0.1, momentum=0.9), False: optax.sgd(0.1, momentum=0.9)},
        weights_only,
    ),
    "apply_if_finite": optax.apply_if_finite(rmsprop(0.1), 5),
    "master_weights": master_weights(rmsprop(0.1)),
    "stochastic_rounding": optax.chain(rmsprop(0.1), stochastic_rounding()),
    "bfloat16": optax.chain(rmsprop(0.1, momentum=0.9, state_dtype="bfloat16")),
}


@pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS)
@each_axis_type
def test_state_shardings_of_a_chain(tx, axis_type):
    with jax.numpy_dtype_promotion("standard"):  # optax's own MultiSteps needs it
        params = parameters(axis_type, FEW)
        expected = state_shardings(tx, params)
        state = jax.jit(tx.init, out_shardings=expected)(params)
        check_shardings(state, expected)
        named = {params[name].shape: params[name].sharding for name in ("FSDP", "bias")}
        mesh = params["FSDP"].sharding.mesh
        for x, sharding in zip(
            jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
        ):
            assert sharding.is_equivalent_to(named.get(x.shape, on(mesh)), x.ndim)
        program = compiled(train_step(tx), params, state, params)
        check_shardings(
            jax.block_until_ready(program(params, state, params))[1], expected
        )


def test_state_shardings_on_a_mesh_without_devices():
    mesh = AbstractMesh((64, 8), ("data", "model"))
    p = jax.ShapeDtypeStruct(
        (4096, 4096), jnp.float32, sharding=on(mesh, *mesh.axis_names)
    )
    shardings = state_shardings(rmsprop(0.1, momentum=0.9), p)
    assert shardings.nu.shard_shape(p.shape) == (64, 512)
    assert shardings.nu.mesh == mesh
    assert shardings.mu == shardings.nu
    assert shardings.count == on(mesh)


def test_state_shardings_within_the_users_mesh():
    if not hasattr(jax, "set_mesh"):
        pytest.skip("this jax has no jax.set_mesh")
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        params = parameters(axis_type)
        tx = rmsprop(0.1)
        with jax.set_mesh(params["both"].sharding.mesh):
            check_shardings(jax.jit(tx.init)(params), state_shardings(tx, params))


def test_state_shardings_on_one_device():
    params = jax.device_put({"p": jnp.ones(3)}, jax.devices()[5])
    state = rmsprop(0.1, momentum=0.9).init(params)
    expected = state_shardings(rmsprop(0.1, momentum=0.9), params)
    assert expected.nu == shardings_of(params)
    check_shardings(state, expected)


def test_state_shardings_restore_a_checkpoint(tmp_path):
    # Nothing in it is replicated but scalars: orbax 0.12 saves other replicated arrays
    # by a jax.sharding.set_mesh that jax 0.7 does not have.
    one, other = "both", "FSDP over both"
    params = parameters(names=(one, other, "scale"))
    tx = optax.chain(rmsprop(0.1), rmsprop(0.1, momentum=0.9, state_dtype="bfloat16"))
    step = jax.jit(train_step(tx))
    _, state = step(params, tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        elsewhere = params | {one: params[other], other: params[one]}
        expected = state_shardings(tx, elsewhere)
        template = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(tx.init, elsewhere),
            expected,
        )
        restored = checkpointer.restore(tmp_path / "state", template)
    check_shardings(restored, expected)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_state_shardings_name_the_leaf_they_cannot_place():
    mesh, other = make_mesh(), make_mesh(model=8)
    good = jax.device_put(jnp.ones(8), on(mesh, "data"))
    tx = rmsprop(0.1)
    with pytest.raises(ValueError, match=r"Leaf \['b'\] of params must have a Named"):
        state_shardings(tx, {"a": good, "b": np.ones(8)})
    with pytest.raises(ValueError, match=r"\['a'\] is on .*\['c'\] on .*Single"):
        state_shardings(tx, {"a": good, "c": jnp.ones(8)})
    with pytest.raises(ValueError, match=r"\['a'\] is on .*\['d'\] on .*model"):
        state_shardings(tx, {"a": good, "d": jax.device_put(good, on(other))})
    with pytest.raises(ValueError, match="params must have at least one leaf"):
        state_shardings(tx, {"a": None})


@each_axis_type
def test_state_shardings_of_a_population(axis_type):
    """The state does not depend on the rates, which are on another mesh, or on none."""
    mesh = make_mesh(axis_type, data=8)
    params = {"w": jax.device_put(jnp.ones((8, 4, 2)), on(mesh, "data"))}
    rates = jnp.linspace(0.01, 0.1, 8)

    def init_of_rates(params):
        return jax.vmap(lambda rate, p: rmsprop(rate, momentum=0.9).init(p))(
            rates, params
        )

    def init(params):
        return jax.vmap(rmsprop(0.1, momentum=0.9).init)(params)

    def update(updates, state, params=None):
        raise NotImplementedError

    if jax.__version_info__ >= (0, 10):  # jax 0.7 takes both
        with pytest.raises(
            ValueError, match=r"tx.init must vmap over sharded .* alone"
        ):
            state_shardings(optax.GradientTransformation(init_of_rates, update), params)
    shardings = state_shardings(optax.GradientTransformation(init, update), params)
    state = jax.jit(init, out_shardings=shardings)(params)
    check_shardings(state, RMSPropState(on(mesh), *[shardings_of(params)] * 2, None))


def test_check_names_the_leaves():
    params = parameters(names=FEW)
    mesh = params["bias"].sharding.mesh
    tx = rmsprop(0.1, momentum=0.9)
    state, expected = tx.init(params), state_shardings(tx, params)
    whole = jax.device_put(state.nu["FSDP"], on(mesh))
    wrong = state._replace(nu=state.nu | {"FSDP": whole})
    with pytest.raises(ValueError, match=r"leaf .nu\['FSDP'\] must be") as error:
        check_shardings(wrong, expected)
    assert "'data'" in str(error.value).split("but it was")[0]
    assert "'data':" in str(error.value).split("but it was")[1]
    assert "bias" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"leaf .count must be .* but it was .*ndarray"
    ):
        check_shardings(jax.device_get(state), expected)
    with pytest.raises(ValueError, match="; …"):
        check_shardings(jax.device_get(state), expected)
    with pytest.raises(ValueError, match=r"leaf .mu\['bias'\] is missing"):
        check_shardings(state, expected._replace(mu=None))
    with pytest.raises(ValueError, match=r"leaf .mu\['bias'\] is unexpected"):
        check_shardings(state._replace(mu=None), expected)
    with pytest.raises(ValueError, match="a tuple where there must be a list"):
        check_shardings([whole], (on(mesh),))
    with pytest.raises(TypeError, match=r"Leaf .count of expected .* but it was P"):
        check_shardings(state, expected._replace(count=PartitionSpec()))


def test_check_takes_equivalent_shardings_for_equal():
    mesh = make_mesh(data=4, model=2)
    x = jax.device_put(jnp.ones((8, 8)), on(mesh, "data", None))
    check_shardings(x, on(mesh, "data"))
    check_shardings(x, on(make_mesh(a=4, b=2), "a"))
    with pytest.raises(ValueError, match="leaf the root must be"):
        check_shardings(x, on(mesh, "model"))
    with pytest.raises(ValueError, match="leaf the root must be"):
        check_shardings(x, on(mesh, None, "data"))
    x = jax.device_put(x, on(mesh, "data"))
    backwards = jax.sharding.Mesh(mesh.devices[::-1], mesh.axis_names)
    with pytest.raises(ValueError, match=r"devices \[6, 7, .* but .* devices \[0, 1,"):
        check_shardings(x, on(backwards, "data"))


def test_check_sees_a_moment_that_jit_made_whole():
    """What this is all for: optax's own moments, under jit, have no sharding."""
    params = parameters(names=FEW)
    tx = optax.scale_by_rms()
    with pytest.raises(ValueError, match=r"leaf .nu\['bias'\] must be"):
        check_shardings(jax.jit(tx.init)(params), state_shardings(tx, params))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda mesh: offload(rmsprop),
            "tx must be .* it was the function rmsprop, which was not called. Write "
            r"offload\(rmsprop\(0\.01\)\)\.",
        ),
        (
            lambda mesh: zero1(rmsprop, mesh),
            r"the function rmsprop, .* Write zero1\(rmsprop\(0\.01\), mesh\)\.",
        ),
        (
            lambda mesh: zero1(mesh, rmsprop(0.01)),
            r"tx must be .* it was Mesh\(.* Write zero1\(rmsprop\(0\.01\), mesh\)\.",
        ),
        (
            lambda mesh: zero1(rmsprop(0.01), "data"),
            r"mesh must be a jax\.sharding\.Mesh or AbstractMesh, .* it was 'data'",
        ),
        (
            lambda mesh: state_shardings(rmsprop, jnp.ones(8)),
            r"the function rmsprop, .* state_shardings\(rmsprop\(0\.01\), params\)",
        ),
        (
            lambda mesh: master_weights(rmsprop),
            r"the function rmsprop, .* Write master_weights\(rmsprop\(0\.01\)\)\.",
        ),
    ],
)
def test_swapped_or_uncalled_arguments_are_refused(call, sentence):
    with pytest.raises(TypeError, match=sentence):
        call(make_mesh())
