"""PyTorch's example of an optimizer in JAX: the loss before, after 1 and 100 updates.

    pip install -e ".[examples]"
    python examples/one_update.py

In PyTorch, the example is:

    model = nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = RMSprop(model.parameters(), lr=0.01, alpha=0.99, momentum=0.9)

    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()

From the same weights and data, the JAX code below reproduces PyTorch's losses.
"""

from typing import Any

import jax
import optax
from flax import linen as nn

from rmsprop_jax import rmsprop

model = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(1)])
optimizer = rmsprop(learning_rate=0.01, alpha=0.99, momentum=0.9)


def loss_of(params, inputs, targets):
    """The mean squared error of the model."""
    outputs: Any = model.apply(params, inputs)
    return optax.squared_error(outputs, targets).mean()


@jax.jit
def step(params, state, inputs, targets):
    """One update: the new parameters and state, and the loss before it."""
    loss, gradients = jax.value_and_grad(loss_of)(params, inputs, targets)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, inputs, targets, updates=100):
    """The losses before every update, and after the last."""
    state = optimizer.init(params)
    losses = []
    for _ in range(updates + 1):
        params, state, loss = step(params, state, inputs, targets)
        losses.append(float(loss))
    return losses


def main():
    """Train on two random rows and print."""
    for_inputs, for_targets, for_params = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(for_inputs, (2, 10))
    targets = jax.random.normal(for_targets, (2, 1))
    params = model.init(for_params, inputs)

    losses = train(params, inputs, targets)
    print(f"loss before the update   {losses[0]:.6f}")
    print(f"after one update         {losses[1]:.6f}")
    print(f"after a hundred          {losses[100]:.6f}")


if __name__ == "__main__":
    main()
