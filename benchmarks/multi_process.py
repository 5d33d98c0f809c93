"""Kill processes of a distributed run without warning, and resume the run.

    pip install -e ".[examples]"
    python benchmarks/multi_process.py

Processes on this machine, joined by `jax.distributed`, train a network on the digits
that come with scikit-learn. Parameters, state and batches are split over the devices of
all (FSDP), and orbax saves a sharded checkpoint every few steps. SIGKILL ends one of
them, which may be the coordinator or in the middle of a save. Then all start again from
the last complete checkpoint, with the same number of processes, or more, or fewer. The
script prints what each kill cost, and how far from an uninterrupted run this one ends:
bitwise identical with the same number of processes, and different by rounding
otherwise, because the gradient is summed in another order.

The other processes can't continue without the one that died, and could wait for it for
minutes. So this script kills them too as soon as one has died, as a launcher does.
"""

import argparse
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

from rmsprop_jax import rmsprop
from rmsprop_jax.sharding import state_shardings

STEPS, SAVE_EVERY, BATCH_SIZE, DEVICES = 24, 8, 64, 2  # DEVICES of each process
# A centered ν is near 0 at first, where a small eps would magnify rounding errors.
OPTIMIZER = rmsprop(3e-3, alpha=0.9, eps=1e-3, momentum=0.9, centered=True)


class Kill(NamedTuple):
    """Which of how many processes is killed, and after or while saving which step."""

    processes: int
    victim: int
    step: int
    saving: bool = False


# The kills of two runs. The first ends with 2 processes, the second with 1.
SAME_NUMBER = (Kill(2, victim=1, step=19), Kill(2, victim=0, step=24, saving=True))
OTHER_NUMBERS = (
    Kill(4, victim=0, step=11),
    Kill(2, victim=1, step=13),
    Kill(4, victim=3, step=16, saving=True),
)


class Start(NamedTuple):
    """The result of one start of the processes."""

    bytes: int  # of parameters and state, in each process
    first: int  # step
    last: int
    saved: int  # the last step that was saved
    unfinished: bool  # whether a later save was left unfinished


def init():
    """The parameters and the state."""
    rng = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray(rng.normal(0, 1 / 8, (64, 32)), jnp.float32),
        "hidden_bias": jnp.zeros(32),
        "out": jnp.asarray(rng.normal(0, 1 / 6, (32, 10)), jnp.float32),
        "out_bias": jnp.zeros(10),
    }
    return {"params": params, "state": OPTIMIZER.init(params)}


def logits_of(params, images):
    """From (n, 64) images to (n, 10) logits."""
    x = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"][None])
    return x @ params["out"] + params["out_bias"][None]


def train_step(run, images, labels):
    """One update of parameters and state."""

    def loss_of(params):
        return cross_entropy(logits_of(params, images), labels).mean()

    params = run["params"]
    updates, state = OPTIMIZER.update(jax.grad(loss_of)(params), run["state"], params)
    return {"params": optax.apply_updates(params, updates), "state": state}


def placed(mesh):
    """Shapes and shardings of the run: rows are split where the devices divide them."""

    def split(p):
        rows = P() if p.shape[0] % mesh.size else P("data")
        return jax.ShapeDtypeStruct(
            p.shape, p.dtype, sharding=NamedSharding(mesh, rows)
        )

    shapes = jax.eval_shape(init)
    params = jax.tree.map(split, shapes["params"])
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes["state"],
        state_shardings(OPTIMIZER, params),
    )
    return {"params": params, "state": state}


def batch_of(digits, mesh, i):
    """The batch of step i, of which each process makes its part."""
    rows = np.random.default_rng(i).choice(len(digits["labels"]), BATCH_SIZE)
    split = NamedSharding(mesh, P("data"))
    return [
        jax.make_array_from_callback(x.shape, split, x.__getitem__)
        for x in (digits["images"][rows], digits["labels"][rows])
    ]


def die():
    """Die without warning: no handler runs, and no other process is told."""
    print("dies", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def checkpoints(directory, dying):
    """The checkpoints of the run; a dying process ends while it saves one."""
    wait = ocp.multihost.get_barrier_sync_fn()

    def barrier(*, key, timeout_ms):
        # The process has written its part, and waits for the others.
        if dying.is_set() and "write_complete" in key:
            die()
        wait(key=key, timeout_ms=timeout_ms)

    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(barrier_sync_fn=barrier),
    )
    return ocp.CheckpointManager(directory / "checkpoints", options=options)


