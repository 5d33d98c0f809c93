"""A small network on scikit-learn's digits, in torch and in JAX, and the port."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHANNELS, HIDDEN = 2, 8
NAMES = [
    f"{layer}.{part}"
    for layer in ("conv", "fc1", "norm", "fc2")
    for part in ("weight", "bias")
]


@cache
def images():
    """64 images of 8×8 in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    return data[:64].reshape(-1, 8, 8) / 16, labels[:64]


def torch_network(torch, dtype):
    torch.manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, CHANNELS, 3, padding=1)
            self.fc1 = torch.nn.Linear(CHANNELS * 64, HIDDEN)
            self.norm = torch.nn.LayerNorm(HIDDEN)
            self.fc2 = torch.nn.Linear(HIDDEN, 10)

        def forward(self, x):
            x = torch.tanh(self.conv(x[:, None]))
            x = torch.tanh(self.norm(self.fc1(x.flatten(1))))
            return self.fc2(x)

    return Network().to(getattr(torch, dtype))


def torch_steps(torch, network, optimizer, steps, rate=None, first=0):
    """Full-batch steps; `rate` is a schedule of the number of the step."""
    x, labels = images()
    x = torch.tensor(x, dtype=next(network.parameters()).dtype)
    labels = torch.tensor(labels)
    for step in range(first, first + steps):
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()


def weights_of(network):
    return {name: w.detach().numpy().copy() for name, w in network.named_parameters()}


def to_params(weights):
    """Kernels are HWIO and (in, out), and images NHWC, which fc1 sees flattened."""
    fc1 = weights["fc1.weight"].reshape(-1, CHANNELS, 8, 8).transpose(2, 3, 1, 0)
    return {
        "conv": {
            "kernel": weights["conv.weight"].transpose(2, 3, 1, 0),
            "bias": weights["conv.bias"],
        },
        "fc1": {
            "kernel": fc1.reshape(-1, fc1.shape[-1]),
            "bias": weights["fc1.bias"],
        },
        "norm": {"scale": weights["norm.weight"], "bias": weights["norm.bias"]},
        "fc2": {"kernel": weights["fc2.weight"].T, "bias": weights["fc2.bias"]},
    }


def from_params(params):
    fc1 = params["fc1"]["kernel"].reshape(8, 8, CHANNELS, -1).transpose(3, 2, 0, 1)
    return {
        "conv.weight": params["conv"]["kernel"].transpose(3, 2, 0, 1),
        "conv.bias": params["conv"]["bias"],
        "fc1.weight": fc1.reshape(fc1.shape[0], -1),
        "fc1.bias": params["fc1"]["bias"],
        "norm.weight": params["norm"]["scale"],
        "norm.bias": params["norm"]["bias"],
        "fc2.weight": params["fc2"]["kernel"].T,
        "fc2.bias": params["fc2"]["bias"],
    }


def loss(params):
    x, labels = images()
    kernel = params["conv"]["kernel"]
    x = jnp.asarray(x, kernel.dtype)[..., None]
    conv = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(conv + params["conv"]["bias"][None, None, None])
    x = x.reshape(len(labels), -1) @ params["fc1"]["kernel"]
    x = x + params["fc1"]["bias"][None]
    x = x - x.mean(axis=1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(axis=1, keepdims=True) + 1e-5)
    x = jnp.tanh(x * params["norm"]["scale"][None] + params["norm"]["bias"][None])
    logits = x @ params["fc2"]["kernel"] + params["fc2"]["bias"][None]
    return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()


gradients = jax.jit(jax.grad(loss))


def jax_steps(txs, params, states, steps):
    """Of several runs by name, which are compiled into one program: that is quicker."""

    @jax.jit
    def update(all_gradients, states, params):
        moved, new_states = {}, {}
        for name, tx in txs.items():
            p, g = params[name], all_gradients[name]
            updates, new_states[name] = tx.update(g, states[name], p)
            moved[name] = jax.tree.map(jnp.add, p, updates)
        return moved, new_states

    for _ in range(steps):
        all_gradients = {name: gradients(p) for name, p in params.items()}
        params, states = update(all_gradients, states, params)
    return params, states
