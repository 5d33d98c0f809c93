"""Train in bfloat16 throughout, kill the run, and resume it to the same bits.

    pip install -e ".[examples]"
    python examples/bf16_training.py

Parameters, moments and the network's arithmetic are bfloat16, in flax.nnx and in
Equinox. Stochastic rounding keeps small updates from being lost. The gradients of four
batches are averaged in float32, and the moving average of the weights is float32. After
every epoch, orbax saves everything. The process that trains is killed with SIGKILL, and
another one resumes from the last checkpoint. It must end bitwise identical to a run
that was never killed. The script prints the accuracy on scikit-learn's digits, compared
with float32, and draws bf16_training.png.
"""

import argparse
import functools
import multiprocessing
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from tqdm import trange
from train_digits import load_data

from rmsprop_jax import rmsprop
from rmsprop_jax.precision import stochastic_rounding

UNITS, BATCH_SIZE, ACCUMULATED = 256, 16, 4


def nnx_network(seed, dtype):
    """The parameters, and the function from them and images [n, 64] to the logits."""
    rngs, kinds = nnx.Rngs(seed), {"dtype": dtype, "param_dtype": dtype}
    model = nnx.Sequential(
        nnx.Linear(64, UNITS, rngs=rngs, **kinds),
        nnx.relu,
        nnx.Linear(UNITS, UNITS, rngs=rngs, **kinds),
        nnx.relu,
        nnx.Linear(UNITS, 10, rngs=rngs, **kinds),
    )
    graph, params = nnx.split(model, nnx.Param)
    return params, lambda params, images: nnx.merge(graph, params)(images)


def equinox_network(seed, dtype):
    """The same network in Equinox."""
    key = jax.random.key(seed)
    model = eqx.nn.MLP(64, 10, UNITS, depth=2, dtype=dtype, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, images: jax.vmap(eqx.combine(params, static))(images)


NETWORKS = {"flax.nnx": nnx_network, "Equinox": equinox_network}


def make_optimizer(dtype, steps):
    """RMSProp for parameters and state of a dtype; `steps` are those of the warm-up."""
    rate = optax.warmup_constant_schedule(0.0, 2e-4, steps // ACCUMULATED)
    tx = rmsprop(rate, alpha=0.99, momentum=0.9, state_dtype=dtype)
    if dtype == "bfloat16":
        tx = optax.chain(tx, stochastic_rounding())
    return optax.MultiSteps(tx, ACCUMULATED)  # averages in float32


@functools.cache
def make_run(library, dtype, seed, epochs):
    """The initial run, and the function that trains it for an epoch."""
    images, test_images, labels, test_labels = map(jnp.asarray, load_data(seed))
    images, test_images = (jnp.reshape(x, (-1, 64)) for x in (images, test_images))
    steps = len(images) // BATCH_SIZE  # in an epoch
    params, logits_of = NETWORKS[library](seed, dtype)
    tx = make_optimizer(dtype, 3 * steps)

    def measure(params, images, labels):
        """The loss and the accuracy."""
        logits = logits_of(params, images.astype(dtype)).astype(jnp.float32)
        right = logits.argmax(-1) == labels
        return cross_entropy(logits, labels).mean(), right.mean()

    def step(run, batch):
        params, examples = run["params"], (images[batch], labels[batch])
        gradients, _ = jax.grad(measure, has_aux=True)(params, *examples)
        updates, state = tx.update(gradients, run["state"], params)
        # optax.apply_updates keeps the parameters' dtype. Equinox's would widen it.
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, run["average"], 0.005)
        return run | {"params": params, "state": state, "average": average}, None

    @jax.jit
    def train_epoch(run, epoch):
        # The order depends only on the epoch, so it is the same after a restart.
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = jax.random.permutation(key, len(images))[: steps * BATCH_SIZE]
        run, _ = jax.lax.scan(step, run, order.reshape(steps, BATCH_SIZE))
        now = jnp.array(measure(run["average"], test_images, test_labels))
        return run | {"history": run["history"].at[epoch].set(now)}

    run = {
        "params": params,
        "state": tx.init(params),
        "average": jax.tree.map(lambda p: p.astype(jnp.float32), params),
        "history": jnp.zeros((epochs, 2)),  # test loss and accuracy of the average
    }
    # On this device, like a run that orbax restores, so both use one compiled program.
    return jax.device_put(run, jax.devices()[0]), train_epoch


def train(folder, library, dtype, seed, epochs):
    """The final run, trained from the folder's last checkpoint, if there is one."""
    run, train_epoch = make_run(library, dtype, seed, epochs)
    with ocp.CheckpointManager(folder) as manager:
        done = manager.latest_step() or 0
        if done:
            run = manager.restore(done, args=ocp.args.StandardRestore(run))
        for epoch in trange(
            done, epochs, desc=f"{library}, {dtype}", unit="epoch", disable=None
        ):
            run = train_epoch(run, epoch)
            manager.save(epoch + 1, args=ocp.args.StandardSave(run))
    return run


def train_and_kill(folder, *arguments, after):
    """Train in a process, kill it after some epochs, and return how many it saved."""
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=train, args=(folder, *arguments))
    process.start()
    while not (folder / str(after)).exists():
        if not process.is_alive():
            raise RuntimeError("The process ended before it could be killed.")
        time.sleep(0.01)
    process.kill()
    process.join()
    with ocp.CheckpointManager(folder) as manager:
        return manager.latest_step()


