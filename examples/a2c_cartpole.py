"""Advantage actor-critic (A2C) on CartPole-v1 with two algorithms called RMSProp.

    pip install -e ".[examples]"
    python examples/a2c_cartpole.py

The hyperparameters are those of Stable-Baselines3's A2C: 8 environments, 5 steps
between updates, a learning rate that falls from 7e-4 to 0, ε = 1e-5, and gradients
clipped at 0.5. The agent trains with PyTorch's RMSprop, which is Stable-Baselines3's
default, and with `RMSpropTFLike`, which is `dialects.stable_baselines3` here. The
second run is slower because that rule initializes ν to 1 and adds ε inside the square
root: both make steps smaller. Four seeds train at once under ``jax.vmap``. The script
draws the returns in a2c_cartpole.png, and prints the return of each seed's last policy
without exploration. CartPole-v1 counts as solved at 475 of 500.
"""

import argparse
import os
from functools import partial
from typing import Any, NamedTuple

# One thread on a CPU, because products this small gain nothing from more threads, and
# with more, jax 0.10.2 may hang.
os.environ.setdefault("NPROC", "1")

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from matplotlib.figure import Figure
from tqdm import tqdm

from rmsprop_jax import dialects, rmsprop

SEEDS, ENVIRONMENTS, STEPS = 4, 8, 5
CHUNK = 250  # updates in one call
RATE, ALPHA, EPS, CLIP, DISCOUNT, VALUE_WEIGHT = 7e-4, 0.99, 1e-5, 0.5, 0.99, 0.5
EPISODES = 20  # for the last policy of each seed
RULES = {
    "PyTorch's RMSprop": rmsprop,
    "Stable-Baselines3's RMSpropTFLike": dialects.stable_baselines3,
}
ENV, ENV_PARAMS = gymnax.make("CartPole-v1")
LIMIT = ENV_PARAMS.max_steps_in_episode
reset = jax.vmap(lambda key: ENV.reset(key, ENV_PARAMS))
act = jax.vmap(lambda key, state, action: ENV.step(key, state, action, ENV_PARAMS))


class ActorCritic(nn.Module):
    """Two networks: one for the policy, one for the value."""

    @nn.compact
    def __call__(self, observations):
        """From (..., 4) observations to (..., 2) logits and (...) values."""
        outputs = []
        for size, scale in ((2, 0.01), (1, 1.0)):
            x = observations
            for _ in range(2):
                x = nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(x)
                x = nn.tanh(x)
            out = nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale))
            outputs.append(out(x))
        logits, values = outputs
        return logits, values[..., 0]


MODEL: Any = ActorCritic()


class Run(NamedTuple):
    """The state of one seed's training."""

    train: Any  # TrainState: the parameters and the optimizer's state
    worlds: Any  # gymnax's states of the environments
    observations: jax.Array  # what they show
    returns: jax.Array  # the returns of their current episodes so far
    key: jax.Array


def start(tx, seed):
    """The first `Run` of a seed."""
    key, for_params, for_reset = jax.random.split(jax.random.key(seed), 3)
    observations, worlds = reset(jax.random.split(for_reset, ENVIRONMENTS))
    # Not weakly typed, as after the first chunk; otherwise it would compile twice.
    worlds = jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), worlds)
    params = MODEL.init(for_params, observations)
    train = TrainState.create(apply_fn=MODEL.apply, params=params, tx=tx)
    return Run(train, worlds, observations, jnp.zeros(ENVIRONMENTS), key)


def step(run, _):
    """One step of all environments: the next `Run`, and what was observed."""
    key, for_action, for_worlds = jax.random.split(run.key, 3)
    logits, _ = MODEL.apply(run.train.params, run.observations)
    actions = jax.random.categorical(for_action, logits)
    observations, worlds, rewards, fell, timeout, info = act(
        jax.random.split(for_worlds, ENVIRONMENTS), run.worlds, actions
    )
    # Reaching the time limit is not a failure, so the value of the next state counts.
    _, after = MODEL.apply(run.train.params, info["final_observation"])
    gain = rewards + DISCOUNT * after * (timeout & ~fell)
    over, returns = fell | timeout, run.returns + rewards
    next_run = Run(run.train, worlds, observations, returns * ~over, key)
    finished = jnp.array([(returns * over).sum(), over.sum()])
    return next_run, (run.observations, actions, gain, over, finished)


