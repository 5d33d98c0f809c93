"""Which RMSProp made this run? Record it, find the rule, and check how well it fits.

    pip install -e ".[examples]"
    python examples/identify.py

A network learns scikit-learn's handwritten digits with an optimizer that the rest of
this file does not know. From the parameters and gradients of its first 40 steps,
`identify` finds the rule, its hyperparameters and its learning rates. The script draws
identify.png: each observed update against the update that the rule predicts.

To record your own run, keep a copy of each gradient and of the parameters, in order,
beginning with the parameters before the first step:

    PyTorch, around optimizer.step():
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
        params.append({n: p.detach().clone() for n, p in model.named_parameters()})

    Keras, in your own train_step, around optimizer.apply(gradients, variables):
        recorded.append([ops.convert_to_numpy(g) for g in gradients])
        params.append([ops.convert_to_numpy(v) for v in variables])

    JAX: return them from each step of jax.lax.scan, as here.

`identify` takes lists, or arrays that were stacked with
``jax.tree.map(lambda *xs: np.stack(xs), *params)``.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from rmsprop_jax import identify


def mystery():
    """An optimizer that the rest of this file does not know."""
    rate = optax.piecewise_constant_schedule(0.004, {25: 0.25})
    return optax.rmsprop(rate, 0.95, eps=3e-5, momentum=0.8, initial_scale=0.01)


def loss_of(params, images, labels):
    """The mean cross entropy in nats of a network of 64, 32 and 10 units."""
    hidden = jnp.tanh(images @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def recorded(steps):
    """The parameters before the first step and after each, and the gradients."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels)
    rng = np.random.default_rng(0)
    batches = rng.integers(0, len(labels), (steps, 32))
    start = {
        "w1": jnp.asarray(rng.normal(0, 1 / 8, (64, 32)), jnp.float32),
        "b1": jnp.zeros(32),
        "w2": jnp.asarray(rng.normal(0, 1 / 6, (32, 10)), jnp.float32),
        "b2": jnp.zeros(10),
    }
    tx = mystery()

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss_of)(params, images[batch], labels[batch])
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, gradients)

    _, (after, gradients) = jax.lax.scan(step, (start, tx.init(start)), batches)
    params = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, after)
    return params, gradients


def explained(tx, params, gradients):
    """The updates that an optimizer makes of recorded gradients."""

    def step(state, now):
        updates, state = tx.update(now[0], state, now[1])
        return state, updates

    before = jax.tree.map(lambda x: x[:-1], params)
    state = tx.init(jax.tree.map(lambda x: x[0], params))
    return jax.lax.scan(step, state, (gradients, before))[1]


def plot(explanation, params, gradients, path):
    """Draw observed against explained updates, and the learning rates."""
    figure = Figure(figsize=(6, 8))
    top, bottom = figure.subplots(2, 1)
    updates = explained(explanation.transformation(), params, gradients)
    observed = {name: np.diff(param, axis=0) for name, param in params.items()}
    top.plot(*(ravel_pytree(x)[0] for x in (updates, observed)), ".", markersize=3)
    top.set(xlabel="update that the rule makes", ylabel="update that was observed")
    top.set_title("The rule explains every update")
    rates = explanation.learning_rates
    bottom.step(range(len(rates)), rates, where="mid")
    bottom.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    bottom.set_title("The learning rates that were found")
    figure.savefig(path)


def main(argv=None):
    """Record, find, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", default="identify.png", help="the plot's file")
    args = parser.parse_args(argv)
    params, gradients = recorded(args.steps)
    match = identify(params, gradients)
    print(match)
    if match.explains:
        plot(match.best, params, gradients, args.out)
        print(f"The updates and the learning rates are drawn in {args.out}.")


if __name__ == "__main__":
    main()
