"""Records torch's side of examples/one_update.py, in one_update.npz beside this file.

pip install torch && python tests/recorded/record_one_update.py
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn


def torch_losses(model, inputs, targets, updates=100):
    """The losses before every update and after the last."""
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=0.01, alpha=0.99, momentum=0.9
    )
    losses = []
    for _ in range(updates + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def torch_run(seed=0):
    """Weights, data, and the losses from them in float32 and in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 1))
    inputs, targets = torch.randn(2, 10), torch.randn(2, 1)
    start = {name: w.detach().clone() for name, w in model.state_dict().items()}
    run = {name: w.numpy() for name, w in start.items()}
    run |= {"inputs": inputs.numpy(), "targets": targets.numpy()}
    for dtype in (torch.float32, torch.float64):
        model.load_state_dict(start)
        losses = torch_losses(model.to(dtype), inputs.to(dtype), targets.to(dtype))
        run["losses/" + str(dtype).removeprefix("torch.")] = np.array(losses)
    return run


if __name__ == "__main__":
    path = Path(__file__).with_name("one_update.npz")
    run = torch_run()
    made_by = {
        "packages": {"torch": torch.__version__, "numpy": np.__version__},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    np.savez(path, made_by=np.array(json.dumps(made_by)), **run)
    print(made_by, run["losses/float32"][[0, 1, 100]])
