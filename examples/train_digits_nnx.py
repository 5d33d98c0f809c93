"""Train a small convolutional network on handwritten digits, with flax.nnx.

    pip install -e ".[examples]"
    python examples/train_digits_nnx.py

The data, the network, the accuracy and the curves in digits.png are those of
train_digits.py. Here, objects hold the parameters, the optimizer state and the dropout
keys.
"""

import numpy as np
from flax import nnx
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from tqdm import tqdm
from train_digits import BATCH_SIZE, EPOCH, load_data, make_optimizer, parse, plot


class Network(nnx.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, rngs):
        """Draw the parameters, and later the dropout, from `rngs`."""
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense1 = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.dense2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images, *, train):
        """From (n, 8, 8, 1) images to (n, 10) logits."""
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = self.dropout(x, deterministic=not train)
        x = nnx.relu(self.dense1(x))
        x = self.dropout(x, deterministic=not train)
        return self.dense2(x)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """Update model and optimizer in place; the loss before it."""

    def loss_of(model):
        return cross_entropy(model(images, train=True), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def evaluate(model, images, labels):
    """The loss and the accuracy, without dropout."""
    logits = model(images, train=False)
    return cross_entropy(logits, labels).mean(), (logits.argmax(-1) == labels).mean()


def main(argv=None):
    """Train, print and plot."""
    args = parse(argv)
    images, test_images, labels, test_labels = load_data(args.seed)
    steps = len(images) // BATCH_SIZE  # in an epoch
    rng = np.random.default_rng(args.seed)
    model = Network(nnx.Rngs(args.seed))
    tx = make_optimizer(args.epochs * steps)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    history = []
    for epoch in tqdm(range(1, args.epochs + 1), unit="epoch", disable=None):
        losses = []
        order = rng.permutation(len(images))[: steps * BATCH_SIZE]
        for batch in order.reshape(steps, BATCH_SIZE):
            loss = train_step(model, optimizer, images[batch], labels[batch])
            losses.append(loss)
        test_loss, accuracy = evaluate(model, test_images, test_labels)
        history.append((float(np.mean(losses)), float(test_loss), float(accuracy)))
        tqdm.write(EPOCH.format(epoch, *history[-1]))
    plot(history, args.out)
    print(f"test accuracy {history[-1][-1]:.2%}, curves in {args.out}")


if __name__ == "__main__":
    main()
