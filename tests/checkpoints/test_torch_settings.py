"""What a state_dict says beside its buffers: groups, steps, rates, names, its form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparisons import assert_same
from support.state_dicts import (
    GROUP,
    OLD_GROUP,
    flat,
    made_up,
    two_groups,
    update,
    without_second_state,
)
from support.untyped import from_torch, to_torch

from rmsprop_jax import rmsprop


def test_settings_of_each_group_count():
    state_dict = two_groups()
    tx, state = from_torch(state_dict, names=["a", "b"])
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    gradients = jax.tree.map(lambda p: p * 0.3, params)
    updates, state = update(tx, gradients, state, params)
    square_avg = state_dict["state"][0]["square_avg"]
    mean = 0.9 * 2 + 0.1 * 0.3
    variance = 0.9 * square_avg + 0.1 * 0.09 - mean**2
    buffer = 0.5 + 0.3 / (np.sqrt(variance) + 1e-6)
    np.testing.assert_allclose(updates["a"], -0.5 * buffer, rtol=1e-5)
    square_avg = 0.5 * state_dict["state"][1]["square_avg"] + 0.5 * 0.2**2
    direction = (-0.3 + 0.1) / (np.sqrt(square_avg) + 1e-3)
    np.testing.assert_allclose(updates["b"], -0.25 * direction, rtol=1e-5)
    back = to_torch(state, like=state_dict, names=["a", "b"])
    assert back["state"][1].keys() == {"step", "square_avg"}
    assert back["state"][0]["step"] == back["state"][1]["step"] == 8
    np.testing.assert_allclose(back["state"][1]["square_avg"], square_avg, rtol=1e-6)
    assert back["param_groups"] == state_dict["param_groups"]


def test_single_leaf_and_groups_without_parameters():
    state_dict = made_up([(2, 3)], [GROUP | {"params": [0]}, GROUP | {"params": []}])
    tx, state = from_torch(state_dict, lambda weights: weights["a"].T, names=["a"])
    expected = jax.eval_shape(tx.init, jnp.zeros((3, 2)))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    back = to_torch(state, lambda p: {"a": p.T}, like=state_dict, names=["a"])
    assert_same(back, state_dict)


def test_equal_groups_are_one():
    """mmcv and detectron2 make a group for each parameter, most of them equal."""
    names = [f"layers.{n}.weight" for n in range(100)]
    groups = [GROUP | {"params": [n], "param_names": [names[n]]} for n in range(100)]
    state_dict = made_up([(3,)] * 100, groups)

    def stack(weights):
        return {"layers": np.stack([weights[name] for name in names])}

    def unstack(params):
        return dict(zip(names, params["layers"], strict=True))

    tx, state = from_torch(state_dict, stack)
    params = {"layers": jnp.zeros((100, 3))}
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    one = rmsprop(0.1, 0.9, 1e-6)
    assert str(jax.make_jaxpr(tx.update)(params, state)) == str(
        jax.make_jaxpr(one.update)(params, one.init(params))
    )
    assert_same(to_torch(state, unstack, like=state_dict), state_dict)
    # Two learning rates are two groups, however many there are in the file.
    for group in groups[50:]:
        group["lr"] = 0.2
    _, state = from_torch(state_dict)
    assert list(state.inner_states) == ["group_0", "group_50"]
    assert_same(to_torch(state, like=state_dict), state_dict)
    with pytest.raises(ValueError, match="must keep parameters of different groups"):
        from_torch(state_dict, stack)


def test_schedule_goes_on_at_torch_s_count():
    """A multiplication by the count shows it."""
    state_dict = made_up([(3,)])
    tx, state = from_torch(
        state_dict, names=["a"], learning_rate=lambda count: 0.5 * count.astype(float)
    )
    unit, _ = from_torch(state_dict, names=["a"], learning_rate=1.0)
    gradients = {"a": jnp.ones(3)}
    np.testing.assert_allclose(
        update(tx, gradients, state)[0]["a"],
        3.5 * update(unit, gradients, state)[0]["a"],
        rtol=1e-6,
    )


def test_a_rate_for_each_group():
    state_dict = two_groups()
    tx, state = from_torch(
        state_dict, names=["a", "b"], learning_rate=[0.0, lambda count: 0 * count]
    )
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    updates, _ = update(tx, params, state, params)
    assert not any(x.any() for x in jax.tree.leaves(updates))


def test_one_rate_for_groups_that_had_the_same():
    state_dict = two_groups()
    state_dict["param_groups"][1]["lr"] = 0.5
    tx, state = from_torch(state_dict, names=["a", "b"], learning_rate=0.0)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    assert not any(
        x.any() for x in jax.tree.leaves(update(tx, params, state, params)[0])
    )


def test_groups_that_join_late_are_at_the_schedule_s_step():
    """torch's schedulers have one step for all groups, frozen ones too."""
    state_dict = two_groups()
    del state_dict["state"][1]
    for group, name in zip(state_dict["param_groups"], "ab", strict=True):
        group["param_names"] = [name]
    weights = {"a": np.ones((2, 3)), "b": np.ones(3)}
    tx, state = from_torch(state_dict, names=weights)
    assert [s.inner_state.count for s in state.inner_states.values()] == [7, 7]
    _, state = update(tx, weights, state, weights)
    back = to_torch(state, like=state_dict, names=weights)["state"]
    assert [back[i]["step"] for i in back] == [8, 1]


