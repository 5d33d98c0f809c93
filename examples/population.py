"""Train 64 networks at once, each with its own learning rate, α and momentum.

    pip install -e ".[examples]"
    python examples/population.py

``jax.vmap`` over three hyperparameters turns the training of one small network on
scikit-learn's handwritten digits into the training of 64, in one compiled program. All
of them start from the same weights and see the same batches. The script prints the best
and the worst, and draws the test accuracies in population.png.
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rmsprop_jax import rmsprop

RATES, ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1), (0.5, 0.9, 0.99, 0.999)
MOMENTA = (0.0, 0.5, 0.9, 0.99)
MEMBERS = list(itertools.product(MOMENTA, ALPHAS, RATES))
SAYS = "{}: {:.1%} of the test digits, with momentum {}, α {}, learning rate {}"


def load_data():
    """Training images [1437, 64] of 0 to 1, test images, and the labels of both."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, test_size=0.2, random_state=0)
    return [jnp.asarray(part) for part in parts]


def logits_of(params, images):
    """The outputs [n, 10] of a network of 64, 32 and 10 units."""
    return jax.nn.relu(images @ params["hidden"]) @ params["out"]


def train(momentum, alpha, rate, images, labels, batches):
    """One network's parameters after a step on each of the batches of indices."""
    tx = rmsprop(rate, alpha, momentum=momentum)

    def loss_of(params, batch):
        logits, expected = logits_of(params, images[batch]), labels[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, expected).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    one, two = jax.random.split(jax.random.key(0))
    params = {"hidden": jax.random.normal(one, (64, 32)) / 64**0.5}
    params["out"] = jax.random.normal(two, (32, 10)) / 32**0.5
    return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]


# The only vmapped function: each of the three hyperparameters has a leading axis.
train_all = jax.jit(jax.vmap(train, in_axes=(0, 0, 0, None, None, None)))


def plot(accuracies, path):
    """Draw accuracies [momentum, α, learning rate], a map for each momentum."""
    figure = Figure(figsize=(6, 6.5))
    figure.suptitle("With more momentum, large learning rates fail")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, momentum, percent in zip(
        panels.flat, MOMENTA, 100 * accuracies, strict=True
    ):
        axes.imshow(percent, origin="lower", vmin=0, vmax=100)
        for (y, x), value in np.ndenumerate(percent):
            colour = "black" if value > 60 else "white"
            axes.text(x, y, f"{value:.0f}", color=colour, ha="center", va="center")
        axes.set_xticks(range(len(RATES)), RATES)
        axes.set_yticks(range(len(ALPHAS)), ALPHAS)
        axes.set_title(f"momentum {momentum}", weight="normal")
        axes.grid(visible=False)
    figure.supxlabel("learning rate (numbers: test digits recognized, %)")
    panels[0, 0].set_ylabel("α")
    panels[1, 0].set_ylabel("α")
    figure.savefig(path)


def main(argv=None):
    """Train, print and plot; return the accuracies [momentum, α, learning rate]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", dest="steps", action="store_const", const=30)
    parser.add_argument("--out", default="population.png", help="the plot's file")
    args = parser.parse_args(argv)
    images, test_images, labels, test_labels = load_data()
    batches = np.random.default_rng(0).integers(len(labels), size=(args.steps, 64))
    began = time.perf_counter()
    params = train_all(*jnp.array(MEMBERS).T, images, labels, jnp.asarray(batches))
    logits = np.asarray(jax.vmap(logits_of, in_axes=(0, None))(params, test_images))
    right = np.argmax(logits, axis=-1) == np.asarray(test_labels)
    accuracies = right.mean(axis=-1)
    took = time.perf_counter() - began
    print(f"compiled and trained {len(MEMBERS)} networks in {took:.1f} s")
    for word, i in (("best", accuracies.argmax()), ("worst", accuracies.argmin())):
        print(SAYS.format(word, accuracies[i], *MEMBERS[i]))
    accuracies = accuracies.reshape(len(MOMENTA), len(ALPHAS), len(RATES))
    plot(accuracies, args.out)
    return accuracies


if __name__ == "__main__":
    main()
