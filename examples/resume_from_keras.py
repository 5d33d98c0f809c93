"""Start a run in Keras, and resume it in JAX from the file that Keras saved.

    pip install -e ".[examples,checkpoints]" keras
    python examples/resume_from_keras.py

A convolution, a layer norm and two dense layers learn scikit-learn's digits with
keras.optimizers.RMSprop, momentum and a falling learning rate. Halfway, Keras saves a
.keras file, and JAX resumes the run: `from_keras` returns the optimizer with its
settings, including the schedule, and its state; `load_weights` returns the weights.
Keras continues as well. The script draws resume_from_keras.png: the loss in JAX over
the loss in Keras, and next to it a run that moves only its weights and loses its state.
"""

import argparse
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from rmsprop_jax.checkpoints import from_keras, load_weights

RATE, DECAY, BATCH_SIZE = 0.002, 0.998, 64


def batches(steps):
    """The images (n, 8, 8, 1), from 0 to 1, and labels of every step."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    rng = np.random.default_rng(2)
    for _ in range(steps):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        yield images[rows], labels[rows]


def make_keras_run(keras):
    """The network in Keras, with its optimizer."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(32, name="dense1"),
            layers.LayerNormalization(name="norm"),
            layers.Activation("relu"),
            layers.Dense(10, name="dense2"),
        ],
        name="digits",
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(RATE, 1, DECAY)
    model.compile(
        keras.optimizers.RMSprop(schedule, momentum=0.9, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def train_in_keras(model, data):
    """The loss before each step."""
    with jax.numpy_rank_promotion("allow"):  # Keras needs it, even if JAX forbids it
        return [float(model.train_on_batch(*batch)) for batch in data]


def to_params(by_path):
    """Keras's weights, by their paths, as the parameters of `logits_of`."""
    params = {}
    for path, weight in by_path.items():
        _, layer, name = path.split("/")  # as in digits/conv/kernel
        params.setdefault(layer, {})[name] = weight
    return params


def logits_of(params, images):
    """The same network in JAX."""
    conv, norm = params["conv"], params["norm"]
    x = lax.conv_general_dilated(
        images,
        conv["kernel"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + conv["bias"][None, None, None])
    x = x.reshape(len(x), -1) @ params["dense1"]["kernel"]
    x = x + params["dense1"]["bias"][None]
    x = jax.nn.standardize(x, axis=1, epsilon=1e-3)  # Keras's ε
    x = jax.nn.relu(x * norm["gamma"][None] + norm["beta"][None])
    return x @ params["dense2"]["kernel"] + params["dense2"]["bias"][None]


def train_in_jax(tx, params, state, data):
    """The loss before each step."""

    def loss_of(params, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits_of(params, images), labels
        )
        return losses.mean()

    @jax.jit
    def step(params, state, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for images, labels in data:
        params, state, loss = step(params, state, images, labels)
        losses.append(float(loss))
    return losses


def plot(path, first, in_keras, in_jax, without_state):
    """The losses, each averaged with the 9 before it."""
    figure = Figure()
    axes = figure.subplots()
    for later, label, style in (
        (in_keras, "Keras only", {"color": "0.8", "linewidth": 7}),
        (without_state, "Keras, then JAX without the state", {"color": "C1"}),
        (in_jax, "Keras, then JAX with rmsprop_jax", {"color": "C0"}),
    ):
        losses = np.convolve(first + later, np.ones(10) / 10, "valid")
        axes.semilogy(np.arange(len(losses)) + 9, losses, label=label, **style)
    axes.axvline(len(first), ymax=0.6, color="0.4", linestyle=":", label="from_keras")
    axes.set(xlabel="step", ylabel="training loss")
    axes.set_title("In JAX, the run continues as in Keras")
    axes.legend()
    figure.savefig(path)


def main():
    """Train, plot, and print how far apart the curves are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--out", default="resume_from_keras.png", help="the plot")
    arguments = parser.parse_args()
    # Keras also runs on TensorFlow or torch, but JAX is already installed.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import h5py  # noqa: F401
        import keras
    except ImportError:
        print("This example starts in Keras and reads its file: pip install keras h5py")
        return
    steps = 60 if arguments.quick else 600
    data = list(batches(steps))
    first, rest = data[: steps // 2], data[steps // 2 :]

    model = make_keras_run(keras)
    losses = train_in_keras(model, first)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.keras"
        model.save(path)

        # A .keras file does not hold the names of the variables. A .h5 file does.
        names = [v.path for v in model.trainable_variables]
        # All variables decay: nothing was excluded.
        tx, state = from_keras(path, to_params, names=names, weight_decay_mask=True)
        params = jax.tree.map(jnp.array, load_weights(path, to_params, names=names))

    in_jax = train_in_jax(tx, params, state, rest)
    lost = optax.tree.set(tx.init(params), count=jnp.int32(len(first)))
    without_state = train_in_jax(tx, params, lost, rest)
    in_keras = train_in_keras(model, rest)

    apart = np.abs(np.subtract(in_jax, in_keras)).max()
    lost_apart = np.abs(np.subtract(without_state, in_keras)).max()
    print(
        f"{len(first)} steps in Keras, then {len(rest)} in JAX.\n"
        f"Largest difference from Keras's loss: {apart:.1e}; {lost_apart:.1e} without "
        "the optimizer state."
    )
    plot(arguments.out, losses, in_keras, in_jax, without_state)


if __name__ == "__main__":
    main()