def test_late_parameters_keep_their_own_steps():
    """The count is the most; every parameter's step moves on by as much."""
    state_dict = made_up([(3,), (3,)])
    state_dict["state"][1]["step"] = np.float32(2)
    tx, state = from_torch(state_dict, names=["a", "b"])
    assert state.count == 7
    assert_same(to_torch(state, like=state_dict, names=["a", "b"]), state_dict)
    _, state = update(tx, {"a": jnp.ones(3), "b": jnp.ones(3)}, state)
    back = to_torch(state, like=state_dict, names=["a", "b"])["state"]
    assert [back[i]["step"] for i in back] == [8, 3]


@pytest.mark.parametrize("step", [7, 7.0, np.float32(7), np.array(7.0, np.float32)])
def test_steps_keep_their_kind(step):
    state_dict = made_up([(3,)])
    state_dict["state"][0]["step"] = step
    tx, state = from_torch(state_dict, names=["a"])
    _, state = update(tx, {"a": jnp.ones(3)}, state)
    back = to_torch(state, like=state_dict, names=["a"])["state"][0]["step"]
    assert back == 8
    assert type(back) is type(step)


def test_old_checkpoints():
    """Without foreach and maximize, and older ones without momentum and centered."""
    state_dict = made_up([(3,)], [OLD_GROUP | {"params": [0]}])
    # Less than what Stable-Baselines3's, which begins at 1, can have.
    state_dict["state"][0]["square_avg"][1] = 0
    tx, state = from_torch(state_dict, names=["a"])
    updates, _ = update(tx, {"a": jnp.ones(3)}, state)
    assert (np.asarray(updates["a"]) < 0).all()
    assert state.mu is None
    assert state.grad_mean is None


def test_a_buffer_that_torch_no_longer_uses_stays():
    """momentum was turned off in mid-run: torch keeps the buffer, and so do we."""
    state_dict = made_up([(3,)], momentum=0.9)
    state_dict["param_groups"][0]["momentum"] = 0
    _, state = from_torch(state_dict, names=["a"])
    assert state.mu is None
    assert_same(to_torch(state, like=state_dict, names=["a"]), state_dict)


