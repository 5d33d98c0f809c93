"""Records a checkpoint of torch.optim.RMSprop, and where torch went on from it.

    pip install torch
    python tests/recorded/record_checkpoint.py

writes ``torch_checkpoint.npz`` beside this file: the small network of
``support/digits.py`` in float64, after STEPS steps and after as many more, and the
version of torch that made it. The kernels and the vectors are groups with different
settings.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import digits  # noqa: E402  (lies one folder up)

STEPS = 15


def main() -> None:
    """Trains, and writes both checkpoints flat."""
    network = digits.torch_network(torch, "float64")
    named = list(network.named_parameters())
    kernels = {"lr": 0.003, "momentum": 0.9, "centered": True, "weight_decay": 0.01}
    optimizer = torch.optim.RMSprop(
        [
            {"params": [(n, p) for n, p in named if p.ndim > 1], **kernels},
            {"params": [(n, p) for n, p in named if p.ndim == 1], "alpha": 0.9},
        ],
        lr=0.001,
    )
    recorded = {}
    for stage in ("before", "after"):
        digits.torch_steps(torch, network, optimizer, STEPS)
        for name, weight in digits.weights_of(network).items():
            recorded[f"{stage}/weights/{name}"] = weight
        state_dict = optimizer.state_dict()
        for i, state in state_dict["state"].items():
            for key, value in state.items():
                recorded[f"{stage}/state.{i}.{key}"] = value.numpy().copy()
        recorded[f"{stage}/param_groups"] = json.dumps(state_dict["param_groups"])
    made_by = {"torch": torch.__version__, "python": platform.python_version()}
    path = HERE / "torch_checkpoint.npz"
    np.savez_compressed(path, made_by=json.dumps(made_by), **recorded)


if __name__ == "__main__":
    main()
