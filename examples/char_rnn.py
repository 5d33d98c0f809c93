"""Train a character-level LSTM on Python's own help texts, with flax.nnx.

    pip install -e ".[examples]"
    python examples/char_rnn.py

The rule is that of Graves (2013, arXiv:1308.0850): centered, with momentum 0.9. The
recipe adds what recurrent networks are usually trained with: clipped gradients, a
learning rate that drops in steps, and two groups of parameters (kernels decay, biases
do not). The text is the 370,000 characters that ``help()`` prints about the language.
It comes with Python, and the last tenth is held out. The script prints a sample of text
and the bits per character on the held-out text, compared with `optax.rmsprop` (with the
same hyperparameters) and with bzip2. It draws the curves in char_rnn.png.
"""

import argparse
import bz2
import re
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from tqdm import trange

from rmsprop_jax import dialects

CHARACTERS, UNITS = 128, 256  # ASCII, and the LSTM's units
ROWS, LENGTH = 32, 64  # places in the text and characters from each, in a batch
RATE, MOMENTUM, DECAY, CLIP = 0.01, 0.9, 1e-4, 3.0
RULES = {
    "optax.rmsprop": partial(optax.rmsprop, decay=0.95, eps=1e-4, centered=True),
    "dialects.graves": partial(dialects.graves, alpha=0.95, eps=1e-4),
}