def test_parameter_without_a_gradient_yet():
    """Zeros for us; back, nothing as long as it is so, and else its own state."""
    state_dict, weights = without_second_state()
    tx, state = from_torch(state_dict, names=weights)
    assert_same(state.nu["b"], jnp.zeros((2, 2)))
    assert_same(to_torch(state, like=state_dict, names=weights), state_dict)
    gradients = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}
    _, state = update(tx, gradients, state)
    assert to_torch(state, like=state_dict, names=weights)["state"].keys() == {0}
    _, state = update(tx, {"a": jnp.ones(3), "b": jnp.ones((2, 2))}, state)
    back = to_torch(state, like=state_dict, names=["a", "b"])["state"]
    assert back[1].keys() == {"step", "square_avg", "momentum_buffer"}
    assert (back[0]["step"], back[1]["step"]) == (9, 2)
    assert_same(back[1]["square_avg"], np.array(state.nu["b"]))


def test_optimizer_that_has_not_stepped_as_like():
    """From scratch in JAX into a new optimizer: the weights say the kind."""
    tx = rmsprop(momentum=0.9)
    params = {"b": jnp.ones(2)}
    _, state = update(tx, params, tx.init(params), params)
    group = GROUP | {"momentum": 0.9, "params": [0]}
    like = {"state": {}, "param_groups": [group]}
    back = to_torch(state, like=like, names={"b": np.ones(2)})["state"][0]
    assert back["square_avg"].dtype == np.float64
    np.testing.assert_array_equal(back["momentum_buffer"], state.mu["b"])
    assert back["step"] == 1


def test_names_from_the_checkpoint():
    state_dict = made_up([(3,), (2,)])
    state_dict["param_groups"][0]["param_names"] = ["x", "y"]
    _, state = from_torch(state_dict)
    assert state.nu.keys() == {"x", "y"}
    assert_same(to_torch(state, like=state_dict), state_dict)


def test_weights_by_name_in_any_order():
    """A whole model's dictionary does, where the checkpoint knows the names."""
    state_dict, _ = without_second_state()
    state_dict["param_groups"][0]["param_names"] = ["x", "y"]
    weights = {"running_mean": 0, "y": np.ones((4,)), "x": np.ones(3)}
    _, state = from_torch(state_dict, names=weights)
    assert jax.tree.map(jnp.shape, state.nu) == {"x": (3,), "y": (4,)}


def test_names_as_identifiers():
    """torch.distributed.checkpoint keeps the state by name."""
    state_dict = made_up([(3,)])
    state_dict["state"] = {"layer.weight": state_dict["state"][0]}
    state_dict["param_groups"][0]["params"] = ["layer.weight"]
    _, state = from_torch(state_dict)
    assert state.nu.keys() == {"layer.weight"}
    assert_same(to_torch(state, like=state_dict), state_dict)


def test_given_names_may_rename():
    """torch.compile puts a prefix before each name."""
    state_dict = made_up([(3,)])
    state_dict["param_groups"][0]["param_names"] = ["_orig_mod.a"]
    _, state = from_torch(state_dict, names=["a"])
    assert state.nu.keys() == {"a"}


@pytest.mark.parametrize("groups", [json.dumps, json.loads])
def test_flat(groups):
    nested = made_up([(3,), (2, 2)], momentum=0.9)
    flattened = flat(nested)
    if groups is json.loads:
        flattened["param_groups"] = groups(flattened["param_groups"])
    _, state = from_torch(flattened, names=["a", "b"])
    assert_same(state, from_torch(nested, names=["a", "b"])[1])
    assert_same(to_torch(state, like=flattened, names=["a", "b"]), flattened)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    flattened = flat(made_up([(3,), (2, 2)], momentum=0.9))
    groups = flattened.pop("param_groups")
    path = tmp_path / "optimizer.safetensors"
    numpy.save_file(flattened, path, {"param_groups": groups})
    with safetensors.safe_open(path, "np") as file:
        loaded = {k: file.get_tensor(k) for k in file.keys()} | file.metadata()  # noqa: SIM118
    _, state = from_torch(loaded, names=["a", "b"])
    back = to_torch(state, like=loaded, names=["a", "b"])
    numpy.save_file({k: v for k, v in back.items() if k != "param_groups"}, path)
    assert_same(numpy.load_file(path), flattened)
