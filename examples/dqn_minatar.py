"""DQN on MinAtar's Breakout: one sentence of a paper, read as three rules.

    pip install -e ".[examples]"
    python examples/dqn_minatar.py

DQN's paper (Nature 2015) has a "gradient momentum" of 0.95 and a "min squared gradient"
of 0.01. Its own code adds the 0.01 inside the square root (`dialects.nature_dqn`).
MinAtar's agent uses PyTorch's RMSprop with the same values, which adds it outside
(`dialects.minatar`). Both use 0.95 as the decay rate of the gradient mean. If you read
it as PyTorch's ``momentum``, you get a third rule. This script trains MinAtar's agent
with all three, and draws the returns in dqn_minatar.png.

The network and the hyperparameters are those of MinAtar's ``examples/dqn.py``, without
three actions that do nothing in this game. The curve that MinAtar shows for DQN (mean
of 30 runs, of Young and Tian, arXiv:1903.03176; read off the picture in its README, as
we could not read the paper) is at about 5 after 100,000 frames, at 8 after 400,000 and
at 10 after 5 million. This script trains for 100,000 frames, which are the first steps:
the agent explores less and less, and from then on in one frame of ten.
"""

import argparse
import os
from functools import partial
from typing import Any, NamedTuple

# One thread on a CPU, because products this small gain nothing from more threads, and
# with more, jax 0.10.2 may hang.
os.environ.setdefault("NPROC", "1")

import gymnax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from rmsprop_jax import dialects

REPLAY, BATCH, START, DISCOUNT = 100_000, 32, 5_000, 0.99
CHUNK = 1_000  # frames between two copies to the target network, and in one call
WINDOW = 10  # chunks to average for the plot and the output
RULES = {
    "dialects.nature_dqn": dialects.nature_dqn(0.00025, 0.95, 0.01),
    "dialects.minatar": dialects.minatar(0.00025, 0.95, 0.01),
    "momentum of 0.95": dialects.torch(
        0.00025, 0.95, 0.01, momentum=0.95, centered=True
    ),
}
ENV, ENV_PARAMS = gymnax.make("Breakout-MinAtar")
ENV_PARAMS = ENV_PARAMS.replace(max_steps_in_episode=10**9)  # MinAtar has no limit
SHAPE = ENV.obs_shape


@hk.without_apply_rng
@hk.transform
def network(images):
    """From (n, 10, 10, 4) images to (n, actions) values."""

    def linear(inputs, outputs):  # initialized as in torch
        begin = hk.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)
        return hk.Linear(outputs, w_init=begin, b_init=begin)

    # A 3 × 3 convolution as one product, which is faster in a scan on a CPU.
    moved = [images[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    x = jax.nn.relu(linear(36, 16)(jnp.concatenate(moved, axis=-1)))
    x = jax.nn.relu(linear(1024, 128)(x.reshape(len(x), -1)))
    return linear(128, ENV.num_actions)(x)


class Memory(NamedTuple):
    """The last frames of one seed, each array [REPLAY, ...]."""

    images: jax.Array
    actions: jax.Array
    rewards: jax.Array
    ended: jax.Array


class Run(NamedTuple):
    """The state of one seed's training."""

    params: Any
    target: Any
    state: Any  # of the optimizer
    world: Any  # gymnax's state of the game
    image: jax.Array
    total: jax.Array  # the return of the episode so far
    memory: Memory
    key: jax.Array


def start(tx, size, seed):
    """The first `Run` of a seed, with a memory of `size` frames."""
    key, for_params, for_reset = jax.random.split(jax.random.key(seed), 3)
    image, world = ENV.reset(for_reset, ENV_PARAMS)
    # Not weakly typed, as after the first chunk; otherwise it would compile twice.
    world = jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), world)
    params = network.init(for_params, image[None])
    numbers = jnp.zeros(size, jnp.int32), jnp.zeros(size), jnp.zeros(size, bool)
    memory = Memory(jnp.zeros((size, *SHAPE), bool), *numbers)
    state, total = tx.init(params), jnp.zeros(())
    return Run(params, params, state, world, image, total, memory, key)


