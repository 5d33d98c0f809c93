"""Runs of optax.rmsprop that go on with ours."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.comparisons import assert_same
from support.untyped import from_optax

from rmsprop_jax import RMSPropState, dialects, rmsprop
from rmsprop_jax.sharding import check_shardings, state_shardings

STEPS = 12
OPTIONS = {
    str(options): options
    for options in (
        {},
        {"bias_correction": True, "eps": 1e-3},
        {"initial_scale": 1.0, "nesterov": True, "eps_in_sqrt": False},
        # At the first step its centered variance is noise about 0: a larger eps.
        {"bias_correction": True, "schedule": True, "nesterov": True, "eps": 1e-3},
        {"schedule": True},
    )
}


def schedule(count):
    return jnp.where(count % 3 == 0, 0.001, 0.01)


def half_runs(txs):
    """Half the steps down a parabola with noise, of several runs by name.

    All are one program, which is compiled once for both halves: that is quicker.
    """
    noise = np.random.default_rng(0).normal(size=(STEPS, 2, 5))

    def step(carry, x):
        moved = {}
        for name, tx in txs.items():
            params, state = carry[name]
            gradients = {"a": params["a"] + x[0], "b": 0.1 * params["b"] + x[1]}
            updates, state = tx.update(gradients, state, params)
            moved[name] = optax.apply_updates(params, updates), state
        return moved, None

    compiled = jax.jit(lambda carry, noise: jax.lax.scan(step, carry, noise)[0])

    def half(which, carry):
        part = noise[: STEPS // 2] if which == "first" else noise[STEPS // 2 :]
        return compiled(carry, jnp.asarray(part, start()["a"].dtype))

    return half


def start():
    return {"a": jnp.arange(5.0), "b": jnp.ones(5)}


@pytest.fixture
def standard_promotion():
    """optax's bias correction does not work under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("x64", "standard_promotion")
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_a_run_goes_on(centered, momentum):
    """A run that moves from optax to ours ends where optax alone ends."""
    theirs, ours = {}, {}
    for name, options in OPTIONS.items():
        arguments = {
            "decay": 0.8,
            "centered": centered,
            "momentum": momentum,
            **options,
        }
        rate = schedule if arguments.pop("schedule", False) else 0.01
        theirs[name] = optax.rmsprop(rate, **arguments)
        ours[name] = dialects.optax(rate, **arguments)
    half = half_runs(theirs)
    runs = half("first", {n: (start(), tx.init(start())) for n, tx in theirs.items()})
    moved = {}
    for name, (params, opt_state) in runs.items():
        corrected = OPTIONS[name].get("bias_correction", False)
        known = corrected or OPTIONS[name].get("schedule", False)
        state = from_optax(
            opt_state,
            count=None if known else STEPS // 2,
            decay=0.8 if corrected else None,
        )
        assert state.count == STEPS // 2, name
        structure = jax.tree.structure(ours[name].init(start()))
        assert jax.tree.structure(state) == structure, name
        moved[name] = params, state
    expected = half("second", runs)
    for name, (params, state) in half_runs(ours)("second", moved).items():
        for leaf, p in params.items():
            np.testing.assert_allclose(
                p, expected[name][0][leaf], rtol=1e-12, err_msg=name
            )
        assert state.count == STEPS, name


def test_without_momentum_it_is_a_state_of_rmsprop():
    theirs = optax.rmsprop(0.01, decay=0.9, eps_in_sqrt=False)
    half = half_runs({"": theirs})
    first = half("first", {"": (start(), theirs.init(start()))})
    expected, _ = half("second", first)[""]
    params, opt_state = first[""]
    moved = {"": (params, from_optax(opt_state))}
    found, _ = half_runs({"": rmsprop(0.01, 0.9)})("second", moved)[""]
    for name, p in found.items():
        np.testing.assert_allclose(p, expected[name], rtol=1e-5)


def test_plain_state_is_kept_bit_for_bit():
    nu = {"a": jnp.array([1e-42, jnp.inf, 0.3, 0.0])}
    state = (optax.ScaleByRmsState(nu), optax.EmptyState(), optax.TraceState(nu))
    ours = from_optax(state)
    np.testing.assert_array_equal(ours.nu["a"], nu["a"])
    np.testing.assert_array_equal(ours.mu["a"], -nu["a"])
    assert not np.signbit(ours.mu["a"][3])


