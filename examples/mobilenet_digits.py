"""Train a small MobileNet on handwritten digits as timm and TF-Slim do, with flax.nnx.

    pip install -e ".[examples]"
    python examples/mobilenet_digits.py

This is the whole recipe: depthwise separable convolutions with batch norm,
`dialects.timm` with ε = 0.001 and momentum 0.9, a learning rate that warms up and is
then multiplied by 0.97 every 2.4 epochs, weight decay on kernels only, and a moving
average of weights and statistics. For comparison, `optax.rmsprop` and PyTorch's rule
train with the same hyperparameters, from the same weights and on the same batches. The
script prints the test accuracy of each, with and without the average, and draws the
curves in mobilenet_digits.png. The digits come with scikit-learn.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from tqdm import tqdm
from train_digits import BATCH_SIZE, load_data

from rmsprop_jax import dialects

RATE, ALPHA, EPS, MOMENTUM, DECAY = 0.01, 0.9, 0.001, 0.9, 1e-5
AVERAGED = (nnx.Param, nnx.BatchStat)  # the weights and the statistics


class ConvNorm(nnx.Module):
    """A convolution, batch norm and ReLU."""

    def __init__(self, features_in, features, kernel, rngs, **options):
        """Draw the parameters from `rngs`; the options are those of the convolution."""
        self.conv = nnx.Conv(
            features_in, features, kernel, use_bias=False, rngs=rngs, **options
        )
        self.norm = nnx.BatchNorm(features, momentum=0.9, epsilon=0.001, rngs=rngs)

    def __call__(self, x, *, train):
        """From (n, height, width, features_in) to (n, ..., features)."""
        return nnx.relu(self.norm(self.conv(x), use_running_average=not train))


class Separable(nnx.Module):
    """A convolution in two parts: first each channel alone, then across channels."""

    def __init__(self, features_in, features, stride, rngs):
        """Draw the parameters from `rngs`."""
        options = {"feature_group_count": features_in, "strides": stride}
        self.depthwise = ConvNorm(features_in, features_in, (3, 3), rngs, **options)
        self.pointwise = ConvNorm(features_in, features, (1, 1), rngs)

    def __call__(self, x, *, train):
        """From (n, height, width, features_in) to (n, ..., features)."""
        return self.pointwise(self.depthwise(x, train=train), train=train)


class MobileNet(nnx.Module):
    """A convolution, three separable ones, and a dense layer."""

    def __init__(self, rngs):
        """Draw the parameters from `rngs`."""
        self.stem = ConvNorm(1, 16, (3, 3), rngs)
        self.block1 = Separable(16, 32, 1, rngs)
        self.block2 = Separable(32, 64, 2, rngs)
        self.block3 = Separable(64, 128, 1, rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x, *, train):
        """From (n, 8, 8, 1) images to (n, 10) logits."""
        for layer in (self.stem, self.block1, self.block2, self.block3):
            x = layer(x, train=train)
        return self.out(x.mean((1, 2)))


def make_optimizers(steps):
    """The recipe with three rules; `steps` is the number of steps in an epoch."""
    rate = optax.warmup_exponential_decay_schedule(
        0.0, RATE, 2 * steps, round(2.4 * steps), 0.97, staircase=True
    )
    rules = {
        "timm": dialects.timm(rate, ALPHA, EPS, momentum=MOMENTUM),
        "Optax": optax.rmsprop(rate, ALPHA, EPS, momentum=MOMENTUM),
        "PyTorch": dialects.torch(rate, ALPHA, EPS, momentum=MOMENTUM),
    }

    def kernels(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    decay = optax.add_decayed_weights(DECAY, kernels)
    return {name: optax.chain(decay, rule) for name, rule in rules.items()}


@nnx.jit
def train_step(model, optimizer, average, images, labels):
    """Update model, optimizer and average in place."""

    def loss_of(model):
        return cross_entropy(model(images, train=True), labels).mean()

    gradients = nnx.grad(loss_of)(model)
    optimizer.update(model, gradients)
    # The average decays faster at first, as in TensorFlow.
    count = optimizer.step[...].astype(jnp.float32)
    keep = jnp.minimum(0.98, (1 + count) / (10 + count))
    old, new = nnx.state(average, AVERAGED), nnx.state(model, AVERAGED)
    nnx.update(average, optax.incremental_update(new, old, 1 - keep))


@nnx.jit
def evaluate(model, images, labels):
    """The loss and the accuracy, with the statistics of the training."""
    logits = model(images, train=False)
    return cross_entropy(logits, labels).mean(), (logits.argmax(-1) == labels).mean()


def train(tx, seed, epochs, data, progress):
    """After each epoch the test loss and accuracy, [2, epochs, 2]: model, average."""
    images, test_images, labels, test_labels = data
    model, rng = MobileNet(nnx.Rngs(seed)), np.random.default_rng(seed)
    optimizer, average = nnx.Optimizer(model, tx, wrt=nnx.Param), nnx.clone(model)
    steps = len(images) // BATCH_SIZE
    history = []
    for _ in range(epochs):
        order = rng.permutation(len(images))[: steps * BATCH_SIZE]
        for batch in order.reshape(steps, BATCH_SIZE):
            train_step(model, optimizer, average, images[batch], labels[batch])
        history.append(
            [evaluate(each, test_images, test_labels) for each in (model, average)]
        )
        progress.update()
    return np.array(history, float).swapaxes(0, 1)


def plot(curves, path):
    """Draw test losses and accuracies of each rule, dashed without the average."""
    figure = Figure(figsize=(6, 7))
    top, bottom = figure.subplots(2, 1, sharex=True)
    for i, (name, curve) in enumerate(curves.items()):
        weights, averages = curve.swapaxes(1, 2)
        for (losses, accuracies), style in (
            (weights, {"linewidth": 1, "linestyle": "--"}),
            (averages, {"label": name}),
        ):
            epochs = np.arange(1, len(losses) + 1)
            top.semilogy(epochs, losses, f"C{i}", **style)
            bottom.plot(epochs, 100 * accuracies, f"C{i}", **style)
    top.set(
        title="The average (solid) of the weights is steadier",
        ylabel="test loss (nats)",
    )
    bottom.set(title="Test accuracy", xlabel="epoch", ylim=(90, 100.2))
    bottom.set_ylabel("digits recognized (%)")
    bottom.locator_params(axis="x", integer=True)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)


def main(argv=None):
    """Train by the three rules, print and plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", dest="epochs", action="store_const", const=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="mobilenet_digits.png", help="the plot's file")
    args = parser.parse_args(argv)
    data = load_data(args.seed)
    rules = make_optimizers(len(data[0]) // BATCH_SIZE)
    curves = {}
    with tqdm(total=len(rules) * args.epochs, unit="epoch", disable=None) as progress:
        for name, tx in rules.items():
            curves[name] = train(tx, args.seed, args.epochs, data, progress)
    plot(curves, args.out)
    print(f"test accuracy after {args.epochs} epochs   the weights   their average")
    for name, curve in curves.items():
        weights, average = curve[:, -1, 1]
        print(f"{name:7}{weights:33.2%}{average:16.2%}")
    print(f"The curves are in {args.out}.")


if __name__ == "__main__":
    main()