def learn(tx, run, newest, key):
    """Parameters and optimizer's state after one update on frames before `newest`."""
    size = len(run.memory.ended)
    back = jax.random.randint(key, (BATCH,), 1, jnp.minimum(newest, size - 1) + 1)
    chosen = (newest - back) % size
    images, actions, rewards, ended = (array[chosen] for array in run.memory)
    following = run.memory.images[(chosen + 1) % size].astype(jnp.float32)
    values = network.apply(run.target, following).max(axis=-1)
    targets = rewards + DISCOUNT * values * ~ended

    def loss_of(params):
        values = network.apply(params, images.astype(jnp.float32))
        taken = jnp.take_along_axis(values, actions[:, None], axis=-1)[:, 0]
        return optax.huber_loss(taken, targets).mean()

    updates, state = tx.update(jax.grad(loss_of)(run.params), run.state, run.params)
    return optax.apply_updates(run.params, updates), state


def frame(tx, learns, run, t):
    """Act and learn once: the next `Run`, and the return of an episode that ended."""
    key, for_choice, for_random, for_world, for_batch = jax.random.split(run.key, 5)
    explore = jnp.clip(1.0 - 0.9 * (t - START) / 100_000, 0.1, 1.0)
    best = network.apply(run.params, run.image[None])[0].argmax()
    other = jax.random.randint(for_random, (), 0, ENV.num_actions)
    action = jnp.where(jax.random.uniform(for_choice) < explore, other, best)
    image, world, reward, ended, _, _ = ENV.step(
        for_world, run.world, action, ENV_PARAMS
    )
    seen = (run.image.astype(bool), action, reward, ended)
    memory = jax.tree.map(
        lambda array, one: array.at[t % len(array)].set(one), run.memory, Memory(*seen)
    )
    total = run.total + reward
    run = run._replace(memory=memory, world=world, image=image, key=key)
    if learns:
        params, state = learn(tx, run, t, for_batch)
        run = run._replace(params=params, state=state)
    return run._replace(total=total * ~ended), jnp.stack([total * ended, ended])


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_chunk(tx, learns, runs, first):
    """For every seed: the next `Run`, and the mean return of the ended episodes."""

    def chunk(run):
        frames = first + jnp.arange(CHUNK)
        run, ended = jax.lax.scan(partial(frame, tx, learns), run, frames)
        total, number = ended.sum(axis=0)
        return run._replace(target=run.params), total / jnp.maximum(number, 1)

    return jax.vmap(chunk)(runs)


def train(name, tx, seeds, chunks):
    """The mean returns [chunk, seed] of a rule."""
    size = min(REPLAY, chunks * CHUNK)
    runs = jax.jit(jax.vmap(partial(start, tx, size)))(seeds)
    returns = []
    for i in tqdm(range(chunks), desc=name, unit="thousand frames", disable=None):
        runs, mean = train_chunk(tx, i * CHUNK >= START, runs, i * CHUNK)
        returns.append(np.asarray(mean))
    return np.array(returns)


def plot(curves, path):
    """Draw each rule's mean and range over the seeds, over `WINDOW` chunks."""
    figure = Figure()
    axes = figure.subplots()
    for name, returns in curves.items():
        width = min(WINDOW, len(returns))
        windows = np.lib.stride_tricks.sliding_window_view(returns, width, axis=0)
        smooth = windows.mean(axis=-1)
        frames = (width + np.arange(len(smooth))) * CHUNK / 1000
        axes.fill_between(frames, smooth.min(axis=1), smooth.max(axis=1), alpha=0.2)
        axes.plot(frames, smooth.mean(axis=1), label=name)
    seeds = next(iter(curves.values())).shape[1]
    axes.set(xlabel="frames (thousands)", xlim=(0, None), ylim=(0, None))
    axes.set(ylabel=f"return per episode\n(mean and range of {seeds} seeds)")
    axes.set_title("DQN on MinAtar's Breakout: Nature's rule learns later")
    axes.legend()
    figure.savefig(path)


def main(argv=None):
    """Train with every rule, plot and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--quick", action="store_true", help="a short run of one seed")
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--out", default="dqn_minatar.png", help="the plot's file")
    args = parser.parse_args(argv)
    if args.quick:
        args.frames, args.seeds = START + CHUNK, 1
    seeds = args.seed + jnp.arange(args.seeds)
    chunks = args.frames // CHUNK
    curves = {name: train(name, tx, seeds, chunks) for name, tx in RULES.items()}
    plot(curves, args.out)
    for name, returns in curves.items():
        last = returns[-WINDOW:].mean(axis=0)
        words = ", ".join(f"{value:.2f}" for value in last)
        print(f"{name}: final returns {words}, minimum {last.min():.2f}")
    print(f"The curves are in {args.out}.")


if __name__ == "__main__":
    main()