def work(directory, address, processes, process, kill):
    """One process: resume from the last checkpoint, if there is one."""
    # jax 0.7 warns about its own multihost_utils, which orbax calls.
    warnings.filterwarnings("ignore", "jax.interpreters.xla.canonicalize_dtype")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(address, processes, process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    like = placed(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    step = jax.jit(train_step, out_shardings=shardings)
    digits = np.load(directory / "digits.npz")
    dying = threading.Event()
    with checkpoints(directory, dying) as manager:
        done = manager.latest_step() or 0
        if done:
            run = manager.restore(done, args=ocp.args.StandardRestore(like))
        else:
            run = jax.jit(init, out_shardings=shardings)()
        shards = [s for x in jax.tree.leaves(run) for s in x.addressable_shards]
        print("bytes", sum(s.data.nbytes for s in shards), flush=True)
        for i in range(done + 1, STEPS + 1):
            run = jax.block_until_ready(step(run, *batch_of(digits, mesh, i)))
            print("step", i, flush=True)
            if kill and i == kill.step:
                if not kill.saving:
                    die()
                dying.set()
            if i % SAVE_EVERY == 0:
                manager.save(i, args=ocp.args.StandardSave(run))
                # Not needed, but makes each kill cost the same in every run.
                manager.wait_until_finished()
    whole = jax.jit(lambda run: run, out_shardings=NamedSharding(mesh, P()))(run)
    if process == 0:
        leaves, _ = jax.tree_util.tree_flatten_with_path(whole)
        name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        np.savez(directory / "end.npz", **{name(path): x for path, x in leaves})


def launch(directory, processes, kill=None):
    """Start the processes, wait until all end or one has died, and report.

    If they take more than two minutes, they hang, which is an error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs = [directory / f"process{i}.log" for i in range(processes)]
    workers = []
    try:
        for i, log in enumerate(logs):
            fate = kill if kill and i == kill.victim else None
            task = json.dumps([str(directory), address, processes, i, fate])
            command = [sys.executable, __file__, "--work", task]
            with log.open("w") as out:
                workers.append(subprocess.Popen(command, stdout=out, stderr=out))
        codes, give_up = [None], time.monotonic() + 120
        while None in codes and not any(codes) and time.monotonic() < give_up:
            time.sleep(0.02)
            codes = [worker.poll() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
        codes = [worker.wait() for worker in workers]
    said = "\n".join(log.read_text() for log in logs)
    if kill:
        as_planned = "dies\n" in said and codes[kill.victim] == -signal.SIGKILL
    else:
        as_planned = not any(codes)
    if not as_planned:
        raise RuntimeError(f"the processes ended with {codes}, and said\n{said}")
    held, steps = (
        [int(n) for n in re.findall(rf"^{word} (\d+)$", said, re.MULTILINE)]
        for word in ("bytes", "step")
    )
    saves = [path.name for path in (directory / "checkpoints").iterdir()]
    whole = [int(name) for name in saves if name.isdigit()]
    unfinished = len(saves) > len(whole)
    return Start(max(held), min(steps), max(steps), max(whole), unfinished)


def train(directory, kills=(), processes=2):
    """Train the whole run in spite of the kills, and print a line for every start.

    Return the final arrays by their names, and the starts.
    """
    # Imported here because it is slow, and the workers don't need it.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.float32) / 16
    np.savez(directory / "digits.npz", images=images, labels=labels.astype(np.int32))
    starts = []
    for kill in (*kills, None):
        number = kill.processes if kill else processes
        start = launch(directory, number, kill)
        line = f"{number:9} {start.bytes:14,} {start.first:6} to {start.last}"
        if kill:
            when = f"{kill.victim} {'while' if kill.saving else 'after'} saving"
            line += f"  {when} {start.last - start.saved:9}"
        print(line, flush=True)
        starts.append(start)
    with np.load(directory / "end.npz") as end:
        return dict(end), starts


def differences(a, b):
    """The largest difference in each field, relative to the field's largest entry."""
    largest = {}
    for name, x in a.items():
        field = name.removeprefix("state/").split("/")[0]
        both = [np.abs(x - b[name]).max(), np.abs(x).max()]
        largest[field] = np.maximum(largest.get(field, 0), both)  # keeps a NaN
    return {field: off / entry for field, (off, entry) in largest.items()}


def main(argv=None):
    """Print the table, and fail if a run does not end as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        directory, address, processes, process, kill = json.loads(args.work)
        kill = kill and Kill(*kill)
        return work(Path(directory), address, processes, process, kill)
    print("processes  bytes in each  steps   killed         steps lost")
    with tempfile.TemporaryDirectory() as directory:
        undisturbed, _ = train(Path(directory))
    for kills, processes, tolerance in (
        (SAME_NUMBER, 2, 0.0),
        (OTHER_NUMBERS, 1, 1e-5),
    ):
        with tempfile.TemporaryDirectory() as directory:
            end, _ = train(Path(directory), kills, processes)
        off = differences(undisturbed, end)
        said = ", ".join(f"{field} {value:.0e}" for field, value in off.items())
        print("final difference, relative to the field's largest entry:", said)
        if not all(value <= tolerance for value in off.values()):
            raise SystemExit("The difference is too large.")
    return None


if __name__ == "__main__":
    main()
