"""A state read by two processes of jax.distributed, each of which reads its part."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from recorded import runs
from support.continued import far
from support.distributed import extract

# What each process runs: its number, the port, the folder, and where to write.
WORKER = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
number, port, folder, out = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from recorded import runs
from support.continued import continued
from rmsprop_jax.checkpoints import from_torch, load_weights

mesh = jax.make_mesh((4,), ("devices",))

def choose(path, shape):
    spec = ["devices" if size % 4 == 0 else None for size in shape]
    return NamedSharding(mesh, PartitionSpec(*spec))

tx, state = from_torch(folder, shardings=choose)
params = load_weights(folder, shardings=choose)
kernel = params["dense.weight"]  # (3, 4)
assert [shard.data.shape for shard in kernel.addressable_shards] == [(3, 1)] * 2
gradients = [
    {
        "run": {
            name: jax.make_array_from_callback(
                g.shape, choose(name, g.shape), lambda index, g=g: g[index]
            )
            for name, g in of_step.items()
        }
    }
    for of_step in runs.gradients()[runs.BEFORE :]
]
ended, _ = continued({"run": (tx, state, params)}, gradients)
whole = multihost_utils.process_allgather(ended["run"], tiled=True)
if number == "0":
    np.savez(out, **whole)
"""


@pytest.mark.slow
@pytest.mark.parametrize("run", ["two", "four"])
def test_an_fsdp_run_goes_on_in_two_processes(run, tmp_path):
    folder = extract(tmp_path / "fsdp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    arguments = [str(port), str(folder / run), str(tmp_path / "ended.npz")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number), *arguments],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )
        for number in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with (
        np.load(tmp_path / "ended.npz") as ended,
        np.load(folder / f"{run}.npz") as expected,
    ):
        assert far(dict(ended), {n: expected[n] for n in runs.SHAPES}) <= 1e-12
