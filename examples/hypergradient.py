"""Tune RMSProp's learning rate and α by gradient descent through the training.

    pip install -e ".[examples]"
    python examples/hypergradient.py

A network learns scikit-learn's handwritten digits in 100 steps. The gradient of its
held-out loss through all of these steps shows how to change the logarithm of the
learning rate and the logit of α. An outer RMSProp makes the change, and the network
starts again. The script draws hypergradient.png.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

from rmsprop_jax import rmsprop

STEPS, BATCH, HELD_OUT = 100, 64, 597
ROW = "run {:2}: learning rate {:.2e}, 1 − α {:.2e}, held-out loss {:.4f}"


def load_data():
    """Images [1797, 64] of 0 to 1, their labels, and batches of indices [100, 64]."""
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    batches = rng.integers(HELD_OUT, len(labels), (STEPS, BATCH))
    return [jnp.asarray(x) for x in (pixels[order] / 16, labels[order], batches)]


def loss_of(params, images, labels):
    """The mean cross entropy in nats of a network of 64, 32 and 10 units."""
    logits = jnp.tanh(images @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def held_out_loss(tuned, images, labels, batches):
    """The held-out loss after training with a log learning rate and a logit of α."""
    # Without the correction, α would mostly scale the first steps, as η does.
    tx = rmsprop(jnp.exp(tuned[0]), jax.nn.sigmoid(tuned[1]), bias_correction=True)

    @jax.checkpoint  # the backward pass recomputes steps instead of storing them
    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss_of)(params, images[batch], labels[batch])
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    one, two = jax.random.split(jax.random.key(0))
    params = {"hidden": jax.random.normal(one, (64, 32)) / 64**0.5}
    params["out"] = jax.random.normal(two, (32, 10)) / 32**0.5
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
    return loss_of(params, images[:HELD_OUT], labels[:HELD_OUT])


def plot(history, rates, forgettings, losses, path):
    """Draw what was tried, by run and as a path over the losses [1 − α, η]."""
    rate, forgetting, _ = np.array(history).T
    figure = Figure(figsize=(6, 8))
    top, bottom = figure.subplots(2, 1)
    labels = "learning rate", "1 − α", "held-out loss (nats)"
    top.semilogy(range(1, len(history) + 1), history, ".-", label=labels)
    top.set(xlabel="run", title="Each run changes the learning rate and α")
    top.legend()
    drawn = bottom.contourf(rates, forgettings, np.log10(losses), 20)
    figure.colorbar(drawn, label="log₁₀ of the held-out loss")
    bottom.plot(rate, forgetting, ".-w", linewidth=1)
    bottom.plot(rate[-1], forgetting[-1], "*", color="C1", markersize=14)
    bottom.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="1 − α")
    bottom.set_title("The path of the runs ends (star) at a low loss")
    bottom.grid(visible=False)
    figure.savefig(path)


def main(argv=None):
    """Tune, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--quick", dest="runs", action="store_const", const=5)
    parser.add_argument("--out", default="hypergradient.png", help="the plot's file")
    args = parser.parse_args(argv)
    data, tuned, history = load_data(), jnp.array([np.log(2e-4), 0.0]), []
    outer_rate = optax.cosine_decay_schedule(0.2, args.runs)
    outer: Any = rmsprop(outer_rate, alpha=0.9, bias_correction=True)
    state = outer.init(tuned)
    loss_and_slope = jax.jit(jax.value_and_grad(held_out_loss))
    for run in tqdm(range(1, args.runs + 1), unit="run", disable=None):
        loss, slope = loss_and_slope(tuned, *data)
        rate, forgetting = jnp.exp(tuned[0]), jax.nn.sigmoid(-tuned[1])
        history.append((float(rate), float(forgetting), float(loss)))
        if run == 1 or run % 5 == 0:
            tqdm.write(ROW.format(run, *history[-1]))
        updates, state = outer.update(slope, state)
        tuned += updates
    axes = np.geomspace(1e-4, 0.1, 20), np.geomspace(1e-3, 0.9, 20)
    rates, forgettings = jnp.meshgrid(*axes)
    grid = jnp.stack([jnp.log(rates), jnp.log(1 / forgettings - 1)], axis=-1)
    losses = jax.lax.map(jax.vmap(lambda tuned: held_out_loss(tuned, *data)), grid)
    plot(history, *axes, np.asarray(losses), args.out)
    print(f"minimum of a grid of {losses.size}: {losses.min():.4f}; see {args.out}")


if __name__ == "__main__":
    main()
