"""Start a character-level LSTM in PyTorch, and resume it halfway in flax.nnx.

    pip install -e ".[examples]" torch "flax>=0.12"
    python examples/char_rnn_from_torch.py

The text, the network and the recipe are those of char_rnn.py, with the rule of
torch.optim.RMSprop: centered, with momentum, clipping, two groups of parameters and a
learning rate that drops in steps. Halfway, the weights, the optimizer state and the
LSTM's memory move to flax.nnx. An LSTM has two biases in PyTorch and one in Flax. Each
of the two has its own moments, but their sum has none, so the cell here has two biases,
and every tensor has its place. PyTorch continues as well. The script prints how far
apart the losses are, and draws the curve in char_rnn_from_torch.png, compared with a
run that moves only its weights and loses its state.
"""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from char_rnn import (
    CHARACTERS,
    CLIP,
    DECAY,
    LENGTH,
    MOMENTUM,
    UNITS,
    Network,
    bits,
    load_text,
    train_step,
    windows,
)
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

from rmsprop_jax import schedules
from rmsprop_jax.checkpoints import from_torch

RATE, ALPHA, EPS = 0.01, 0.95, 0.01
COMPARED = 15  # steps, before small differences grow


class TwoBiasLSTMCell(nnx.OptimizedLSTMCell):
    """Flax's cell with PyTorch's two biases: one for the input, one for the memory."""

    def __init__(self, features_in, units, *, rngs):
        """Draw the parameters from `rngs`."""
        super().__init__(features_in, units, rngs=rngs)
        self.dense_i = nnx.Linear(features_in, 4 * units, rngs=rngs)