def load_text():
    """The ASCII codes of the text for training, and of the held-out text."""
    text = "\n\n".join(topics.values()).encode("ascii", "ignore").decode()
    # Topics share paragraphs. Keep each once; otherwise held-out ones would be known.
    paragraphs = dict.fromkeys(re.split(r"\n\s*\n", text))
    codes = np.frombuffer("\n\n".join(paragraphs).encode(), np.uint8).astype(np.int32)
    return np.split(codes, [len(codes) * 9 // 10])


def windows(codes):
    """Inputs and targets [n, ROWS, LENGTH]: rows continue in the next window."""
    n = (len(codes) - 1) // (ROWS * LENGTH)
    for first in (0, 1):  # a target is the character after its input
        rows = codes[first:][: n * ROWS * LENGTH].reshape(ROWS, n, LENGTH)
        yield rows.swapaxes(0, 1)


class Network(nnx.Module):
    """An LSTM and a dense layer."""

    def __init__(self, rngs, cell=nnx.OptimizedLSTMCell):
        """Draw the parameters from `rngs`."""
        self.lstm = nnx.RNN(cell(CHARACTERS, UNITS, rngs=rngs), return_carry=True)
        self.out = nnx.Linear(UNITS, CHARACTERS, rngs=rngs)

    def __call__(self, carry, codes):
        """The new carry, and logits (rows, length, CHARACTERS) of what follows."""
        one_hot = jax.nn.one_hot(codes, CHARACTERS)
        memory_and_outputs: Any = self.lstm(one_hot, initial_carry=carry)
        carry, x = memory_and_outputs
        return carry, self.out(x)


def start(rows=ROWS):
    """The LSTM's memory, cell and output, before the first character."""
    return jnp.zeros((rows, UNITS)), jnp.zeros((rows, UNITS))


def bits(loss):
    """Bits per character of a loss in nats per window of one row."""
    return loss / LENGTH / np.log(2)


def make_rate(first, steps):
    """A learning rate that falls in two steps."""
    falls = {steps * 6 // 10: 0.3, steps * 85 // 100: 0.3}
    return optax.piecewise_constant_schedule(first, falls)


def make_optimizer(rule, steps):
    """Clipping, weight decay of the kernels, and the rule."""

    def kernels(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.add_decayed_weights(DECAY, kernels),
        rule(make_rate(RATE, steps), momentum=MOMENTUM),
    )


def loss_of(model, carry, inputs, targets):
    """The nats of a window, summed over it as in the paper, and the new carry."""
    carry, logits = model(carry, inputs)
    return cross_entropy(logits, targets).sum(axis=1).mean(), carry


@nnx.jit
def train_step(model, optimizer, carry, inputs, targets):
    """Update model and optimizer in place; the loss before it, and the new carry."""
    loss_and_gradients = nnx.value_and_grad(loss_of, has_aux=True)
    (loss, carry), gradients = loss_and_gradients(model, carry, inputs, targets)
    optimizer.update(model, gradients)
    return loss, carry


def train(model, optimizer, codes, steps, name):
    """The bits per character of each step, through the text again and again."""
    batches, losses, carry = list(zip(*windows(codes), strict=True)), [], start()
    for step in trange(steps, desc=name, unit="step", disable=None):
        batch = batches[step % len(batches)]
        loss, carry = train_step(model, optimizer, carry, *batch)
        losses.append(loss)
    return bits(np.array(losses))


def evaluate(model, codes):
    """The bits per character of a text."""
    losses, carry, evaluate_step = [], start(), nnx.jit(loss_of)
    for batch in zip(*windows(codes), strict=True):
        loss, carry = evaluate_step(model, carry, *batch)
        losses.append(loss)
    return float(bits(np.mean(losses)))


@nnx.jit
def write(model, carry, code, key):
    """The new carry, and a character drawn from what the model finds likely."""
    carry, logits = model(carry, code[:, None])
    # A temperature below 1 makes likely characters even more likely.
    return carry, jax.random.categorical(key, logits[:, 0] / 0.7)


def sample(model, seed, length=400):
    """A text sampled from the model."""
    carry, code, text = start(rows=1), jnp.array([ord("\n")]), ""
    for key in jax.random.split(jax.random.key(seed), length):
        carry, code = write(model, carry, code, key)
        text += chr(code[0])
    return text


def compressed(codes, held_out):
    """The bits per character that bzip2 adds for a text after another one."""
    both = np.concatenate([codes, held_out])
    long, short = (len(bz2.compress(bytes(x.tolist()))) for x in (both, codes))
    return 8 * (long - short) / len(held_out)


def plot(curves, ends, path):
    """The curves of training, averaged over 20 steps, and the bits of held-out text."""
    figure = Figure()
    axes = figure.subplots()
    # The first is pale and wide, because the second lies on it.
    for (name, curve), color, width in zip(
        curves.items(), ("0.8", "C0"), (7, 2), strict=True
    ):
        smooth = np.convolve(curve, np.ones(20) / 20, "valid")
        steps = np.arange(len(smooth)) + 19
        axes.plot(steps, smooth, color=color, linewidth=width, label=name)
        axes.plot(len(curve), ends[name], "o", color=color, markersize=4 + width)
    axes.axhline(ends["bzip2"], color="0.4", linestyle="--", label="bzip2, held out")
    axes.set(xlabel="step", ylabel="bits per character (dots: held out)", ylim=(1.4, 4))
    axes.set_title("An LSTM learns Python's help texts: both rules alike")
    axes.legend()
    figure.savefig(path)


def main(argv=None):
    """Train by both rules, print and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--quick", dest="steps", action="store_const", const=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="char_rnn.png", help="the plot's file")
    args = parser.parse_args(argv)
    codes, held_out = load_text()
    models, curves, ends = {}, {}, {"bzip2": compressed(codes, held_out)}
    for name, rule in RULES.items():
        models[name] = model = Network(nnx.Rngs(args.seed))
        tx = make_optimizer(rule, args.steps)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        curves[name] = train(model, optimizer, codes, args.steps, name)
        ends[name] = evaluate(model, held_out)
    plot(curves, ends, args.out)
    print(f"A sample:\n{sample(models['dialects.graves'], args.seed)}\n")
    print(f"bits per character, held out, after {args.steps} steps:")
    for name, value in ends.items():
        print(f"{name:16} {value:.3f}")
    print(f"The curves are in {args.out}.")


if __name__ == "__main__":
    main()
