"""Bad input is refused in a sentence that says what, where, and what to do."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from support.untyped import dialects, rmsprop, stochastic_rounding

import rmsprop_jax
from rmsprop_jax import scale_by_rmsprop, schedules
from rmsprop_jax._optimizer.transform import get_config

NUMBERS = ["learning_rate", "alpha", "eps", "weight_decay", "momentum", "initial_scale"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["name"]
)
@dataclasses.dataclass
class Named:
    """A module with a field that is no leaf."""

    w: jax.Array
    name: str


P = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}


def refused(error, *words):
    """Expect an error whose message has all of these, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words)))


@pytest.mark.parametrize("bad", [-0.1, -1, float("nan"), float("inf"), np.float32(-1)])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite_and_not_negative(name, bad):
    with refused(ValueError, name, "must be", "not negative", "but it was", str(bad)):
        rmsprop(**{name: bad})


@pytest.mark.parametrize("name", NUMBERS)
def test_arrays_are_real_scalars(name):
    with refused(ValueError, name, "scalar", "shape (2,)", "vmap"):
        rmsprop(**{name: jnp.ones(2)})
    with refused(ValueError, name, "real", "complex64"):
        rmsprop(**{name: jnp.asarray(1j)})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", ["0.1", None, True, [0.1]])
def test_numbers_are_numbers(name, bad):
    if bad is None and name in ("weight_decay", "momentum"):
        assert get_config(rmsprop(**{name: None})) == get_config(rmsprop(**{name: 0.0}))
        return
    with refused(TypeError, name, "number", repr(bad)):
        rmsprop(**{name: bad})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_too_large_for_a_float(name):
    with refused(ValueError, name, "must be a finite number"):
        rmsprop(**{name: 10**400})


@pytest.mark.parametrize("name", ["rmsprop", *dialects.__all__])
def test_a_decay_rate_is_at_most_1(name):
    """By the dialect's own name of it. Above 1, finite gradients would give NaN."""
    make = rmsprop if name == "rmsprop" else getattr(dialects, name)
    rate = next(iter(inspect.signature(make).parameters))
    alpha = get_config(make(**{rate: 0.1})).name("alpha")
    with refused(ValueError, alpha, "must be at most 1", "but it was 1.5"):
        make(**{rate: 0.1, alpha: 1.5})
    make(**{rate: 0.1, alpha: 1})


def test_keys_of_random_numbers_are_not_parameters():
    params = {"w": jnp.ones(2), "dropout": jax.random.key(0)}
    with refused(TypeError, "['dropout']", "key<fry>", "optax.masked"):
        rmsprop().init(params)


def test_a_schedule_returns_a_scalar():
    g = jnp.ones(2)
    for name in ("learning_rate", "alpha", "eps", "weight_decay", "momentum"):
        for bad, was in [
            (jnp.ones(3), ["shape (3,)"]),
            (jnp.asarray(1j), ["complex64"]),
            ({"rate": 1.0}, ["{'rate': 1.0}"]),
        ]:
            tx = rmsprop(**{name: lambda count, bad=bad: bad})
            with refused(ValueError, name, "schedule", "real scalar", *was):
                tx.update(g, tx.init(g), g)


def test_a_pair_of_schedules_is_no_schedule():
    with refused(TypeError, "learning_rate", "a pair: give its learning_rate"):
        rmsprop(schedules.one_cycle_lr(0.1, 100))


def test_what_cannot_be_a_schedule():
    with refused(TypeError, "initial_scale", "for the whole run", "schedule"):
        rmsprop(initial_scale=lambda count: 0.0)
    words = ["alpha", "schedule with bias_correction", "same value at every step"]
    with refused(TypeError, *words):
        rmsprop(alpha=lambda count: 0.9, bias_correction=True)
    with refused(TypeError, "seed", "must be an integer"):
        rmsprop(seed=lambda count: 0)


def test_errors_say_the_name_that_the_user_wrote():
    """Of every dialect, for every number that it takes."""
    yes_or_no = ("foreach",)  # whose default is None
    for dialect in map(dialects.__dict__.get, dialects.__all__):
        names = inspect.signature(dialect).parameters
        rate, *_ = names
        for name, parameter in names.items():
            if isinstance(parameter.default, bool) or name in yes_or_no:
                with refused(TypeError, name, "must be True or False", "'yes'"):
                    dialect(**{rate: 0.1} | {name: "yes"})
                continue
            if name == "max_lr":
                continue
            with refused(ValueError, name, "must be a finite number, not negative"):
                dialect(**{rate: 0.1} | {name: -1.0})
    tx = dialects.keras(rho=lambda count: jnp.ones(2))
    with refused(ValueError, "rho must be a schedule that returns a real scalar"):
        tx.update(P, tx.init(P))
    with refused(ValueError, "initial_scale", "bias_correction"):
        dialects.optax(0.1, initial_scale=1.0, bias_correction=True)
    with refused(TypeError, "decay can't be a schedule with bias_correction"):
        dialects.optax(0.1, decay=lambda count: 0.9, bias_correction=True)


