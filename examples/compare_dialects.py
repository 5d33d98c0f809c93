"""The same hyperparameters in four frameworks' RMSProp: four different runs.

    pip install -e ".[demo]"
    python examples/compare_dialects.py

This trains one small network on scikit-learn's handwritten digits four times, from the
same weights and on the same batches, with the RMSProp of four frameworks and one set of
hyperparameters. It prints how large the steps are and the final losses, and draws
compare_dialects.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from sklearn.datasets import load_digits

from rmsprop_jax import dialects

mpl.use("Agg")  # writes files, opens no window
from matplotlib import pyplot as plt

RATE, DECAY, MOMENTUM, EPS = 0.002, 0.9, 0.9, 0.001
DROP = 60  # the step at which the learning rate falls to a tenth


def rate(count: ArrayLike) -> jax.Array:
    """0.002, and a tenth of it from step 60 on."""
    return jnp.where(jnp.asarray(count) < DROP, RATE, RATE / 10)


OPTIMIZERS = {
    "PyTorch: √ν + ε, ν is 0 at first, learning rate after momentum": dialects.torch(
        rate, alpha=DECAY, eps=EPS, momentum=MOMENTUM
    ),
    "Keras: √(ν + ε), ν is 0 at first, learning rate inside momentum": dialects.keras(
        rate, rho=DECAY, momentum=MOMENTUM, epsilon=EPS
    ),
    "TensorFlow 1: √(ν + ε), ν is 1 at first, learning rate inside momentum": (
        dialects.tensorflow(rate, decay=DECAY, momentum=MOMENTUM, epsilon=EPS)
    ),
    "Stable-Baselines3: √(ν + ε), ν is 1 at first, learning rate after momentum": (
        dialects.stable_baselines3(rate, alpha=DECAY, eps=EPS, momentum=MOMENTUM)
    ),
}
# Colours that colour-blind people can distinguish, and dashes where lines overlap.
STYLES = (("#D55E00", "-"), ("#0072B2", "-"), ("#009E73", "-"), ("#CC79A7", "--"))


def initial_parameters(rng: np.random.Generator) -> dict[str, jax.Array]:
    """A network of 64, 32 and 10 units."""
    return {
        "w1": jnp.asarray(rng.normal(0, 1 / 8, (64, 32)), jnp.float32),
        "b1": jnp.zeros((1, 32)),
        "w2": jnp.asarray(rng.normal(0, 1 / 6, (32, 10)), jnp.float32),
        "b2": jnp.zeros((1, 10)),
    }


def logits(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """The network's outputs for images [n, 64]."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def mean_loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross entropy."""
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
    )


def train(tx: Any, params: Any, images: jax.Array, labels: jax.Array, batches: Any):
    """The last parameters, and each step's root mean square and loss."""

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(mean_loss)(params, images[batch], labels[batch])
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        size = jnp.sqrt(jnp.mean(jnp.square(ravel_pytree(updates)[0])))
        return (params, state), (size, mean_loss(params, images, labels))

    (params, _), curves = jax.jit(
        lambda params: jax.lax.scan(step, (params, tx.init(params)), batches)
    )(params)
    return params, *map(np.asarray, curves)


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Step sizes on the left, losses on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    for (name, (sizes, losses)), (colour, line) in zip(
        curves.items(), STYLES, strict=True
    ):
        for axes, values in ((left, sizes[:100]), (right, losses)):
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                line,
                color=colour,
                linewidth=1.8,
                label=name,
            )
    for axes, title in (
        (left, "size of the step (root mean square)"),
        (right, "training loss"),
    ):
        axes.set(yscale="log", xlabel="step")
        axes.set_title(title, loc="left")
        axes.axvline(DROP, color="0.6", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    left.annotate(
        "learning rate ÷ 10 ",
        (DROP, 1),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        color="0.4",
    )
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", frameon=False, ncols=1)
    figure.suptitle(
        "The same hyperparameters in four frameworks: with ν = 1 at first, training "
        "is slow\n"
        f"(learning rate {RATE}, decay {DECAY}, momentum {MOMENTUM}, ε {EPS})"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with every dialect, print the results and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", dest="steps", action="store_const", const=20)
    parser.add_argument("--out", type=Path, default=Path("compare_dialects.png"))
    options = parser.parse_args(argv)

    pixels, digits = load_digits(return_X_y=True)
    images = jnp.asarray(pixels / 16, jnp.float32)
    labels = jnp.asarray(digits, jnp.int32)
    rng = np.random.default_rng(0)
    params = initial_parameters(rng)
    batches = jnp.asarray(rng.integers(0, 1400, (options.steps, 64)))
    curves = {}
    print(f"{'':20}{'first step':>12}{'step 10':>12}{'last step':>12}", end="")
    print(f"{'last loss':>12}{'test accuracy':>16}")
    for name, tx in OPTIMIZERS.items():
        trained, sizes, losses = train(
            tx, params, images[:1400], labels[:1400], batches
        )
        curves[name] = (sizes, losses)
        right = jnp.argmax(logits(trained, images[1400:]), axis=1) == labels[1400:]
        print(f"{name.split(':')[0]:20}{sizes[0]:12.2e}", end="")
        print(f"{sizes[min(9, options.steps - 1)]:12.2e}{sizes[-1]:12.2e}", end="")
        print(f"{losses[-1]:12.4f}{right.mean():16.1%}")
    plot(curves, options.out)
    print(f"The curves are in {options.out}.")


if __name__ == "__main__":
    main()
