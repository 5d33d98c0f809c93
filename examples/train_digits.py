"""Train a small convolutional network on handwritten digits, with Flax linen.

    pip install -e ".[examples]"
    python examples/train_digits.py

The digits come with scikit-learn: 1,797 images of 8 × 8 pixels, of which a fifth is
held out for the test. The script prints losses and test accuracy after every epoch,
reaches about 99 % in well under a minute on two CPU cores, and draws the curves in
digits.png.
"""

import argparse

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from matplotlib.figure import Figure
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from rmsprop_jax import rmsprop

BATCH_SIZE = 64
EPOCH = "epoch {:2}: train loss {:.4f}, test loss {:.4f}, test accuracy {:.2%}"


class Network(nn.Module):
    """Two convolutions and two dense layers."""

    @nn.compact
    def __call__(self, images, *, train):
        """From (n, 8, 8, 1) images to (n, 10) logits."""
        x = nn.relu(nn.Conv(32, (3, 3))(images))
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10)(x)


def load_data(seed):
    """Training images, test images, and the labels of both; pixels are 0 to 1."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )


def make_optimizer(steps):
    """RMSProp with momentum, and a learning rate with a warm-up and a cosine decay."""
    # The warm-up is needed because the second moment is initialized to 0, so with
    # alpha=0.99 the first updates are up to ten times the learning rate.
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)
    return rmsprop(rate, alpha=0.99, momentum=0.9)


@jax.jit
def train_step(state, key, images, labels):
    """One update: the new state, and the loss before it."""

    def loss_of(params):
        dropout = {"dropout": jax.random.fold_in(key, state.step)}
        logits = state.apply_fn({"params": params}, images, train=True, rngs=dropout)
        return cross_entropy(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


@jax.jit
def evaluate(state, images, labels):
    """The loss and the accuracy, without dropout."""
    logits = state.apply_fn({"params": state.params}, images, train=False)
    return cross_entropy(logits, labels).mean(), (logits.argmax(-1) == labels).mean()


def plot(history, path):
    """Draw rows of training loss, test loss and test accuracy, one for each epoch."""
    train_loss, test_loss, accuracy = np.array(history).T
    epochs = np.arange(1, len(history) + 1)
    figure = Figure(figsize=(6, 6.5))
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.semilogy(epochs, train_loss, ".-", label="training (with dropout)")
    top.semilogy(epochs, test_loss, ".-", label="test")
    top.set(title="Loss in training and on test digits", ylabel="cross-entropy (nats)")
    top.legend()
    bottom.plot(epochs, 100 * accuracy, ".-C1")
    bottom.set(title=f"Test accuracy: {accuracy[-1]:.1%} at the end")
    bottom.set(xlabel="epoch", ylabel="digits recognized (%)")
    bottom.locator_params(axis="x", integer=True)
    figure.savefig(path)


def parse(argv):
    """The command line's options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="digits.png", help="where the curves go")
    return parser.parse_args(argv)


def main(argv=None):
    """Train, print and plot."""
    args = parse(argv)
    images, test_images, labels, test_labels = load_data(args.seed)
    steps = len(images) // BATCH_SIZE  # in an epoch
    rng, key = np.random.default_rng(args.seed), jax.random.key(args.seed)
    model = Network()
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(key, test_images[:1], train=False)["params"],
        tx=make_optimizer(args.epochs * steps),
    )
    history = []
    for epoch in tqdm(range(1, args.epochs + 1), unit="epoch", disable=None):
        losses = []
        order = rng.permutation(len(images))[: steps * BATCH_SIZE]
        for batch in order.reshape(steps, BATCH_SIZE):
            state, loss = train_step(state, key, images[batch], labels[batch])
            losses.append(loss)
        test_loss, accuracy = evaluate(state, test_images, test_labels)
        history.append((float(np.mean(losses)), float(test_loss), float(accuracy)))
        tqdm.write(EPOCH.format(epoch, *history[-1]))
    plot(history, args.out)
    print(f"test accuracy {history[-1][-1]:.2%}, curves in {args.out}")


if __name__ == "__main__":
    main()
