"""Start a run in PyTorch, resume it in JAX, and export it back to PyTorch.

    pip install -e ".[examples]" torch
    python examples/resume_from_torch.py

A convolution, a layer norm and two linear layers learn scikit-learn's digits with
torch.optim.RMSprop, momentum and a falling learning rate. Halfway, the weights and the
optimizer state move to JAX with the same function, and the scheduler moves as well.
resume.png shows the loss in JAX over the loss that PyTorch has when it continues, and
next to it a run that moves only its weights and loses its state. At the end, everything
moves back to PyTorch, which takes ten more steps.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from rmsprop_jax.checkpoints import from_torch, to_torch

RATE, DECAY, BATCH_SIZE = 0.002, 0.998, 64


def batches(steps):
    """The images (n, 8, 8), from 0 to 1, and labels of every step."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8).astype(np.float32) / 16
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        yield images[rows], labels[rows]


def make_torch_run(torch):
    """The network in PyTorch, its optimizer, and its learning-rate scheduler."""
    nn = torch.nn
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(1, 8, 3, padding=1))
    network.add_module("relu1", nn.ReLU())
    network.add_module("flatten", nn.Flatten())
    network.add_module("linear1", nn.Linear(8 * 8 * 8, 32))
    network.add_module("norm", nn.LayerNorm(32))
    network.add_module("relu2", nn.ReLU())
    network.add_module("linear2", nn.Linear(32, 10))
    # With named_parameters(), the checkpoint says which parameter each buffer is of.
    optimizer = torch.optim.RMSprop(
        network.named_parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
    return network, optimizer, scheduler


def train_in_torch(torch, network, optimizer, scheduler, data):
    """The loss before each step."""
    losses = []
    for images, labels in data:
        optimizer.zero_grad()
        logits = network(torch.tensor(images)[:, None])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def to_params(weights):
    """PyTorch's weights as the parameters of `logits_of`.

    Kernels are (height, width, in, out) or (in, out) in JAX. Images are (height, width,
    channels), which is also how linear1 gets them flattened.
    """
    linear1 = weights["linear1.weight"].reshape(32, 8, 8, 8)
    return {
        "conv": {
            "kernel": weights["conv.weight"].transpose(2, 3, 1, 0),
            "bias": weights["conv.bias"],
        },
        "linear1": {
            "kernel": linear1.transpose(2, 3, 1, 0).reshape(-1, 32),
            "bias": weights["linear1.bias"],
        },
        "norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
        "linear2": {
            "kernel": weights["linear2.weight"].T,
            "bias": weights["linear2.bias"],
        },
    }


def from_params(params):
    """The inverse of `to_params`."""
    linear1 = params["linear1"]["kernel"].reshape(8, 8, 8, 32)
    return {
        "conv.weight": params["conv"]["kernel"].transpose(3, 2, 0, 1),
        "conv.bias": params["conv"]["bias"],
        "linear1.weight": linear1.transpose(3, 2, 0, 1).reshape(32, -1),
        "linear1.bias": params["linear1"]["bias"],
        "norm.weight": params["norm"]["scale"],
        "norm.bias": params["norm"]["bias"],
        "linear2.weight": params["linear2"]["kernel"].T,
        "linear2.bias": params["linear2"]["bias"],
    }


def logits_of(params, images):
    """The same network in JAX."""
    conv, norm = params["conv"], params["norm"]
    x = lax.conv_general_dilated(
        images[..., None],
        conv["kernel"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + conv["bias"][None, None, None])
    x = x.reshape(len(x), -1) @ params["linear1"]["kernel"]
    x = x + params["linear1"]["bias"][None]
    x = jax.nn.standardize(x, axis=1, epsilon=1e-5)  # PyTorch's ε
    x = jax.nn.relu(x * norm["scale"][None] + norm["bias"][None])
    return x @ params["linear2"]["kernel"] + params["linear2"]["bias"][None]


def train_in_jax(tx, params, state, data):
    """The new parameters and state, and the loss before each step."""

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
    return params, state, losses


def plot(path, first, in_torch, in_jax, without_state):
    """The losses, each averaged with the 9 before it."""
    figure = Figure()
    axes = figure.subplots()
    for later, label, style in (
        (in_torch, "PyTorch only", {"color": "0.8", "linewidth": 7}),
        (without_state, "PyTorch, then JAX without the state", {"color": "C1"}),
        (in_jax, "PyTorch, then JAX with rmsprop_jax", {"color": "C0"}),
    ):
        losses = np.convolve(first + later, np.ones(10) / 10, "valid")
        axes.semilogy(np.arange(len(losses)) + 9, losses, label=label, **style)
    axes.axvline(len(first), ymax=0.6, color="0.4", linestyle=":", label="from_torch")
    axes.set(xlabel="step", ylabel="training loss")
    axes.set_title("In JAX, the run continues as in PyTorch")
    axes.legend()
    figure.savefig(path)


def main():
    """Train, plot, and print how far apart the curves are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--out", default="resume.png", help="where the plot goes")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("This example starts in PyTorch, which is missing: pip install torch")
        return
    steps = 60 if arguments.quick else 600
    data = list(batches(steps))
    first, rest = data[: steps // 2], data[steps // 2 :]

    network, optimizer, scheduler = make_torch_run(torch)
    losses = train_in_torch(torch, network, optimizer, scheduler, first)

    # PyTorch to JAX: weights and state go through the same function.
    weights = {n: p.detach().numpy().copy() for n, p in network.named_parameters()}
    params = jax.tree.map(jnp.array, to_params(weights))
    # The scheduler is in the checkpoint, and is resumed as well.
    checkpoint = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
    }
    tx, state = from_torch(checkpoint, to_params, learning_rate="checkpoint")
    ported, state, in_jax = train_in_jax(tx, params, state, rest)

    lost = optax.tree.set(tx.init(params), count=jnp.int32(len(first)))
    without_state = train_in_jax(tx, params, lost, rest)[2]

    # And back to PyTorch, which takes ten more steps.
    again, its_optimizer, its_scheduler = make_torch_run(torch)
    again.load_state_dict(
        {name: torch.tensor(np.array(w)) for name, w in from_params(ported).items()}
    )
    its_optimizer.load_state_dict(
        to_torch(state, from_params, like=optimizer.state_dict())
    )

    in_torch = train_in_torch(torch, network, optimizer, scheduler, rest)
    for group in its_optimizer.param_groups:
        group["lr"] = optimizer.param_groups[0]["lr"]
    more = data[:10]
    expected = train_in_torch(torch, network, optimizer, scheduler, more)[-1]
    found = train_in_torch(torch, again, its_optimizer, its_scheduler, more)[-1]

    apart = np.abs(np.subtract(in_jax, in_torch)).max()
    lost_apart = np.abs(np.subtract(without_state, in_torch)).max()
    print(
        f"{len(first)} steps in PyTorch, then {len(rest)} in JAX.\n"
        f"Largest difference from PyTorch's loss: {apart:.1e}; {lost_apart:.1e} "
        "without the optimizer state.\n"
        f"Loss after ten more steps in PyTorch: {found:.6f}; "
        f"without JAX in between: {expected:.6f}."
    )
    plot(arguments.out, losses, in_torch, in_jax, without_state)


if __name__ == "__main__":
    main()