def test_variance_is_never_negative():
    mean, square = {"a": jnp.array([2.0, 3.0])}, {"a": jnp.array([3.99, 9.5])}
    ours = from_optax((optax.ScaleByRStdDevState(mu=mean, nu=square),))
    np.testing.assert_array_equal(ours.nu["a"], [0, 0.5])
    np.testing.assert_array_equal(ours.grad_mean["a"], mean["a"])


def test_dtypes_and_leaves_are_those_of_init():
    """bfloat16 is widened; integers, masked leaves and None have no state."""
    params = {
        "wide": jnp.ones(2),
        "narrow": jnp.ones(2, jnp.bfloat16),
        "whole": jnp.ones(2, jnp.int32),
        "masked": optax.MaskedNode(),
    }
    theirs = optax.rmsprop(0.1, momentum=0.9).init(params)
    expected = dialects.optax(0.1, momentum=0.9).init(params)
    ours = from_optax(theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(
        lambda x: x.dtype, expected
    )


@pytest.mark.parametrize("rate", [0.1, optax.linear_schedule(0.1, 0.0, 9)])
@pytest.mark.parametrize("population", [False, True])
def test_shardings_are_kept(rate, population):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    params = {"a": jax.device_put(jnp.ones((16, 2)), sharding)}
    vmap = jax.vmap if population else lambda f: f
    theirs = optax.rmsprop(rate, centered=True, momentum=0.9)
    everywhere = NamedSharding(mesh, P())
    state = jax.tree.map(
        lambda x: jax.device_put(x, sharding if x.ndim > 1 else everywhere),
        vmap(theirs.init)(params),
    )
    ours = from_optax(state)
    for leaf in jax.tree.leaves(ours._replace(count=None)):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert ours.count.sharding.mesh == mesh
    if not population:
        expected = state_shardings(dialects.optax(0.1, momentum=0.9), params)
        check_shardings(ours._replace(grad_mean=None), expected)


def test_chain_with_links_that_have_no_state():
    tx = optax.chain(optax.clip(1.0), optax.rmsprop(0.1, momentum=0.9))
    ours = from_optax(tx.init({"a": jnp.ones(3)}))
    assert isinstance(ours, RMSPropState)
    assert ours.mu is not None


def refused(match, state, **kwargs):
    with pytest.raises(ValueError, match=match):
        from_optax(state, **kwargs)


def test_refuses_other_optimizers():
    params = {"a": jnp.ones(3)}
    refused(r"opt_state\[0\] is a ScaleByAdamState", optax.adam(0.1).init(params))
    refused("no? ?moments|with the moments", optax.sgd(0.1).init(params))


def test_refuses_to_lose_the_state_of_other_links():
    tx = optax.chain(optax.rmsprop(0.1), optax.ema(0.9))
    refused(r"opt_state\[1\] is a EmaState, .*lost", tx.init({"a": jnp.ones(3)}))
    p = {"a": jnp.ones(3)}
    theirs = optax.rmsprop(0.1)
    for tx, part in [
        (optax.MultiSteps(theirs, 2), "opt_state.inner_opt_state"),
        (optax.apply_if_finite(theirs, 3), "opt_state.inner_state"),
        (
            optax.partition({"x": theirs}, {"a": "x"}),
            "opt_state.inner_states['x'].inner_state",
        ),
        (
            optax.chain(optax.clip(1.0), optax.masked(theirs, {"a": True})),
            "[1].inner_state",
        ),
    ]:
        state = tx.init(p)
        refused(f"only the part of optax.rmsprop: .*{re.escape(part)}\\.$", state)
    two = optax.chain(optax.rmsprop(0.1), optax.rmsprop(0.1))
    refused(r"one optax.rmsprop, but opt_state\[1\]\[0\]", two.init({"a": jnp.ones(3)}))


def test_a_checkpoint_is_restored_with_a_template(tmp_path):
    tx = optax.rmsprop(0.1, momentum=0.9, centered=True)
    p = {"a": jnp.arange(3.0)}
    _, opt_state = tx.update(p, tx.init(p))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", opt_state)
        checkpointer.wait_until_finished()
        raw = checkpointer.restore(tmp_path / "state")
        refused(r"opt_state is a (list|dict), .*template.*init\(params\)", raw)
        restored = checkpointer.restore(tmp_path / "state", tx.init(p))
    assert_same(from_optax(restored), from_optax(opt_state))


def test_refuses_complex():
    refused(
        r"leaf \['a'\] is complex64",
        optax.rmsprop(0.1).init({"a": jnp.ones(3, jnp.complex64)}),
    )


def test_refuses_missing_or_needless_decay():
    params = {"a": jnp.ones(3)}
    corrected = optax.rmsprop(0.1, bias_correction=True).init(params)
    refused("decay must be given.*it was None", corrected)
    refused("only then.*0.9", optax.rmsprop(0.1).init(params), decay=0.9)


def test_refuses_counts_that_contradict():
    state = optax.rmsprop(schedule).init({"a": jnp.ones(3)})
    refused(r"different ones, 0 and 5", state, count=5)


@pytest.mark.parametrize("count", [-1, 1.5, jnp.float32(2), jnp.array([1, -2])])
def test_refuses_counts_that_cannot_be(count):
    refused("count must be .*an integer", optax.rmsprop(0.1).init({}), count=count)


def test_a_count_beyond_int32_stays_at_the_largest():
    state = optax.rmsprop(0.1).init({"a": jnp.ones(3)})
    assert from_optax(state, count=2**40).count == 2**31 - 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, np.nan])
