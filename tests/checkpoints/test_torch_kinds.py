"""Which optimizer made a state_dict of torch's form, and its settings in our terms."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparisons import assert_same
from support.state_dicts import OLD_GROUP, made_up, update
from support.untyped import checkpoints as functions

from rmsprop_jax import dialects

TIMM = {"decoupled_decay": False, "lr_in_momentum": True}
NUMBERS = {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0}
RULES = {
    "torch": dialects.torch(0.1, **NUMBERS),
    "timm": dialects.timm(0.1, **NUMBERS),
    "stable_baselines3": dialects.stable_baselines3(0.1, **NUMBERS),
}


def state_dict_of(settings, step, least):
    """With the least value that ν has, relative to α^t."""
    state_dict = made_up([(3,)], [OLD_GROUP | settings | {"params": [0]}])
    buffers = state_dict["state"][0]
    buffers["step"] = step
    buffers["square_avg"][1] = least * 0.9 ** float(step)
    return state_dict


@pytest.mark.parametrize(
    ("settings", "step", "least", "kinds"),
    [
        ({"foreach": None}, np.float32(5), 2, {"torch", "stable_baselines3"}),
        ({"foreach": None}, 5, 2, {"torch", "stable_baselines3"}),
        ({"maximize": False}, 5, 2, {"torch", "stable_baselines3"}),
        ({}, 5, 0.99, {"torch", "stable_baselines3"}),  # an old torch
        ({}, 5, 0.0, {"torch", "stable_baselines3"}),
        ({}, 5, 2, {"stable_baselines3"}),
        ({}, np.float32(5), 2, {"stable_baselines3"}),
        ({}, 5, 1 - 1e-6, {"stable_baselines3"}),  # α^t, rounded
        ({}, 5000, 1, {"stable_baselines3"}),
        (TIMM, np.float32(5), 2, {"timm"}),
        (TIMM | {"foreach": None}, 5, 0, {"timm"}),
    ],
)
def test_takes_each_for_what_it_is(settings, step, least, kinds):
    """And refuses the others, naming the function that takes it."""
    state_dict = state_dict_of(settings, step, least)
    gradients = {"a": jnp.ones(3)}
    made_by = next(kind for kind in RULES if kind in kinds)
    for kind in RULES:
        if kind not in kinds:
            with pytest.raises(ValueError, match=f"use from_{made_by}"):
                getattr(functions, f"from_{kind}")(state_dict, names="a")
            tx = RULES[made_by]
            state = tx.init(gradients)
            with pytest.raises(ValueError, match=f"like must be of .*use to_{made_by}"):
                getattr(functions, f"to_{kind}")(state, like=state_dict, names="a")
            continue
        tx, state = getattr(functions, f"from_{kind}")(state_dict, names="a")
        expected = update(RULES[made_by], gradients, state)
        assert_same(update(tx, gradients, state), expected)
        back = getattr(functions, f"to_{kind}")(state, like=state_dict, names="a")
        assert_same(back, state_dict)


def test_an_old_torch_says_so_itself():
    """What from_torch says to do where both are possible."""
    state_dict = state_dict_of({}, 5, 2)
    with pytest.raises(ValueError, match="'foreach': None into its groups"):
        functions.from_torch(state_dict, names="a")
    state_dict["param_groups"][0]["foreach"] = None
    functions.from_torch(state_dict, names="a")


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"lr_in_momentum": False, "momentum": 0.5}, None),
        ({"decoupled_decay": True, "weight_decay": 0.1}, None),
        ({"caution": True, "momentum": 0.5}, None),
        # Without momentum, timm ignores it.
        ({"caution": True}, {}),
        ({"corrected_weight_decay": True, "weight_decay": 0.1}, {"weight_decay": 0.1}),
        (
            {
                "decoupled_decay": True,
                "corrected_weight_decay": True,
                "max_lr_snapshot": 0.5,
                "weight_decay": 0.1,
            },
            {
                "decoupled_decay": True,
                "corrected_weight_decay": True,
                "max_lr": 0.5,
                "weight_decay": 0.1,
            },
        ),
    ],
)
def test_settings_of_timm(settings, arguments):
    momentum = settings.get("momentum", 0)
    group = OLD_GROUP | TIMM | settings | {"params": [0]}
    state_dict = made_up([(3,)], [group], momentum=momentum)
    tx, state = functions.from_timm(state_dict, names="a")
    arguments = settings if arguments is None else arguments
    by_hand = dialects.timm(0.1, **NUMBERS | arguments)
    params = {"a": jnp.arange(3.0)}
    assert_same(
        update(tx, params, state, params), update(by_hand, params, state, params)
    )


def test_an_old_timm_does_not_say_the_largest_rate():
    """Its schedulers do; else it is asked for."""
    group = OLD_GROUP | TIMM | {"decoupled_decay": True, "corrected_weight_decay": True}
    state_dict = made_up([(3,)], [group | {"weight_decay": 0.1, "params": [0]}])
    with pytest.raises(ValueError, match="must have 'max_lr_snapshot'"):
        functions.from_timm(state_dict, names="a")
    one, other = copy.deepcopy(state_dict), copy.deepcopy(state_dict)
    one["param_groups"][0]["max_lr_snapshot"] = 0.5
    other["param_groups"][0]["initial_lr"] = 0.5
    params = {"a": jnp.ones(3)}
    updates = [
        update(
            *(lambda tx, s: (tx, params, s, params))(
                *functions.from_timm(each, names="a", learning_rate=0.25)
            )
        )
        for each in (one, other)
    ]
    assert_same(*updates)


@pytest.mark.parametrize("kind", ["timm", "stable_baselines3"])
def test_where_nu_begins_at_one(kind):
    """What never had a gradient begins there too; and goes back with what it has."""
    settings = TIMM if kind == "timm" else {}
    state_dict = made_up([(3,), (2,)], [OLD_GROUP | settings | {"params": [0, 1]}])
    for buffers in state_dict["state"].values():
        buffers["step"] = 7
    del state_dict["state"][1]
    weights = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    tx, state = getattr(functions, f"from_{kind}")(state_dict, names=weights)
    assert_same(state.nu["b"], tx.init(weights).nu["b"])
    assert state.nu["b"].all()
    _, state = update(tx, jax.tree.map(jnp.zeros_like, weights), state)
    back = getattr(functions, f"to_{kind}")(state, like=state_dict, names=weights)
    np.testing.assert_allclose(back["state"][1]["square_avg"], 0.9, rtol=1e-6)
    assert back["state"][1]["step"] == 1


# --- Names that the framework itself settles.


def timm_checkpoint(decays=(0.0, 0.1), sizes=(3, 1)):
    """A norm, a head and statistics, in groups as timm's script makes them."""
    weights = {
        "conv.weight": np.ones((2, 1, 1, 1), np.float32),
        "bn.weight": np.ones(2, np.float32),
        "bn.bias": np.ones(2, np.float32),
        "bn.running_mean": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.ones((), np.int64),
        "token.bias": np.ones((1, 2), np.float32),
    }
    order = ["bn.weight", "bn.bias", "token.bias", "conv.weight"]
    state_dict = made_up([weights[name].shape for name in order])
    ids = iter(range(4))
    state_dict["param_groups"] = [
        OLD_GROUP | TIMM | {"weight_decay": d, "params": [next(ids) for _ in range(n)]}
        for d, n in zip(decays, sizes, strict=True)
    ]
    return {"optimizer": state_dict, "state_dict": weights}, order