def update(run, _):
    """Five steps and one update: the next `Run`, sum and number of ended returns."""
    run, (observations, actions, gains, over, finished) = jax.lax.scan(
        step, run, length=STEPS
    )
    _, value = MODEL.apply(run.train.params, run.observations)
    targets = []
    for gain, end in zip(gains[::-1], over[::-1], strict=True):
        value = gain + DISCOUNT * value * ~end
        targets.insert(0, value)

    def loss_of(params):
        logits, values = MODEL.apply(params, observations)
        error = jnp.stack(targets) - values
        log_policy = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_policy, actions[..., None], axis=-1)[..., 0]
        policy_loss = -jnp.mean(jax.lax.stop_gradient(error) * chosen)
        return policy_loss + VALUE_WEIGHT * jnp.mean(error**2)

    gradients = jax.grad(loss_of)(run.train.params)
    train = run.train.apply_gradients(grads=gradients)
    return run._replace(train=train), finished.sum(axis=0)


@jax.jit
@jax.vmap
def train_chunk(run):
    """For every seed: the next `Run`, and the mean return of the ended episodes."""
    run, finished = jax.lax.scan(update, run, length=CHUNK)
    total, number = finished.sum(axis=0)
    return run, total / jnp.maximum(number, 1)


@jax.jit
@jax.vmap
def greedy_return(params, key):
    """For every seed: the mean return of the policy that does not explore."""
    key, for_reset = jax.random.split(key)
    observations, worlds = reset(jax.random.split(for_reset, EPISODES))

    def play(carry, key):
        observations, worlds, alive = carry
        logits, _ = MODEL.apply(params, observations)
        keys = jax.random.split(key, EPISODES)
        actions = jnp.argmax(logits, axis=-1)
        observations, worlds, rewards, fell, _, _ = act(keys, worlds, actions)
        return (observations, worlds, alive & ~fell), rewards * alive

    carry = (observations, worlds, jnp.ones(EPISODES, bool))
    _, rewards = jax.lax.scan(play, carry, jax.random.split(key, LIMIT))
    return rewards.sum(axis=0).mean()


def plot(curves, path):
    """Draw each rule's returns [chunk, seed]: the mean and the range of the seeds."""
    figure = Figure()
    axes = figure.subplots()
    for name, returns in curves.items():
        steps = np.arange(1, len(returns) + 1) * CHUNK * STEPS * ENVIRONMENTS / 1000
        axes.fill_between(steps, returns.min(axis=1), returns.max(axis=1), alpha=0.2)
        axes.plot(steps, returns.mean(axis=1), label=name)
    axes.axhline(475, color="0.4", linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "top"}
    axes.annotate("solved: 475", (1, 470), **place)
    axes.set(xlabel="environment steps (thousands)", ylim=(0, None))
    axes.set(ylabel=f"return per episode\n(mean and range of {SEEDS} seeds)")
    axes.set_title("A2C on CartPole: RMSpropTFLike learns later")
    axes.legend()
    figure.savefig(path)


def main(argv=None):
    """Train with both rules, plot and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--quick", dest="steps", action="store_const", const=30_000)
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--out", default="a2c_cartpole.png", help="the plot's file")
    args = parser.parse_args(argv)
    seeds = args.seed + jnp.arange(SEEDS)
    chunks = args.steps // (CHUNK * STEPS * ENVIRONMENTS)
    rate = optax.linear_schedule(RATE, 0.0, chunks * CHUNK)
    curves, results = {}, {}
    for name, rule in RULES.items():
        tx = rule(rate, alpha=ALPHA, eps=EPS)
        tx = optax.chain(optax.clip_by_global_norm(CLIP), tx)
        runs = jax.jit(jax.vmap(partial(start, tx)))(seeds)
        returns = []
        for _ in tqdm(range(chunks), desc=name, unit="chunk", disable=None):
            runs, mean = train_chunk(runs)
            returns.append(np.asarray(mean))
        curves[name] = np.array(returns)
        results[name] = greedy_return(runs.train.params, runs.key)
    plot(curves, args.out)
    for name, values in results.items():
        words = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name}: returns {words}, minimum {values.min():.1f}")
    print(f"The curves are in {args.out}.")


if __name__ == "__main__":
    main()