def test_refuses_decays_that_cannot_be(decay):
    state = optax.rmsprop(0.1, bias_correction=True).init({"a": jnp.ones(3)})
    refused("decay must be at least 0", state, decay=decay)


INJECTED = {
    "plain": {"learning_rate": 0.01},
    "schedule": {"learning_rate": schedule, "momentum": 0.9},
    "corrected": {"learning_rate": schedule, "bias_correction": True, "decay": 0.8},
    "centered": {"learning_rate": 0.01, "centered": True, "bias_correction": True},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", INJECTED.values(), ids=INJECTED)
@pytest.mark.parametrize("members", [0, 3])
def test_injected_hyperparameters_stay_with_their_schedules(options, members):
    """Also those of a population, in which members differ in a number."""

    def make(function):
        return optax.inject_hyperparams(function)(**{"eps": 1e-3, **options})

    def run(tx, params, state, inputs) -> Any:
        def step(carry, x):
            params, state = carry
            updates, state = tx.update(params * x, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), inputs)[0]

    theirs, ours = make(optax.rmsprop), make(dialects.optax)
    params = jnp.arange(1.0, 6.0)
    state: Any = theirs.init(params)
    resumed = ours.init(params)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
    if members:
        params, state, resumed = jax.tree.map(
            lambda x: jnp.stack([x] * members), (params, state, resumed)
        )
        state.hyperparams["decay"] = jnp.linspace(0.5, 0.9, members)
    first, second = (
        (lambda *args, tx=tx: jax.vmap(run, (None, 0, 0, None))(tx, *args))
        if members
        else (lambda *args, tx=tx: run(tx, *args))
        for tx in (theirs, ours)
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's own states need it
        params, state = first(params, state, inputs[0])
        expected, _ = first(params, state, inputs[1])
        converted = state._replace(inner_state=from_optax(state))
        assert jax.tree.structure(converted) == jax.tree.structure(resumed)
        found, ended = second(params, converted, inputs[1])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.all(ended.count == 12)
    assert np.all(ended.inner_state.count == 12)


def test_a_plain_run_resumed_with_injected_hyperparameters():
    """As the migration page says: all counts are set, those of schedules too."""
    params = {"a": jnp.ones(3)}
    tx = optax.inject_hyperparams(dialects.optax)(learning_rate=schedule)
    ours = from_optax(optax.rmsprop(0.1).init(params), count=5)
    state: Any = tx.init(params)
    state = state._replace(
        count=ours.count,
        hyperparams_states=jax.tree.map(lambda _: ours.count, state.hyperparams_states),
        inner_state=ours,
    )
    counts = optax.tree.get_all_with_path(state, "count")
    assert [int(count) for _, count in counts] == [5, 5, 5]


def test_says_how_under_vmap():
    state = optax.rmsprop(0.1).init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"must not be traced.*whole population"):
        jax.vmap(lambda count: from_optax(state, count=count))(jnp.arange(3))