def test_names_as_timm_s_script_makes_the_groups():
    checkpoint, order = timm_checkpoint()
    _, state = functions.from_timm(checkpoint)
    inner = state.inner_states
    for i, name in enumerate(order):
        group = f"group_{int(i == 3)}"
        np.testing.assert_array_equal(
            inner[group].inner_state.nu[name],
            checkpoint["optimizer"]["state"][i]["square_avg"],
        )


def test_refuses_to_guess_names_of_other_groups_of_timm():
    checkpoint, _ = timm_checkpoint(sizes=(2, 2))
    with pytest.raises(ValueError, match=r"names must be given.*name_of\[p\]"):
        functions.from_timm(checkpoint)
    checkpoint, _ = timm_checkpoint(decays=(0.1, 0.1))
    with pytest.raises(ValueError, match="names must be given"):
        functions.from_timm(checkpoint)
    checkpoint, _ = timm_checkpoint()
    shape = checkpoint["optimizer"]["state"][0]["square_avg"].shape
    checkpoint["state_dict"]["bn.weight"] = np.ones((*shape, 1), np.float32)
    with pytest.raises(ValueError, match="names must be given"):
        functions.from_timm(checkpoint)


def test_names_as_stable_baselines3_has_the_policy():
    """Without statistics and target networks; what is shared is there once."""
    shared = np.ones((2, 3), np.float32)
    weights = {
        "features_extractor.weight": shared,
        "pi_features_extractor.weight": shared,
        "vf_features_extractor.weight": shared,
        "norm.running_var": np.ones(4, np.float32),
        "q_net.weight": np.ones(5, np.float32),
        "q_net_target.weight": np.ones(5, np.float32),
    }
    state_dict = made_up([(2, 3), (5,)])
    checkpoint = {"policy.pth": weights, "policy.optimizer.pth": state_dict}
    _, state = functions.from_stable_baselines3(checkpoint)
    assert state.nu.keys() == {"features_extractor.weight", "q_net.weight"}
    weights["other"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="names must be given"):
        functions.from_stable_baselines3(checkpoint)


def test_warns_of_the_schedule_of_an_agent():
    """Its file has a function as a pickle, and a number as it is."""
    checkpoint = {
        "data": '{"learning_rate": {":type:": "<class \'function\'>"}}',
        "policy.optimizer.pth": made_up([(2,)]),
    }
    call = functools.partial(functions.from_stable_baselines3, checkpoint, names=["w"])
    with pytest.warns(UserWarning, match="learning_rate is a function, which may be"):
        call()
    call(learning_rate=0.1)
    for settings in (
        '{"learning_rate": 0.1}',
        '{"learning_rate": [[]]}',
        "[]",
        "{",
        "[" * 9999,
        b"{}",
    ):
        checkpoint["data"] = settings
        call()


def test_refuses_names_that_the_weights_beside_belie():
    checkpoint, order = timm_checkpoint()
    order[0], order[3] = order[3], order[0]
    with pytest.raises(ValueError, match=r"must have shape \(2, 1, 1, 1\)"):
        functions.from_timm(checkpoint, names=order)
