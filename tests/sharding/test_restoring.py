"""The recipe of docs/how-to.md restores onto other devices than those that saved."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, SingleDeviceSharding
from orbax.checkpoint import StandardCheckpointer, v1
from support.meshes import make_mesh, on
from support.untyped import rmsprop

from rmsprop_jax.sharding import check_shardings, state_shardings

PAGE = Path(__file__).parents[2] / "docs/how-to.md"
TX = optax.chain(optax.clip_by_global_norm(1.0), rmsprop(0.1, momentum=0.9))


def save_by_older_interface(path, tree):
    with StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()


def load_by_older_interface(path, like):
    with StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


SAVE = {"v1": v1.save, "older": save_by_older_interface}
LOAD = {"v1": v1.load, "older": load_by_older_interface}


@pytest.fixture(scope="module")
def describe():
    """The function of the page."""
    (source,) = re.findall(r"^def describe.*?\n    \)\n", PAGE.read_text(), re.M | re.S)
    namespace: dict[str, Any] = {"jax": jax, "state_shardings": state_shardings}
    exec(compile(source, str(PAGE), "exec"), namespace)
    return namespace["describe"]


@pytest.mark.parametrize("interfaces", ["v1 v1", "older older", "older v1"])
def test_onto_other_devices(interfaces, describe, tmp_path):
    save, load = (
        table[name]
        for table, name in zip((SAVE, LOAD), interfaces.split(), strict=True)
    )
    places = [
        on(make_mesh(AxisType.Auto, data=8), "data"),
        on(make_mesh(AxisType.Auto, data=2), "data"),
        SingleDeviceSharding(jax.devices()[5]),
    ]
    here = {"w": jnp.arange(48.0).reshape(16, 3), "b": jnp.ones(8)}
    trees = []
    for n, place in enumerate(places):
        params = jax.device_put(here, place)
        _, state = TX.update(params, jax.jit(TX.init)(params), params)
        save(tmp_path / str(n), {"params": params, "state": state})
        trees.append({"params": params, "state": state})
    for n, saved in enumerate(trees):
        params = jax.device_put(here, places[n - 1])
        restored = load(tmp_path / str(n), describe(TX, params))
        check_shardings(restored["state"], state_shardings(TX, params))
        for name, p in restored["params"].items():
            assert p.sharding == params[name].sharding
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
