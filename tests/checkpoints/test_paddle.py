"""The state_dict of Paddle's RMSProp into ours; a real one is in test_runs.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded.record_runs import FILES
from support.comparisons import assert_same
from support.state_dicts import update
from support.untyped import from_paddle

from rmsprop_jax import dialects

SETTINGS = {
    "learning_rate": 0.1,
    "rho": 0.9,
    "epsilon": 1e-6,
    "momentum": 0.5,
    "centered": False,
    "weight_decay": None,
}


def made_up(*names, centered=False):
    rng = np.random.default_rng(0)
    state_dict = {}
    for name in names:
        mean, square, momentum = rng.normal(size=(3, 4)).astype(np.float32)
        state_dict |= {
            f"{name}_momentum_0": momentum,
            f"{name}_mean_square_0": square**2 + 4,
            f"{name}_mean_grad_0": mean if centered else np.zeros_like(mean),
        }
    return state_dict


def refused(match, state_dict, **more):
    with pytest.raises(ValueError, match=match):
        from_paddle(state_dict, **SETTINGS | more)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("centered", [False, True])
def test_what_the_settings_do_not_use_is_dropped(momentum, centered):
    state_dict = made_up("linear_0.w_0", centered=centered)
    more = {"momentum": momentum, "centered": centered, "weight_decay": 0.01}
    tx, state = from_paddle(state_dict, **SETTINGS | more)
    by_hand = dialects.paddle(0.1, 0.9, 1e-6, momentum, centered, weight_decay=0.01)
    params = {"linear_0.w_0": jnp.ones(4)}
    assert jax.tree.structure(state) == jax.tree.structure(by_hand.init(params))
    expected = update(by_hand, params, state, params)
    assert_same(update(tx, params, state, params), expected)
    if momentum:
        assert_same(
            np.asarray(state.mu["linear_0.w_0"]), state_dict["linear_0.w_0_momentum_0"]
        )


def test_settings_are_asked_for():
    for name in SETTINGS:
        given = {k: v for k, v in SETTINGS.items() if k != name}
        with pytest.raises(TypeError, match=f"required keyword.* '{name}'"):
            from_paddle(made_up("a"), **given)


@pytest.mark.parametrize("was", [False, True])
def test_refuses_centered_that_the_means_belie(was):
    state_dict = made_up("a", centered=was)
    refused(f"centered must be {was}", state_dict, centered=not was)


def test_names_from_the_weights_file_or_the_model():
    """By the numbers that Paddle gave to the layers, in any order."""
    state_dict = made_up("linear_1.w_0", "linear_0.w_0")
    names = {"frozen": "conv_0.w_0", "a": "linear_0.w_0", "b": "linear_1.w_0"}
    _, state = from_paddle(state_dict, names=names, **SETTINGS)
    assert state.nu.keys() == {"a", "b"}
    assert_same(np.asarray(state.mu["a"]), state_dict["linear_0.w_0_momentum_0"])
    from_file = {"a": np.zeros(4), "StructuredToParameterName@@": names}
    assert_same(from_paddle(state_dict, names=from_file, **SETTINGS)[1], state)
    refused(
        r"no 'linear_1.w_0'. It has \['conv_0.w_0'\]",
        state_dict,
        names={"x": "conv_0.w_0"},
    )


def test_count_of_the_scheduler():
    """Only a schedule depends on it, so it may be given."""
    state_dict = made_up("a")
    assert from_paddle(state_dict, **SETTINGS)[1].count == 0
    state_dict["LR_Scheduler"] = {"last_epoch": 7, "last_lr": 0.1}
    assert from_paddle(state_dict, **SETTINGS)[1].count == 7
    assert from_paddle(state_dict, count=70, **SETTINGS)[1].count == 70


def test_moments_in_bfloat16():
    """NumPy has no bfloat16, so Paddle gives the bits."""
    exact = {k: jnp.asarray(v, jnp.bfloat16) for k, v in made_up("a").items()}
    bits = {k: np.asarray(v).view(np.uint16) for k, v in exact.items()}
    _, state = from_paddle(bits, **SETTINGS)
    assert_same(state.nu["a"], exact["a_mean_square_0"].astype(jnp.float32))


def test_moments_of_float32_weights_of_mixed_precision():
    """As Paddle's source names them; its CPU has no such training."""
    narrow = made_up("linear_0.w_0_fp32_master_0") | {"master_weights": {}}
    _, state = from_paddle(narrow, **SETTINGS)
    assert_same(state, from_paddle(made_up("linear_0.w_0"), **SETTINGS)[1])


def test_refuses_what_is_another_s():
    refused(
        "like 'linear_0.w_0_mean_square_0', but it has 'a_moment1_0'",
        made_up("a") | {"a_moment1_0": np.zeros(4)},
    )
    refused("has 'model'. If it is a whole checkpoint, give", {"model": {}, "opt": {}})
    refused("that has made a step", {"LR_Scheduler": {"last_epoch": 0}})
    refused("has 'dense.weight'", FILES / "paddle.pdparams")
    state_dict = made_up("a")
    del state_dict["a_mean_grad_0"]
    refused("all moments of 'a'.*'mean_grad' is missing", state_dict)
    other = {"a_momentum_0": np.zeros(3)}
    refused("'a', all of one shape, but it has", made_up("a") | other)