def test_traced_values_pass_unread():
    state = jax.jit(lambda x: rmsprop(x, x, x, x, x).init(P))(-1.0)
    assert jax.tree.structure(state) == jax.tree.structure(
        rmsprop(0.1, momentum=0.9).init(P)
    )


def test_integers_are_numbers():
    g = jnp.ones(2)
    for one in (1, np.int64(1), jnp.asarray(1)):
        tx = rmsprop(one, momentum=one, weight_decay=one)
        updates, _ = tx.update(g, tx.init(g), g)
        assert updates.dtype == jnp.float32


@pytest.mark.parametrize("name", ["centered", "nesterov", "maximize", "eps_in_sqrt"])
def test_flags_are_booleans(name):
    with refused(TypeError, name, "True or False", "0.9"):
        rmsprop(**{name: 0.9})


@pytest.mark.parametrize("bad", ["int32", "complex64", bool, "no such dtype", None])
def test_state_dtype_is_a_real_float(bad):
    for make in (rmsprop, scale_by_rmsprop):
        with refused(
            ValueError, "state_dtype", "must be 'float64', 'float32'", repr(bad)
        ):
            make(state_dtype=bad)


@pytest.mark.parametrize("make", [rmsprop, scale_by_rmsprop, stochastic_rounding])
def test_seed_is_an_integer_of_32_bits(make):
    for bad in (1.5, True, "0", None, np.zeros(2), jnp.float32(1.5)):
        with refused(TypeError, "seed", "must be an integer", repr(bad)):
            make(seed=bad)
    for bad in (-1, 2**32, np.array(2**40)):
        with refused(ValueError, "seed", "from 0 to 4294967295", str(bad)):
            make(seed=bad)
    make(seed=np.int64(3))


def test_state_dtypes_that_would_lose_the_run():
    with refused(ValueError, "'float16'", "square", "'bfloat16'"):
        rmsprop(state_dtype="float16")
    with refused(ValueError, "'float64'", "jax_enable_x64"):
        rmsprop(state_dtype="float64")


def test_bias_correction_needs_alpha_below_one():
    rmsprop(alpha=1.0)
    with refused(ValueError, "alpha", "less than 1", "bias_correction", "1.0"):
        rmsprop(alpha=1.0, bias_correction=True)


def test_bias_correction_forgets_what_it_began_with():
    with refused(ValueError, "initial_scale", "must be 0", "bias_correction", "1.0"):
        rmsprop(initial_scale=1.0, bias_correction=True)


def test_an_injected_mask_is_no_schedule():
    def mask(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    tx = optax.inject_hyperparams(rmsprop)(
        0.1, weight_decay=0.1, weight_decay_mask=mask
    )
    with refused(ValueError, "weight_decay_mask", "function", "False", "static_args"):
        tx.update(P, tx.init(P), P)
    # One boolean may have come from there, too.
    tx = rmsprop(weight_decay=0.1, weight_decay_mask=True)
    with refused(ValueError, "it was True", "To decay all leaves, leave it out"):
        tx.update(P, tx.init(P), P)


def test_decay_needs_params():
    tx = rmsprop(weight_decay=0.1)
    with refused(ValueError, "params", "weight decay", "update(gradients, state, p"):
        tx.update(P, tx.init(P))


def test_a_mask_is_like_the_parameters():
    for mask, words in [
        ({"head": True}, ["['head'] is unexpected", "['layer']['b'] is missing"]),
        ({"layer": {"w": True}}, ["leaf ['layer']['b'] is missing."]),
        (FrozenDict(layer=True), ["a FrozenDict where there must be a dict."]),
    ]:
        tx = rmsprop(weight_decay=0.1, weight_decay_mask=mask)
        with refused(ValueError, "weight_decay_mask", "prefix", *words):
            tx.update(P, tx.init(P), P)
    tx = rmsprop(weight_decay=0.1, weight_decay_mask={"layer": np.array([True, False])})
    with refused(ValueError, "one boolean per leaf", "['layer']", "shape (2,)"):
        tx.update(P, tx.init(P), P)


def test_a_mask_of_the_whole_model_inside_of_another():
    p = P | {"head": jnp.ones((2, 2))}
    mask = {"layer": {"w": True, "b": False}, "head": True}

    def inside(mask) -> Any:
        tx = rmsprop(weight_decay=0.1, weight_decay_mask=mask)
        return optax.masked(tx, {"layer": False, "head": True})

    tx = inside(mask)
    words = ["['layer']['b'] is unexpected", "masked", "Give a function", "lambda"]
    with refused(ValueError, "weight_decay_mask", *words):
        tx.update(p, tx.init(p), p)
    # As the message says.
    tx = inside(lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    updates, _ = tx.update(p, tx.init(p), p)
    bare = rmsprop(weight_decay=0.1)
    expected, _ = bare.update(p["head"], bare.init(p["head"]), p["head"])
    np.testing.assert_array_equal(updates["head"], expected)


def test_gradients_have_the_parameters_tree():
    tx = rmsprop()
    state = tx.init(P)
    w, b = P["layer"]["w"], P["layer"]["b"]
    with refused(ValueError, "gradients", "['layer']['b'] is missing", "init"):
        tx.update({"layer": {"w": w}}, state)
    with refused(ValueError, "gradients", "['layer']['c'] is unexpected"):
        tx.update({"layer": {"w": w, "b": b, "c": b}}, state)
    with refused(ValueError, "gradients", "['layer']['w'] is missing"):
        tx.update({"layer": (w, b)}, state)
    with refused(ValueError, "gradients", "a FrozenDict where there must be a dict."):
        tx.update({"layer": FrozenDict(w=w, b=b)}, state)
    named = rmsprop().init(Named(w, "first"))
    with refused(ValueError, "a Named in it has other keys, or other fields"):
        tx.update(Named(w, "second"), named)


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (jnp.ones((3, 2)), ["must have shape (2, 3)", "(3, 2)"]),
        (jnp.ones((1, 3)), ["must have shape (2, 3)", "(1, 3)"]),
        (jnp.ones((2, 3), jnp.complex64), ["must be real", "complex64"]),
        (jnp.ones((2, 3), jnp.int32), ["must be real and floating-point", "int32"]),
    ],
)
def test_gradients_have_the_parameters_shape_and_kind(gradient, words):
    tx = rmsprop()
    with refused(ValueError, "gradient", "['layer']['w']", *words):
        tx.update({"layer": {"w": gradient, "b": jnp.ones(3)}}, tx.init(P))


