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
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from rmsprop_jax import dialects

RATE, DECAY, MOMENTUM, EPS = 0.002, 0.9, 0.9, 0.001
DROP = 60  # the step at which the learning rate falls to a tenth


def rate(count: ArrayLike) -> jax.Array:
    """0.002, and a tenth of it from step 60 on."""
    return jnp.where(jnp.asarray(count) < DROP, RATE, RATE / 10)


OPTIMIZERS = {
    "PyTorch: √ν + ε, ν₀ = 0": dialects.torch(
        rate, alpha=DECAY, eps=EPS, momentum=MOMENTUM
    ),
    "Keras: √(ν + ε), ν₀ = 0": dialects.keras(
        rate, rho=DECAY, momentum=MOMENTUM, epsilon=EPS
    ),
    "TensorFlow 1: √(ν + ε), ν₀ = 1": dialects.tensorflow(
        rate, decay=DECAY, momentum=MOMENTUM, epsilon=EPS
    ),
    "Stable-Baselines3: √(ν + ε), ν₀ = 1": dialects.stable_baselines3(
        rate, alpha=DECAY, eps=EPS, momentum=MOMENTUM
    ),
}


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
    """Step sizes above, losses below."""
    figure = Figure(figsize=(6, 7))
    top, bottom = figure.subplots(2, 1)
    # The second moment begins alike in the last two, so that their curves meet.
    for (name, (sizes, losses)), line in zip(
        curves.items(), ("-", "-", "-", "--"), strict=True
    ):
        for axes, values in ((top, sizes[:100]), (bottom, losses)):
            axes.semilogy(np.arange(1, len(values) + 1), values, line, label=name)
    top.set(title="Where ν₀ = 1, the first steps are small …")
    top.set(xlabel="step", ylabel="size of the step (RMS)")
    bottom.set(title="… and training is slow", xlabel="step", ylabel="training loss")
    for axes in (top, bottom):
        axes.axvline(DROP, color="0.4", linestyle=":", label="learning rate ÷ 10")
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center")
    figure.savefig(path)


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
