"""Meshes of eight devices, and what there is to see of a program that runs on them."""

from typing import Any

import compilers
import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

each_axis_type = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"]
)

OPTIONS = {
    "plain": {},
    "all": {
        "momentum": 0.9,
        "nesterov": True,
        "centered": True,
        "weight_decay": 0.1,
    },
    "bfloat16": {"momentum": 0.9, "state_dtype": "bfloat16"},
}
# How axes are typed matters to what is made anew, as the random bits are; otherwise the
# options are arithmetic on a leaf's own elements.
each_option_and_axis_type = pytest.mark.parametrize(
    ("options", "axis_type"),
    [
        pytest.param(OPTIONS["plain"], AxisType.Auto, id="plain-automatic"),
        pytest.param(OPTIONS["all"], AxisType.Explicit, id="all-explicit"),
        pytest.param(OPTIONS["bfloat16"], AxisType.Auto, id="bfloat16-automatic"),
        pytest.param(OPTIONS["bfloat16"], AxisType.Explicit, id="bfloat16-explicit"),
    ],
)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make_mesh(axis_type=AxisType.Auto, **axes):
    """A mesh of these axes; of eight devices along "data" if none are given."""
    axes = axes or {"data": 8}
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes)
    )


def on(mesh, *spec):
    return NamedSharding(mesh, PartitionSpec(*spec))


def shardings_of(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def compiled(step, *args, **options) -> Any:
    """The program of a step with these arguments."""
    return jax.jit(step, **options).lower(*args).compile()


def collectives(program):
    """Every communication in a compiled program, by its kind."""
    found = compilers.collectives(program)
    return [kind for kind, number in found.items() for _ in range(number)]


def bytes_on_each_device(tree):
    """The bytes of a tree of arrays, for each device that holds a part of it."""
    held = {}
    for x in jax.tree.leaves(tree):
        for shard in x.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return held