def test_a_real_gradient_of_a_complex_parameter():
    tx = rmsprop()
    with refused(ValueError, "gradient of leaf the root", "must be complex", "float32"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2, jnp.complex64)))


def test_a_float_gradient_of_an_integer_parameter():
    tx = rmsprop()
    state = tx.init({"steps": jnp.arange(3)})
    with refused(ValueError, "['steps']", "float32", "integer", "optax.masked"):
        tx.update({"steps": jnp.ones(3)}, state)


def test_parameters_belong_to_the_gradients():
    tx = rmsprop(weight_decay=0.1)
    state = tx.init(P)
    with refused(ValueError, "params", "['layer']['b'] is missing"):
        tx.update(P, state, {"layer": {"w": P["layer"]["w"]}})
    with refused(ValueError, "params", "['layer']['b']", "shape (3,)", "(1,)"):
        tx.update(P, state, {"layer": {"w": P["layer"]["w"], "b": jnp.ones(1)}})


def test_a_state_made_with_other_options():
    plain = rmsprop().init(P)
    with refused(ValueError, "state.mu, which momentum needs", "missing", "init"):
        rmsprop(momentum=0.9).update(P, plain)
    with refused(ValueError, "state.grad_mean, which centered needs", "missing"):
        rmsprop(centered=True).update(P, plain)
    with refused(ValueError, "state.mu must be None without momentum", "_replace"):
        rmsprop().update(P, rmsprop(momentum=0.9).init(P))
    with refused(ValueError, "state.grad_mean must be None without centered"):
        rmsprop().update(P, rmsprop(centered=True).init(P))
    broken = rmsprop(momentum=0.9).init(P)
    broken.mu["layer"]["b"] = jnp.ones(1)
    with refused(ValueError, "state.mu", "['layer']['b']", "(3,)", "(1,)"):
        rmsprop(momentum=0.9).update(P, broken)


@pytest.mark.parametrize(
    "other", ["optax", "chain", "tuple", "list", "dict", "swapped", "none"]
)
def test_another_state(other):
    states = {
        "list": list(rmsprop().init(P)),
        "dict": rmsprop().init(P)._asdict(),
        "swapped": P,
        "optax": optax.rmsprop(0.1).init(P),
        "chain": optax.chain(optax.clip(1.0), rmsprop()).init(P),
        "tuple": tuple(rmsprop().init(P)),
        "none": None,
    }
    was = type(states[other]).__name__
    words = [f"it was a {was}", "update(gradients", "from_optax", "tx.init(params)"]
    for tx, kind in [
        (rmsprop(), "RMSPropState"),
        (stochastic_rounding(), "StochasticRoundingState"),
        (rmsprop_jax.precision.master_weights(rmsprop()), "MasterWeightsState"),
    ]:
        with refused(TypeError, f"state must be the {kind}", *words):
            tx.update(P, states[other], P)
