"""Where a checkpoint has the optimizer's part, and which form that has."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.comparisons import assert_same
from support.state_dicts import GROUP, made_up, two_groups, update
from support.untyped import from_torch, to_torch


def refused(match, *args, **kwargs):
    with pytest.raises(ValueError, match=match):
        from_torch(*args, **kwargs)


# --- The checkpoint of a whole run.


@pytest.mark.parametrize(
    "whole",
    [
        lambda state_dict: {"model": {"a": np.zeros(3)}, "optimizer": state_dict},
        # Lightning's.
        lambda state_dict: {"epoch": 1, "optimizer_states": [state_dict], "loops": {}},
        lambda state_dict: {"trainer": {"state": {"optim": state_dict, "step": 3}}},
    ],
)
def test_the_optimizer_s_part_is_found(whole):
    state_dict = made_up([(3,)])
    _, state = from_torch(whole(state_dict), names="a")
    assert_same(state, from_torch(state_dict, names="a")[1])
    assert_same(to_torch(state, like=whole(state_dict), names="a"), state_dict)


def test_refuses_to_choose_between_optimizers():
    both = {"optimizers": [made_up([(3,)]), made_up([(2,)])]}
    refused(r"one .*\['optimizers'\]\[0\], \['optimizers'\]\[1\]. Give", both)


def test_weights_beside_it_are_used():
    """They know the shape of what never had a gradient."""
    state_dict = made_up([(3,), (2, 2)], momentum=0.9)
    del state_dict["state"][1]
    whole = {"model": {"a": np.zeros(3), "b": np.ones((2, 2))}, "optimizer": state_dict}
    _, state = from_torch(whole, names=["a", "b"])
    assert state.mu["b"].shape == (2, 2)
    refused(
        r"parameter 'b' must have shape \(2, 2\), as its weight",
        whole,
        names=["b", "a"],
    )


# --- The flat form of torch.distributed.checkpoint.


def by_name(state_dict, names):
    """As flatten_optimizer_state_dict=True makes it."""
    flat = {}
    for group in state_dict["param_groups"]:
        for i in group["params"]:
            for key, value in state_dict["state"][i].items():
                flat[f"state.{names[i]}.{key}"] = value
            for key, value in group.items():
                if key != "params":
                    flat[f"param_groups.{names[i]}.{key}"] = value
    return flat


def test_settings_by_name_become_groups():
    nested = two_groups()
    flat = by_name(nested, ["layer.0.weight", "layer.0.bias"])
    tx, state = from_torch(flat)
    other, same = from_torch(nested, names=["layer.0.weight", "layer.0.bias"])
    assert_same(state, same)
    params = {"layer.0.weight": jnp.ones((2, 3)), "layer.0.bias": jnp.ones(3)}
    moved = update(tx, params, state, params)
    assert_same(moved, update(other, params, same, params))
    np.testing.assert_equal(to_torch(state, like=flat), flat)
    step = to_torch(moved[1], like=flat)["state.layer.0.bias.step"]
    assert (step, type(step)) == (8, np.float32)


def test_parameters_with_the_same_settings_are_one_group():
    nested = made_up([(3,), (3,)])
    _, state = from_torch(by_name(nested, ["a", "b"]))
    assert_same(state, from_torch(nested, names=["a", "b"])[1])


def test_refuses_other_keys_in_the_flat_form():
    flat = by_name(made_up([(3,)]), ["a"])
    refused("'state.weight.square_avg'.*has the key 'model.a'", flat | {"model.a": 0})


# --- Names.


def test_names_without_what_wrappers_add():
    """As those of the weights are."""
    state_dict = made_up([(3,), (2,)])
    group = state_dict["param_groups"][0]
    group["param_names"] = ["module._orig_mod.a", "module.block._orig_mod.b"]
    _, state = from_torch(state_dict)
    assert state.nu.keys() == {"a", "block.b"}
    assert_same(to_torch(state, like=state_dict), state_dict)
    del group["param_names"]
    for prefix in ("", "module.", "_orig_mod."):
        weights = {f"{prefix}a": np.zeros(3), f"{prefix}block.b": np.zeros(2)}
        assert_same(from_torch(state_dict, names=weights)[1], state)


def test_refuses_a_model_s_order_for_several_groups():
    """In the model's order, parameters of one shape would change their places."""
    groups = [GROUP | {"params": [0]}, GROUP | {"weight_decay": 0.1, "params": [1]}]
    state_dict = made_up([(3,), (3,)], groups)
    model = {"0.bias": np.zeros(3), "0.weight": np.zeros(3)}
    line = r"\[name_of\[p\] for group in optimizer.param_groups for p in group\['par"
    refused(f"names must be a list .*2 groups.*{line}", state_dict, names=model)
    refused(f"names must be given.*{line}", state_dict)
    _, state = from_torch(state_dict, names=["0.weight", "0.bias"])
    first = state.inner_states["group_0"].inner_state.nu["0.weight"]
    assert_same(first, jnp.asarray(state_dict["state"][0]["square_avg"]))
    with pytest.raises(ValueError, match=r"names must be a list .*because like has 2"):
        to_torch(state, like=state_dict, names=model)
    # With the names of the groups there is nothing to guess.
    for group, name in zip(groups, ["0.weight", "0.bias"], strict=True):
        group["param_names"] = [name]
    assert_same(from_torch(state_dict, names=model)[1], state)


# --- Schedulers.


@pytest.mark.parametrize(
    ("name", "trace"), [("learning_rate", "initial_lr"), ("momentum", "max_momentum")]
)
def test_warns_of_a_scheduler_that_nothing_goes_on_for(name, trace):
    """With a number in its place, as with a schedule, it stays as it was meant."""
    group = GROUP | {"momentum": 0.9, trace: 0.5, "params": [0]}
    state_dict = made_up([(3,)], [group], momentum=0.9)
    value = {"learning_rate": 0.1, "momentum": 0.9}[name]
    with pytest.warns(UserWarning, match=f"{name} is not given, .*at {value}") as found:
        from_torch(state_dict, names="a")
    assert found[0].filename == __file__
    for given in (0.1, lambda count: 0.1 * count.astype(float)):
        from_torch(state_dict, names="a", **{name: given})


def test_momentum_that_cycles():
    """torch's OneCycleLR changes it at every step; our count starts at torch's."""
    state_dict = made_up([(3,)], momentum=0.9)
    table = jnp.linspace(0.5, 0.95, 20)
    tx, state = from_torch(state_dict, names="a", momentum=lambda count: table[count])
    _, after = update(tx, {"a": jnp.zeros(3)}, state)
    np.testing.assert_allclose(after.mu["a"], table[7] * state.mu["a"], rtol=1e-6)


def test_schedule_that_is_ahead_of_the_count():
    """AMP's GradScaler skips steps, and torch's scheduler steps on."""
    state_dict = made_up([(3,)])
    skipped = 2

    def rate(count):
        return 0.01 * count.astype(float)

    ahead, state = from_torch(
        state_dict, names="a", learning_rate=lambda count: rate(count + skipped)
    )
    unit, _ = from_torch(state_dict, names="a", learning_rate=1.0)
    gradients = {"a": jnp.ones(3)}
    np.testing.assert_allclose(
        update(ahead, gradients, state)[0]["a"],
        0.09 * update(unit, gradients, state)[0]["a"],
        rtol=1e-6,
    )
