"""What XLA's compilers for devices that are not here make of a training step."""

import math
import re
from typing import Any

import jax
from compilers import devices, entry_of
from jax.sharding import SingleDeviceSharding
from support.steps import train_step

from rmsprop_jax.sharding import state_shardings


def home(name: str) -> SingleDeviceSharding:
    return SingleDeviceSharding(devices(name)[0])


def placed(tree: Any, sharding: Any) -> Any:
    """The tree's shapes and dtypes, there."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def state_of(tx: Any, params: Any) -> Any:
    """The shapes of the state, where the parameters' shardings put it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        state_shardings(tx, params),
    )


def compiled(tx: Any, params: Any, there: Any) -> Any:
    """A donated training step over trees of shapes, for that device."""
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(train_step(tx), donate_argnums=(0, 1))
    trees = (placed(tree, there) for tree in (params, state, params))
    return step.lower(*trees).compile()


def kernels(program: Any) -> int:
    """The fusions that the program runs, one after the other."""
    return len(re.findall(r" fusion\(", program.as_text().partition("\nENTRY")[2]))


def held(program: Any) -> int:
    """The bytes of its temporaries."""
    return program.memory_analysis().temp_size_in_bytes


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def transferred(program: Any) -> tuple[int, int]:
    """The bytes that the program reads from the host's memory, and writes there.

    A kernel of a GPU reads it itself; all others are copies.
    """
    types, brought, stored = dict[str, str](), 0, 0
    instruction = r"%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)"
    passed_on = {"parameter", "tuple", "get-tuple-element", "copy-done"}
    for name, result, kind, operands in re.findall(instruction, entry_of(program)):
        types[name] = result
        if kind in passed_on:
            continue
        if kind == "copy-start" and "S(5)" in result.split("}")[0]:
            stored += _size(result)
        for operand in re.findall(r"%([\w.-]+)", operands):
            if "S(5)" in types[operand]:
                brought += _size(types[operand])
    return brought, stored


def _size(shape: str) -> int:
    """The bytes of the first array of a type."""
    kind, axes = re.findall(r"([a-z]+\d+)\[([\d,]*)\]", shape)[0]
    return (
        math.prod(map(int, filter(None, axes.split(","))))
        * int(re.sub(r"\D", "", kind))
        // 8
    )