def make_torch_run(torch, seed, steps):
    """The network in PyTorch, its optimizer, and its learning-rate scheduler."""
    nn = torch.nn
    torch.manual_seed(seed)
    network = nn.ModuleDict(
        {
            "lstm": nn.LSTM(CHARACTERS, UNITS, batch_first=True),
            "out": nn.Linear(UNITS, CHARACTERS),
        }
    )
    kernels = [(n, p) for n, p in network.named_parameters() if p.ndim > 1]
    biases = [(n, p) for n, p in network.named_parameters() if p.ndim == 1]
    optimizer = torch.optim.RMSprop(
        [{"params": kernels, "weight_decay": DECAY}, {"params": biases}],
        lr=RATE,
        alpha=ALPHA,
        eps=EPS,
        momentum=MOMENTUM,
        centered=True,
    )
    falls = [steps * 6 // 10, steps * 85 // 100]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.3)
    return network, optimizer, scheduler


def train_in_torch(torch, network, optimizer, scheduler, memory: Any, batches):
    """The LSTM's memory after the batches, and the loss before each step."""
    functional, losses = torch.nn.functional, []
    for inputs, targets in tqdm(batches, desc="PyTorch", unit="step", disable=None):
        optimizer.zero_grad()
        one_hot = functional.one_hot(torch.tensor(inputs).long(), CHARACTERS).float()
        x, memory = network["lstm"](one_hot, memory)
        memory = tuple(part.detach() for part in memory)
        logits, targets = network["out"](x).flatten(0, 1), torch.tensor(targets).long()
        # Sum over the window, and average over the rows.
        loss = LENGTH * functional.cross_entropy(logits, targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return memory, bits(np.array(losses))


def to_params(weights):
    """PyTorch's weights as the parameters of `Network`. Both order gates i, f, g, o."""
    places = {
        "dense_i": ("lstm.weight_ih_l0", "lstm.bias_ih_l0"),
        "dense_h": ("lstm.weight_hh_l0", "lstm.bias_hh_l0"),
        "out": ("out.weight", "out.bias"),
    }
    layers = {
        layer: {"kernel": weights[kernel].T, "bias": weights[bias]}
        for layer, (kernel, bias) in places.items()
    }
    out = layers.pop("out")
    return nnx.State({"lstm": {"cell": layers}, "out": out})


def train_in_nnx(tx, params, memory, batches):
    """The loss before each step."""
    model = Network(nnx.Rngs(0), cell=TwoBiasLSTMCell)
    nnx.update(model, params)
    tx = optax.chain(optax.clip_by_global_norm(CLIP), tx)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = []
    for batch in tqdm(batches, desc="flax.nnx", unit="step", disable=None):
        loss, memory = train_step(model, optimizer, memory, *batch)
        losses.append(loss)
    return bits(np.array(losses))


def plot(path, first, in_torch, in_nnx, without_state):
    """The losses, each averaged with the 9 before it, and how far they are apart."""
    figure = Figure(figsize=(6, 6.5))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for later, label, style in (
        (in_torch, "PyTorch only", {"color": "0.8", "linewidth": 7}),
        (without_state, "PyTorch, then NNX without the state", {"color": "C1"}),
        (in_nnx, "PyTorch, then Flax NNX", {"color": "C0"}),
    ):
        losses = np.convolve([*first, *later], np.ones(10) / 10, "valid")
        top.plot(np.arange(len(losses)) + 9, losses, label=label, **style)
        if later is not in_torch:
            steps = len(first) + np.arange(len(later))
            bottom.semilogy(steps, np.abs(later - in_torch) + 1e-9, **style)
    top.set(ylabel="bits per character", ylim=(1.5, 5))
    top.set_title("An LSTM moves from PyTorch to Flax NNX")
    bottom.set(xlabel="step", ylabel="difference (bits)")
    bottom.set_title("Difference from PyTorch only")
    bottom.axvline(len(first), color="0.4", linestyle=":")
    top.axvline(len(first), ymax=0.5, color="0.4", linestyle=":", label="from_torch")
    top.legend()
    figure.savefig(path)


def main(argv=None):
    """Train, plot, and print how far apart the curves are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", dest="steps", action="store_const", const=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="char_rnn_from_torch.png", help="the plot")
    args = parser.parse_args(argv)
    try:
        import torch
    except ImportError:
        print("This example starts in PyTorch, which is missing: pip install torch")
        return
    text = list(zip(*windows(load_text()[0]), strict=True))
    batches = [text[step % len(text)] for step in range(args.steps)]
    first, rest = batches[: args.steps // 2], batches[args.steps // 2 :]

    run = make_torch_run(torch, args.seed, args.steps)
    memory, losses = train_in_torch(torch, *run, None, first)

    # PyTorch to JAX: one function for the weights and the state. PyTorch's memory is
    # (output, cell), Flax's is (cell, output).
    network, optimizer, scheduler = run
    weights = {n: p.detach().numpy().copy() for n, p in network.named_parameters()}
    params, carry = to_params(weights), tuple(jnp.array(x[0]) for x in memory[::-1])
    # The scheduler's schedule, for each of the two groups.
    rates, _ = schedules.from_torch(scheduler.state_dict())
    tx, state = from_torch(optimizer.state_dict(), to_params, learning_rate=rates)
    in_nnx = train_in_nnx(tx._replace(init=lambda _: state), params, carry, rest)

    new = optax.tree.set(tx.init(params), count=jnp.int32(len(first)))
    lost = tx._replace(init=lambda _: new)
    without_state = train_in_nnx(lost, params, carry, rest)

    in_torch = train_in_torch(torch, *run, memory, rest)[1]
    plot(args.out, losses, in_torch, in_nnx, without_state)
    apart, lost_apart = (abs(x - in_torch) for x in (in_nnx, without_state))
    print(
        f"{len(first)} steps in PyTorch, then {len(rest)} in flax.nnx, compared with "
        f"PyTorch only:\nOver {COMPARED} steps, the losses differ by at most "
        f"{apart[:COMPARED].max():.1e} bits per character\n"
        f"({lost_apart[:COMPARED].max():.1e} if the state is lost), and over all steps "
        f"by {apart.max():.1e}.\nMean of the last 20 steps: "
        f"{in_torch[-20:].mean():.3f} bits in PyTorch, {in_nnx[-20:].mean():.3f} in "
        "flax.nnx."
    )


if __name__ == "__main__":
    main()
