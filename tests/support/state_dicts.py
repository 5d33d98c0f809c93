"""State_dicts as torch makes them, of NumPy arrays, and a step from one."""

import json

import jax
import numpy as np

OLD_GROUP = {"lr": 0.1, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0}
GROUP = OLD_GROUP | {"foreach": None}  # which shows that it is torch's


def made_up(shapes, groups=None, dtype=np.float32, *, momentum=0.0, centered=False):
    """A state_dict of NumPy arrays as of torch, with a consistent state."""
    rng = np.random.default_rng(0)

    def array(shape):
        x = rng.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return x.astype(dtype)

    def squares(shape):
        x = array(shape)
        if np.iscomplexobj(x):
            return (np.square(x.real) + 1j * np.square(x.imag) + 16 + 16j).astype(dtype)
        return (np.square(x) + 16).astype(dtype)

    state = {}
    for i, shape in enumerate(shapes):
        state[i] = {"step": np.float32(7), "square_avg": squares(shape)}
        if momentum:
            state[i]["momentum_buffer"] = array(shape)
        if centered:
            state[i]["grad_avg"] = array(shape)
    settings = GROUP | {"momentum": momentum, "centered": centered}
    groups = groups or [{**settings, "params": list(range(len(shapes)))}]
    return {"state": state, "param_groups": groups}


def without_second_state():
    """One parameter never had a gradient; and the weights, which know its shape."""
    state_dict = made_up([(3,), (2, 2)], momentum=0.9)
    del state_dict["state"][1]
    return state_dict, {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}


def two_groups():
    """Two parameters with settings of their own each."""
    state_dict = made_up([(2, 3), (3,)])
    first = GROUP | {"lr": 0.5, "momentum": 0.5, "centered": True, "params": [0]}
    second = GROUP | {"lr": 0.25, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1}
    second |= {"maximize": True, "params": [1]}
    state_dict["state"][0]["momentum_buffer"] = np.ones((2, 3), np.float32)
    state_dict["state"][0]["grad_avg"] = np.full((2, 3), 2, np.float32)
    return state_dict | {"param_groups": [first, second]}


def flat(state_dict):
    state = state_dict["state"].items()
    tensors = {
        f"state.{i}.{k}": np.asarray(v) for i, of in state for k, v in of.items()
    }
    return tensors | {"param_groups": json.dumps(state_dict["param_groups"])}


def update(tx, gradients, state, params=None):
    """The same as tx.update, compiled."""
    return jax.jit(tx.update)(gradients, state, params)
