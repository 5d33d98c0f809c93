"""The training step whose program is looked at, and the rules that it is made of."""

from collections.abc import Callable
from typing import Any

import jax
from support.untyped import apply_updates

RULES = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
}
DECAYS = {
    "no decay": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
}


def train_step(tx: Any) -> Any:
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return apply_updates(params, updates), state

    return step


def compile_quickly(function: Callable[..., Any]) -> Any:
    """jax.jit for what is run once, where neither last bits nor speed are tested.

    LLVM does not optimize the kernels then, which takes half of the time of compiling.
    """
    options: dict[str, Any] = {"xla_backend_optimization_level": "0"}
    return jax.jit(function, compiler_options=options)