def same_bits(a, b):
    """Whether two trees have bitwise identical arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def plot(runs, path):
    """The test losses, with each library."""
    figure = Figure(figsize=(6, 7))
    panels = figure.subplots(len(runs), sharex=True)
    for axes, library in zip(panels, runs, strict=True):
        wide, whole, saved, again = runs[library]
        epochs = np.arange(1, len(wide["history"]) + 1)
        for run, part, label, style in (
            (whole, np.s_[:], "bfloat16, not killed", {"color": "0.8", "linewidth": 7}),
            (again, np.s_[:saved], "bfloat16, until killed", {}),
            (again, np.s_[saved - 1 :], "bfloat16, resumed", {}),
            (wide, np.s_[:], "float32", {"color": "0.3", "linestyle": ":"}),
        ):
            losses = run["history"][:, 0]
            axes.semilogy(epochs[part], losses[part], label=label, **style)
        axes.set(title=f"{library}: killed after epoch {saved}, and resumed")
        axes.set(ylabel="test loss (nats)")
    panels[0].legend()
    panels[-1].set_xlabel("epoch")
    panels[-1].locator_params(axis="x", integer=True)
    figure.savefig(path)


def main(argv=None):
    """Train, kill, resume, compare, print and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", dest="epochs", action="store_const", const=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="bf16_training.png", help="the plot's file")
    args = parser.parse_args(argv)
    runs, common = {}, (args.seed, args.epochs)
    for library in NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            folder, narrow = Path(name), (library, "bfloat16", *common)
            wide = train(folder / "float32", library, "float32", *common)
            whole = train(folder / "whole", *narrow)
            after = max(1, args.epochs // 3)
            saved = train_and_kill(folder / "killed", *narrow, after=after)
            again = train(folder / "killed", *narrow)
        runs[library] = wide, whole, saved, again
    plot(runs, args.out)
    for library, (wide, whole, saved, again) in runs.items():
        if not same_bits(again, whole):
            raise SystemExit(
                f"{library}: resumed after epoch {saved}, ends at other bits!"
            )
        print(f"{library}: killed after epoch {saved}, resumed, ends at the same bits.")
        for dtype, run in (("float32", wide), ("bfloat16", whole)):
            kept = run["params"], run["state"].inner_opt_state
            size = sum(x.nbytes for x in jax.tree.leaves(kept)) / 1e6
            print(f"  {dtype:8} {size:.2f} MB of parameters and state, ", end="")
            print(f"test accuracy {run['history'][-1, 1]:.2%}")
    print(f"The curves are in {args.out}.")


if __name__ == "__main__":
    main()
