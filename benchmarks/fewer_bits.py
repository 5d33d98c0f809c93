"""Train three networks with fewer bits for the state, or for the parameters.

    pip install -e ".[examples]"
    python benchmarks/fewer_bits.py

A seed gives the initial parameters and the order of the data, so that every run has a
float32 run to be compared with. Prints tables of final losses and draws the differences
in fewer_bits.png, in about ten minutes on two CPU cores.

Training may be chaotic, so that runs that differ at all diverge. "perturbed" shows how
far: it is float32 throughout, from parameters that are larger by a millionth. Smaller
differences than its own say nothing about the number of bits.
"""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from sklearn.datasets import load_sample_images
from tqdm import tqdm

from rmsprop_jax import RMSPropState, precision, rmsprop

# One of the three networks is an example's.
sys.path.append(str(Path(__file__).parents[1] / "examples"))
from train_digits import Network, load_data


class Task(NamedTuple):
    """A network, its data, and how it is trained."""

    init: Callable[..., Any]  # of Flax, from a random key and examples
    loss: Callable[..., Any]  # of the parameters, a batch and a random key
    data: tuple[Any, ...]  # arrays with the examples along the first axis
    final: tuple[Any, ...]  # in the same form, the data for the final loss
    steps: int
    batch_size: int
    rate: float
    options: dict[str, Any]  # of rmsprop


def digits():
    """The network of train_digits.py, with smoothed labels: no loss is below 0.5003."""
    network = Network()
    images, _, labels, _ = load_data(seed=0)
    # Also for the final loss, because with only 360 test images, chance makes 1 %.
    data = images, optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)

    def loss(params, batch, key):
        images, targets = batch
        variables, dropout = {"params": params}, {"dropout": key}
        logits: Any = network.apply(variables, images, train=True, rngs=dropout)
        return optax.softmax_cross_entropy(logits, targets).mean()

    options = {"alpha": 0.99, "momentum": 0.9}
    init = partial(network.init, train=False)
    return Task(init, loss, data, data, 400, 64, 3e-4, options)


