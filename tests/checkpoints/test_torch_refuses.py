"""What from_torch and to_torch refuse, naming the parameter and the key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.state_dicts import GROUP, flat, made_up, two_groups, without_second_state
from support.untyped import RMSPropState, from_torch, to_torch

from rmsprop_jax.checkpoints import load_weights


def refused(match, state_dict, *args, error: type[Exception] = ValueError, **kwargs):
    with pytest.raises(error, match=match):
        from_torch(state_dict, *args, **kwargs)


def test_refuses_other_optimizers_state():
    state_dict = made_up([(3,)])
    state_dict["state"][0]["exp_avg"] = np.zeros(3)
    refused(
        "of torch.optim.RMSprop, but parameter 'a' holds 'exp_avg'",
        state_dict,
        names=["a"],
    )
    refused("parameter 0 holds 'exp_avg'", state_dict)


def test_names_are_held_against_the_weights_beside():
    state_dict = made_up([(3,), (2, 3)])
    model = {"0.bias": np.zeros(3), "0.weight": np.zeros((2, 3))}
    whole = {"model": model, "optimizer": state_dict}
    refused(
        "such as '0.weight' in checkpoint, but one was '0.weigth'",
        whole,
        names=["0.bias", "0.weigth"],
    )
    from_torch(whole, names=["0.bias", "0.weight"])
    # A loss may have parameters of its own; a slip leaves the shape and the numbers.
    from_torch(whole, names=["0.bias", "loss.centers"])
    from_torch(whole, names=["0.bias", "1.weight"])
    model["0.weight"] = np.zeros((4, 4))
    from_torch(whole, names=["0.bias", "0.weigth"])


def test_says_what_to_do_with_joined_weights():
    """As DeepSpeed's and fairseq's fp16 optimizers join them, with padding."""
    state_dict = made_up([(12,)])
    hint = r"into one vector, of 12 elements, give names=\['flat'\]"
    refused(hint, state_dict)
    refused(hint, state_dict, names=["kernel", "bias"])
    several = made_up([(12,), (8,)], [GROUP | {"params": [i]} for i in range(2)])
    refused(r"of 12 and 8 elements, give names=\['flat_0', 'flat_1'\]", several)
    with pytest.raises(ValueError, match="names must be") as error:
        from_torch(made_up([(12,), (3,)]))
    assert "vector" not in str(error.value)

    def to_params(weights):
        kernel, bias, padding = np.split(weights["flat"], [6, 9])
        return {"kernel": kernel.reshape(3, 2), "bias": bias, "padding": padding}

    _, state = from_torch(state_dict, to_params, names=["flat"])
    joined = np.concatenate(
        [state.nu[k].ravel() for k in ("kernel", "bias", "padding")]
    )
    np.testing.assert_array_equal(joined, state_dict["state"][0]["square_avg"])


def test_refuses_other_optimizers_groups():
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0, "weight_decay": 0}
    state_dict = {"state": {}, "param_groups": [group | {"params": [0]}]}
    refused("RMSprop, but its group 0 has no 'alpha'", state_dict, names=["a"])
    group = GROUP | {"decoupled_decay": False, "params": [0]}
    refused("timm.optim.RMSpropTF.*use from_timm", made_up([(3,)], [group]), names="a")


@pytest.mark.parametrize(
    ("key", "option"),
    [
        ("step", {}),
        ("square_avg", {}),
        ("momentum_buffer", {"momentum": 0.9}),
        ("grad_avg", {"centered": True}),
    ],
)
def test_refuses_missing_buffers(key, option):
    state_dict = made_up([(3,), (2,)], **option)
    del state_dict["state"][1][key]
    refused(f"parameter 'b' has no '{key}'.*group 0", state_dict, names=["a", "b"])


def test_refuses_buffers_of_another_shape():
    state_dict = made_up([(3, 4)], momentum=0.9)
    state_dict["state"][0]["momentum_buffer"] = np.zeros((4, 3), np.float32)
    refused(
        r"'momentum_buffer' of parameter 'a' must have shape \(3, 4\), as its "
        r"'square_avg' has, but it had \(4, 3\)",
        state_dict,
        names=["a"],
    )


def test_refuses_names_in_an_order_that_the_weights_belie():
    weights = {"b": np.zeros((2,)), "a": np.zeros((3,))}
    refused(
        r"'square_avg' of parameter 'b' must have shape \(2,\), as its weight",
        made_up([(3,), (2,)]),
        names=weights,
    )


def test_refuses_to_params_that_changes_shapes_differently():
    def to_params(weights):  # transposes what has a negative number
        return {"k": weights["a"].T if weights["a"].min() < 0 else weights["a"]}

    refused(
        r"leaf \['k'\] the shape \(3, 4\) for 'square_avg', and the shape \(4, 3\)",
        made_up([(3, 4)], momentum=0.9),
        to_params,
        names=["a"],
    )


def test_refuses_to_params_that_makes_another_tree():
    def to_params(weights):
        return {"k" if weights["a"].min() < 0 else "l": weights["a"]}

    refused(
        "same pytree from every moment, but from 'square_avg'",
        made_up([(3, 4)], momentum=0.9),
        to_params,
        names=["a"],
    )


@pytest.mark.parametrize(
    "to_params",
    [
        lambda weights: {"k": weights["a"] * 2.5},
        lambda weights: {"k": -weights["a"]},
        lambda weights: {"k": np.abs(weights["a"])},
        lambda weights: {"k": weights["a"] ** 2},
        lambda weights: {"k": np.sqrt(np.abs(weights["a"]))},
        lambda weights: {"k": 1 / weights["a"]},
        lambda weights: {"k": weights["a"], "more": np.zeros(2)},
        lambda weights: {"k": np.pad(weights["a"], 1)},
    ],
)
def test_refuses_to_params_that_computes(to_params):
    refused("to_params must only rearrange", made_up([(3,)]), to_params, names=["a"])


def test_refuses_to_params_that_casts():
    refused(
        r"not change the dtype.*leaf \['a'\] was bfloat16",
        made_up([(3,)]),
        lambda weights: jax.tree.map(jnp.bfloat16, weights),
        names=["a"],
    )


def test_refuses_to_params_that_loses_a_parameter():
    for b in ({}, {"b": slice(1)}):
        refused(
            r"left out \(some of\) 'b'",
            made_up([(3,), (2,)]),
            lambda weights, b=b: {"a": weights["a"]} | {k: weights[k][b[k]] for k in b},
            names=["a", "b"],
        )


def test_refuses_to_params_that_needs_what_is_not_there():
    refused(
        "to_params .*asked for 'bn.running_mean'",
        made_up([(3,)]),
        lambda weights: weights["bn.running_mean"],
        names=["a"],
    )


def test_names_those_that_are_most_like_a_wrong_one():
    names = ["bias", "lstm.weight_ih", "lstm.weight_hh"]
    most = r"'lstm\.weight_[ih]h'"
    says = (
        f"asked for 'lstm.weight_h'. The most similar names are {most}, {most}, 'bias'"
    )
    state_dict = made_up([(2,)] * 3)
    refused(says, state_dict, lambda given: given["lstm.weight_h"], names=names)
    weights = dict.fromkeys(names, np.ones(2))
    with pytest.raises(ValueError, match=says):
        load_weights({"model": weights}, lambda given: given["lstm.weight_h"])


def test_refuses_a_path_as_like():
    state_dict = made_up([(3,)])
    _, state = from_torch(state_dict, names="a")
    with pytest.raises(ValueError, match=r"class 'str'.* Read the file first: read"):
        to_torch(state, like="run.pt", names="a")


def test_refuses_leaves_of_groups_that_differ():
    groups = [GROUP | {"params": [i], "alpha": 0.9 + 0.01 * i} for i in range(2)]
    state_dict = made_up([(3,), (3,)], groups)
    refused(
        r"leaf \['ab'\] is made of 'a', 'b', whose groups differ in their settings",
        state_dict,
        lambda weights: {"ab": np.stack([weights["a"], weights["b"]])},
        names=["a", "b"],
    )


def test_refuses_to_guess_names():
    refused("names must be given.*optimizer's 1 parameters", made_up([(3,)]))
    refused(
        "names must be given", made_up([(3,)]), lambda weights: list(weights.values())
    )


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "a"], "a"])
def test_refuses_wrong_numbers_of_names(names):
    refused(
        f"2 different names, one for each parameter.*there were {len(names)},",
        made_up([(3,), (3,)]),
        names=names,
    )


def test_refuses_names_that_are_none():
    refused(
        r"names must be strings.*Give dict",
        made_up([(3,)]),
        names=[("a", np.zeros(3))],
        error=TypeError,
    )


def test_refuses_names_in_another_order_than_the_checkpoint_s():
    state_dict = made_up([(3,), (3,)])
    state_dict["param_groups"][0]["param_names"] = ["a", "b"]
    refused("at position 0 it has 'b' instead of 'a'", state_dict, names=["b", "a"])
    # A dictionary has the model's order, so that it can't rename.
    other = dict.fromkeys(["x", "y"], np.zeros(3))
    refused(r"lacks \['a', 'b'\], and has \['x', 'y'\]", state_dict, names=other)
    state_dict["param_groups"][0]["param_names"] = ["a"]
    refused("for each of its 2 parameters, but it has 1", state_dict)


def test_refuses_to_guess_shapes():
    state_dict, _ = without_second_state()
    refused("parameter 'b' never had a gradient", state_dict, names=["a", "b"])


def test_refuses_what_is_no_state_dict():
    refused("'param_groups'.*, but it was a dictionary of .'model'", {"model": {}})
    refused("'param_groups'.*, but it was .*list", [])
    flattened = flat(made_up([(3,)]))
    refused("the key 'exp.0'", flattened | {"exp.0": 0}, names=["a"])
    refused("the key 'state.5.step'", flattened | {"state.5.step": 0}, names=["a"])
    refused("'params' in every group, but group 0", {"param_groups": [GROUP]})
    twice = made_up([(3,)], [GROUP | {"params": [0]}, GROUP | {"params": [0]}])
    refused("parameter 0 is in 2", twice, names=["a", "b"])
    refused("parameter 1 is in 0", made_up([(3,), (3,)], [GROUP | {"params": [0]}]))


def not_handed_back(
    match, state, like, *args, error: type[Exception] = ValueError, **kwargs
):
    with pytest.raises(error, match=match):
        to_torch(state, *args, like=like, **kwargs)


def test_refuses_another_state():
    like = made_up([(3,)])
    other = optax.adam(0.1).init({"a": jnp.zeros(3)})
    not_handed_back(
        "must be an RMSPropState.*it was tuple", other, like, names="a", error=TypeError
    )


@pytest.mark.parametrize("option", [{"momentum": 0.9}, {"centered": True}])
def test_refuses_other_settings_in_like(option):
    key = "momentum_buffer" if "momentum" in option else "grad_avg"
    plain, other = made_up([(3,)]), made_up([(3,)], **option)
    _, state = from_torch(plain, names="a")
    not_handed_back(
        f"for 'a' like has '{key}', and the state has no", state, other, names="a"
    )
    _, state = from_torch(other, names="a")
    not_handed_back(
        f"for 'a' like has no '{key}', and the state has ", state, plain, names="a"
    )


def test_refuses_from_params_of_other_names():
    like = made_up([(3,)])
    _, state = from_torch(like, names="a")
    not_handed_back(
        "'a' was missing; 'b' was unexpected",
        state,
        like,
        lambda p: {"b": p["a"]},
        names="a",
    )
    not_handed_back("'b' was missing; 'a' was unexpected", state, like, names="b")
    not_handed_back("'a' was missing", state, like, lambda p: p["a"], names="a")


def test_refuses_from_params_of_other_shapes():
    like = made_up([(3, 4)])
    _, state = from_torch(like, names="a")
    not_handed_back(
        r"'square_avg' of 'a' had shape \(4, 3\) instead of \(3, 4\)",
        state,
        like,
        lambda p: {"a": p["a"].T},
        names="a",
    )


def test_refuses_from_params_that_computes_casts_or_mixes():
    like = two_groups()
    like["state"][1] = made_up([(2, 3)])["state"][0]
    _, state = from_torch(like, names=list("ab"))

    def back(**change):
        return lambda p: p | {k: f(p) for k, f in change.items()}

    for match, change in [
        ("only rearrange.*'a'", {"a": lambda p: p["a"] * 2.5}),
        ("dtype.*'a' was float16", {"a": lambda p: p["a"].astype(jnp.float16)}),
        (
            "'a' from leaves of 2 groups",
            {"a": lambda p: np.stack([p["a"][0], p["b"][0]])},
        ),
    ]:
        not_handed_back(match, state, like, back(**change), names=list("ab"))


def test_refuses_a_kind_that_nobody_shows():
    like = {"state": {}, "param_groups": [GROUP | {"params": [0]}]}
    state = RMSPropState(jnp.int32(1), {"a": jnp.ones(3)}, None, None)
    not_handed_back("the dtype for parameter 'a'", state, like, names="a")
