"""Train the digits network on eight devices in three ways that must agree.

    pip install -e ".[examples]"
    python examples/data_parallel.py

Each way splits every batch over eight CPU devices. With pmap, every device has a copy
of the parameters and of the optimizer state. With jit over a mesh, XLA knows that they
are copies. With ZeRO-1, each device stores and updates an eighth of the state. The
script prints how far the final parameters are from pmap's, and the bytes on each
device.

It trains in float64, where the differences are of the order of 1e-12. In float32, they
would be as large as those of any two runs that sum in a different order: up to a few
hundredths.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from train_digits import BATCH_SIZE, Network, load_data, make_optimizer

from rmsprop_jax.sharding import check_shardings, state_shardings, zero1

DEVICES = 8
ROW = "{:8} {:>14} {:>15} {:>11} {:>8}"


def logits_of(params, images) -> Any:
    """The network without dropout, whose random bits would differ between the ways."""
    return Network().apply({"params": params}, images, train=False)


def make_step(tx, mean=lambda gradients: gradients):
    """One step; `mean` averages over the devices, which jit does implicitly."""

    def step(params, state, images, labels):
        def loss_of(params):
            return cross_entropy(logits_of(params, images), labels).mean()

        gradients = mean(jax.grad(loss_of)(params))
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train_pmap(tx, params, batches):
    """Copies on all devices, stacked along a new first axis."""
    step = jax.pmap(make_step(tx, functools.partial(jax.lax.pmean, axis_name="i")), "i")
    params = jax.tree.map(lambda p: jnp.stack([p] * DEVICES), params)
    state = jax.pmap(tx.init)(params)
    for batch in batches:
        shares = [x.reshape(DEVICES, -1, *x.shape[1:]) for x in batch]
        params, state = jax.block_until_ready(step(params, state, *shares))
    return jax.tree.map(lambda p: p[0], params), params, state


def train_jit(tx, params, batches, mesh):
    """Train with a replicated state, or with one that zero1 splits."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(params, replicated)
    state = tx.init(params)
    expected = state_shardings(tx, params)
    step = jax.jit(make_step(tx), out_shardings=(replicated, expected))
    for batch in jax.device_put(batches, NamedSharding(mesh, PartitionSpec("data"))):
        params, state = jax.block_until_ready(step(params, state, *batch))
    check_shardings(state, expected)
    return params, params, state


def kilobytes_on_a_device(tree):
    """What the first device holds of a tree of arrays."""
    parts = [x.addressable_shards[0].data for x in jax.tree.leaves(tree)]
    return f"{sum(part.nbytes for part in parts) / 1000:.0f} kB"


def main(argv=None):
    """Train three times and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", dest="epochs", action="store_const", const=1)
    epochs = parser.parse_args(argv).epochs
    images, test_images, labels, test_labels = load_data(0)
    steps = len(images) // BATCH_SIZE  # in an epoch
    images = np.asarray(images, np.float64)
    rng, batches = np.random.default_rng(0), []
    for _ in range(epochs):
        order = rng.permutation(len(images))[: steps * BATCH_SIZE]
        batches += [(images[i], labels[i]) for i in order.reshape(steps, -1)]
    params = Network().init(jax.random.key(0), test_images[:1], train=False)["params"]
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    tx = make_optimizer(len(batches))
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    ways = {
        "pmap": lambda: train_pmap(tx, params, batches),
        "jit": lambda: train_jit(tx, params, batches, mesh),
        "ZeRO-1": lambda: train_jit(zero1(tx, mesh), params, batches, mesh),
    }
    print(ROW.format("", "test accuracy", "away from pmap", "parameters", "state"))
    ends = {}
    for name, train in ways.items():
        end, *held = train()
        ends[name] = jax.device_get(end)
        away = jax.tree.map(lambda p, q: abs(p - q).max(), ends[name], ends["pmap"])
        away = max(jax.tree.leaves(away))
        accuracy = (logits_of(ends[name], test_images).argmax(-1) == test_labels).mean()
        sizes = map(kilobytes_on_a_device, held)
        print(ROW.format(name, f"{accuracy:.2%}", f"{away:.1e}", *sizes))
        if away > 1e-9:
            raise SystemExit(f"{name} does not agree with pmap")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    main()