def characters():
    """Python's help texts, 460,000 characters, the last tenth for the final loss."""
    layers = [nn.Embed(128, 64), nn.RNN(nn.GRUCell(128)), nn.Dense(128)]
    network = nn.Sequential(layers)
    text = "".join(topics.values()).encode("ascii", "ignore")
    rows = np.frombuffer(text[: len(text) // 65 * 65], np.uint8).reshape(-1, 65)
    rows, held_out = np.split(rows.astype(np.int32), [len(rows) * 9 // 10])

    def loss(params, batch, key):
        del key  # nothing random in it
        logits: Any = network.apply({"params": params}, batch[0][:, :-1])
        return cross_entropy(logits, batch[0][:, 1:]).mean()

    options = {"alpha": 0.99, "momentum": 0.9, "centered": True}
    return Task(network.init, loss, (rows,), (held_out,), 600, 16, 3e-4, options)


def photographs():
    """Remove noise from patches of photographs; a fifth are for the final loss.

    The loss is the mean square of the remaining noise, which is 1 at first.
    """
    layers = [nn.Dense(256), nn.relu, nn.Dense(256), nn.relu, nn.Dense(64)]
    network = nn.Sequential(layers)
    gray = np.stack(load_sample_images().images).mean(-1) / 255 - 0.5
    patches = gray[:, :424].reshape(2, 53, 8, 80, 8).swapaxes(2, 3).reshape(-1, 64)
    patches = np.random.default_rng(0).permutation(patches.astype(np.float32))
    patches, held_out = np.split(patches, [len(patches) * 4 // 5])

    def loss(params, batch, key):
        noise = 0.1 * jax.random.normal(key, batch[0].shape)
        correction: Any = network.apply({"params": params}, batch[0] + noise)
        return jnp.square((noise + correction) / 0.1).mean()

    options = {"alpha": 0.999, "bias_correction": True}
    data, final = (patches,), (held_out,)
    return Task(network.init, loss, data, final, 2000, 128, 1e-3, options)


def rounded_to_nearest(tx):
    """The optimizer with moments rounded to the nearest bfloat16 at every step."""

    def cast(state, dtype):
        moments = (optax.tree.cast(moment, dtype) for moment in state[1:])
        return RMSPropState(state.count, *moments)

    def init(params):
        return cast(tx.init(params), jnp.bfloat16)

    def update(updates, state, params=None):
        updates, state = tx.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, jnp.bfloat16)

    return optax.GradientTransformation(init, update)


class Variant(NamedTuple):
    """How the parameters and the state are stored."""

    params_dtype: str = "float32"
    state_dtype: str = "float32"
    state_to_nearest: bool = False
    stochastic_rounding: bool = False
    master_weights: bool = False
    nudge: float = 0.0  # relative change of the initial parameters

    def optimizer(self, rate, options, seed):
        """The whole chain."""
        tx = rmsprop(rate, state_dtype=self.state_dtype, seed=seed, **options)
        if self.state_to_nearest:
            return rounded_to_nearest(tx)
        if self.stochastic_rounding:
            return optax.chain(tx, precision.stochastic_rounding(seed=seed))
        return precision.master_weights(tx) if self.master_weights else tx


VARIANTS = {
    "all float32": Variant(),
    "all float32, perturbed": Variant(nudge=1e-6),
    "bfloat16 state": Variant(state_dtype="bfloat16"),
    "bfloat16 state, to nearest": Variant(state_to_nearest=True),
    "bfloat16 params, stochastic": Variant("bfloat16", stochastic_rounding=True),
    "bfloat16 params, master weights": Variant("bfloat16", master_weights=True),
    "bfloat16 params, to nearest": Variant("bfloat16"),
    "all bfloat16": Variant("bfloat16", "bfloat16", stochastic_rounding=True),
}


def train(task, seeds, steps, variant):
    """The final loss of every seed, and the bytes of state per parameter."""
    rate = optax.warmup_cosine_decay_schedule(0.0, task.rate, steps // 10, steps)
    data = jax.tree.map(jnp.asarray, task.data)
    init, final_loss = jax.jit(task.init), jax.jit(task.loss)

    # The arithmetic is in float32, so that only the storage makes a difference.
    def loss_of(params, batch, key):
        return task.loss(optax.tree.cast(params, jnp.float32), batch, key)

    # Not in a compiled loop, where XLA's convolutions are slow on a CPU.
    @jax.jit
    def step(params, state, seed, i):
        key, order = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        chosen = jax.random.randint(order, [task.batch_size], 0, len(data[0]))
        batch = jax.tree.map(lambda x: x[chosen], data)
        gradients = jax.grad(loss_of)(params, batch, key)
        tx = variant.optimizer(rate, task.options, seed)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    losses, held = [], 0.0
    for seed in range(seeds):
        params = init(jax.random.key(seed), data[0][:1])["params"]
        params = jax.tree.map(lambda p: p * (1 + variant.nudge), params)
        params = optax.tree.cast(params, variant.params_dtype)
        state = variant.optimizer(rate, task.options, seed).init(params)
        for i in range(steps):
            params, state = step(params, state, seed, i)
        params = optax.tree.cast(params, jnp.float32)
        losses.append(final_loss(params, task.final, jax.random.key(0)))
        held = sum(x.nbytes for x in jax.tree.leaves(state))
        held /= sum(p.size for p in jax.tree.leaves(params))
    return np.array(losses), held


def differences(results):
    """Each run's difference from its float32 run, in percent of the final loss."""
    reference, _ = results["all float32"]
    return {name: 100 * (x / reference - 1) for name, (x, _) in results.items()}


def table(task_name, results):
    """Markdown: the deviation of the losses, the standard error of the differences."""
    head = ("state, bytes per parameter", "final loss", "compared with float32, %")
    print(f"\n| {task_name} | {' | '.join(head)} |\n|---|--:|--:|--:|")
    for name, difference in differences(results).items():
        losses, held = results[name]
        error = difference.std(ddof=1) / len(losses) ** 0.5
        beside = f"{difference.mean():+.2f} ± {error:.2f}".replace("-", "−")
        loss = f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}"
        print(f"| {name} | {held:.1f} | {loss} | {beside if error else ''} |")


def plot(tables, path):
    """Draw every run's difference from its float32 run."""
    figure = Figure(figsize=(6, 8))
    figure.suptitle("Final loss of each seed (grey: within 0.5 % of float32)")
    panels = figure.subplots(len(tables), sharex=True)
    for axes, (task_name, results) in zip(panels, tables.items(), strict=True):
        axes.axvspan(-0.5, 0.5, color="0.9")
        for name, difference in differences(results).items():
            row = np.full(len(difference), list(VARIANTS).index(name))
            axes.plot(difference, row, "o", alpha=0.6)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_title(task_name)
        axes.set_yticks(range(len(VARIANTS)), list(VARIANTS))
        axes.invert_yaxis()
    panels[-1].set_xlabel("final loss compared with float32 (%)")
    figure.savefig(path)


def main(argv=None):
    """Train, print and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    parser.add_argument(
        "--quick", action="store_true", help="too short to say anything"
    )
    args = parser.parse_args(argv)
    seeds, shorter = (2, 50) if args.quick else (args.seeds, 1)

    tables = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for place, make in enumerate((digits, characters, photographs)):
            task, task_name, names = make(), make.__name__, list(VARIANTS)
            if (
                args.quick
            ):  # each variant in one task, mostly in the quickest to compile
                names = names[:1] + [[], names[2:3], names[3:]][place]
            one = partial(train, task, seeds, task.steps // shorter)
            runs = pool.map(one, [VARIANTS[name] for name in names])
            runs = tqdm(runs, task_name, len(names))
            tables[task_name] = dict(zip(names, runs, strict=True))
            table(task_name, tables[task_name])
    plot(tables, "fewer_bits.png")


if __name__ == "__main__":
    main()
