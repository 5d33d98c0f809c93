"""torch's checkpoints into ours and back: a recorded one, and ones that are made up."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from support import digits
from support.comparisons import assert_near, assert_same
from support.state_dicts import made_up, two_groups, update
from support.untyped import from_torch, to_torch

from rmsprop_jax import rmsprop

RECORDED = Path(__file__).parents[1] / "recorded" / "torch_checkpoint.npz"


# --- A recorded checkpoint, and what torch made of it.


def recorded(stage):
    with np.load(RECORDED) as file:
        found = {
            k.removeprefix(f"{stage}/"): file[k]
            for k in file
            if k.startswith(f"{stage}/")
        }
        assert json.loads(str(file["made_by"]))["torch"]
    weights = {n: found.pop(f"weights/{n}") for n in digits.NAMES}
    return weights, found | {"param_groups": str(found["param_groups"])}


@pytest.mark.usefixtures("x64")
def test_recorded_run_goes_on():
    """Two groups: centered with momentum and decay, and neither."""
    weights, state_dict = recorded("before")
    tx, state = from_torch(state_dict, digits.to_params)
    params = jax.tree.map(jnp.array, digits.to_params(weights))
    params, states = digits.jax_steps({"": tx}, {"": params}, {"": state}, 15)
    weights, after = recorded("after")
    assert_near(digits.from_params(params[""]), weights, 1e-12)
    handed_back = to_torch(states[""], digits.from_params, like=state_dict)
    assert handed_back.keys() == after.keys()
    assert json.loads(handed_back.pop("param_groups")) == json.loads(
        after.pop("param_groups")
    )
    assert_near(handed_back, after, 1e-12)


@pytest.mark.usefixtures("x64")
def test_recorded_state_is_that_of_init():
    weights, state_dict = recorded("before")
    tx, state = from_torch(state_dict, digits.to_params)
    expected = jax.eval_shape(tx.init, digits.to_params(weights))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert jax.tree.leaves(jax.tree.map(jnp.shape, state)) == jax.tree.leaves(
        jax.tree.map(jnp.shape, expected)
    )
    dtypes = [x.dtype for x in jax.tree.leaves(state)]
    assert dtypes == [x.dtype for x in jax.tree.leaves(expected)]


def test_recorded_groups_keep_their_settings():
    """Where x64 is off, float64 becomes float32; the settings are unaffected."""
    weights, state_dict = recorded("before")
    tx, state = from_torch(state_dict, digits.to_params)
    assert state.inner_states["group_0"].inner_state.count == 15
    params = jax.tree.map(jnp.float32, digits.to_params(weights))
    first = rmsprop(0.003, 0.99, weight_decay=0.01, momentum=0.9, centered=True)
    second = rmsprop(0.001, 0.9)
    labels = jax.tree.map(lambda p: "group_0" if p.ndim > 1 else "group_1", params)
    by_hand = optax.partition({"group_0": first, "group_1": second}, labels)
    gradients = jax.tree.map(jnp.cos, params)
    updated = update(tx, gradients, state, params)
    assert_same(updated, update(by_hand, gradients, state, params))


# --- There and back.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_there_and_back_bit_for_bit(momentum):
    state_dict = made_up([(2, 3), (3,), (), (0, 2)], momentum=momentum)
    state_dict["state"][1]["square_avg"][:] = [np.inf, 1e-42, -0.0]
    if momentum:
        state_dict["state"][1]["momentum_buffer"][:] = [np.nan, -1e-42, -0.0]
    before = copy.deepcopy(state_dict)
    _, state = from_torch(state_dict, names=list("abcd"))
    assert_same(to_torch(state, like=state_dict, names=list("abcd")), before)
    assert_same(state_dict, before)


def test_real_layouts_there_and_back():
    """Kernels transposed, joined and stacked: each value comes back to its place."""
    state_dict = made_up([(2, 3), (2, 3), (2, 4), (2, 4)], momentum=0.9)

    def to_params(weights):
        joined = np.concatenate([weights["q"], weights["k"]]).T
        return joined, np.stack([weights["a"], weights["b"]])

    def from_params(params):
        joined, stacked = params
        q, k = np.split(np.asarray(joined).T, 2)
        return {"a": stacked[0], "b": stacked[1], "q": q, "k": k}

    _, state = from_torch(state_dict, to_params, names=["q", "k", "a", "b"])
    assert jax.tree.map(jnp.shape, state.mu) == ((3, 4), (2, 2, 4))
    back = to_torch(state, from_params, like=state_dict, names=["q", "k", "a", "b"])
    assert_same(back, state_dict)


def test_centered_variance_is_taken_in_float64():
    """In float32, 1e8 + 3 − (1e4)² would be 0 or 8."""
    state_dict = made_up([(3,)], centered=True)
    state = state_dict["state"][0]
    state["square_avg"] = np.array([1e8 + 8, 4, 1], np.float32)
    state["grad_avg"] = np.array([1e4 + 2**-11, 2, 1 + 2**-10], np.float32)
    _, ours = from_torch(state_dict, names=["a"])
    exact = float(np.float32(1e8 + 8)) - float(np.float32(1e4 + 2**-11)) ** 2
    assert_same(ours.nu["a"], jnp.float32(np.array([max(exact, 0), 0, 0])))
    assert_same(ours.grad_mean["a"], jnp.asarray(state["grad_avg"]))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_centered_there_and_back(dtype):
    """To the last bit but one, and of the real and imaginary parts each."""
    state_dict = made_up([(50,)], dtype=dtype, momentum=0.5, centered=True)
    _, ours = from_torch(state_dict, names=["a"])
    theirs = state_dict["state"][0]
    back = to_torch(ours, like=state_dict, names=["a"])["state"][0]
    assert back["square_avg"].dtype == dtype
    for part in (np.real, np.imag) if dtype == np.complex64 else (np.real,):
        v, m = part(theirs["square_avg"]), part(theirs["grad_avg"])
        variance = v.astype(float) - m.astype(float) ** 2
        np.testing.assert_array_equal(part(ours.nu["a"]), variance.astype(np.float32))
        np.testing.assert_allclose(part(back["square_avg"]), v, rtol=1.2e-7)


def test_it_shares_no_memory():
    """torch may go on with its own tensors, which NumPy sees without a copy."""
    state_dict = made_up([(64, 64)])
    # device_put uses memory that begins at a multiple of 64 as it is.
    memory = np.zeros(64 * 64 + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    aligned = memory[first : first + 64 * 64].reshape(64, 64)
    assert aligned.ctypes.data % 64 == 0
    state_dict["state"][0]["square_avg"] = aligned
    for to_params in (None, jax.device_put):
        _, ours = from_torch(state_dict, to_params, names=["a"])
        before = np.array(ours.nu["a"])
        state_dict["state"][0]["square_avg"] += 1
        np.testing.assert_array_equal(ours.nu["a"], before)
    back = to_torch(ours, like=state_dict, names=["a"])
    back["state"][0]["square_avg"] += 1
    back["param_groups"][0]["lr"] = 0
    np.testing.assert_array_equal(ours.nu["a"], before)
    assert state_dict["param_groups"][0]["lr"] == 0.1


def test_all_of_the_state_can_be_donated():
    """No buffer is in it twice: counts of groups, zeros."""
    state_dict = two_groups()
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    tx, state = from_torch(state_dict, names=["a", "b"])
    donating = jax.jit(tx.update, donate_argnums=(1,))
    donating(params, state, params)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_low_precision_is_kept_in_float32():
    """Like our state for bfloat16 parameters, and back again exactly."""
    state_dict = made_up([(5,)], momentum=0.5)
    for state in state_dict["state"].values():
        state["square_avg"] = state["square_avg"].astype(ml_dtypes.bfloat16)
        state["momentum_buffer"] = state["momentum_buffer"].astype(np.float16)
    tx, ours = from_torch(state_dict, names=["a"])
    expected = jax.eval_shape(tx.init, {"a": jnp.zeros(5, jnp.bfloat16)})
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(
        lambda x: x.dtype, expected
    )
    assert_same(to_torch(ours, like=state_dict, names=["a"]), state_dict)


def test_state_in_bfloat16_goes_to_torch():
    state_dict = made_up([(5,)])
    _, ours = from_torch(state_dict, names=["a"])
    narrow = ours._replace(nu={"a": ours.nu["a"].astype(jnp.bfloat16)})
    back = to_torch(narrow, like=state_dict, names=["a"])
    np.testing.assert_array_equal(
        back["state"][0]["square_avg"], np.float32(narrow.nu["a"])
    )


def test_it_needs_no_torch():
    """Nor does importing it bring torch in."""
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from rmsprop_jax.checkpoints import from_optax, from_torch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
