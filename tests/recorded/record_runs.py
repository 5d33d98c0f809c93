"""Records files of torch, timm, Stable-Baselines3 and Paddle, and where they went on.

    pip install <the framework>
    python tests/recorded/record_runs.py torch     # or several names; none for all

writes to ``files/`` beside this file: for each run of `RUNS` the checkpoint after
BEFORE steps, as the framework writes it, and in an ``.npz`` of the same name the
weights AFTER steps later, with the versions that made them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for whoever runs this as a script

from recorded import runs  # noqa: E402

FILES = HERE / "files"


class Recorded(NamedTuple):
    """One of `RUNS`.

    Attributes:
        make: What makes it.
        file: The name of its checkpoint.
        packages: Those that make it.
        settings: What `make` gets.
    """

    make: Any
    file: str
    packages: tuple[str, ...]
    settings: dict[str, Any]


_ALL = {"momentum": 0.875, "centered": True, "weight_decay": 1 / 64}
_TORCH = {"alpha": 0.875, "eps": 1 / 1024, **_ALL}
PADDLE = {"rho": 0.875, "epsilon": 1 / 1024, **_ALL}
RUNS = {
    "torch": Recorded(runs.torch, "torch.pt", ("torch",), _TORCH),
    "torch_legacy": Recorded(runs.torch_groups, "torch_legacy.pt", ("torch",), {}),
    "timm": Recorded(runs.timm, "timm.pth.tar", ("timm", "torch"), _TORCH),
    "stable_baselines3": Recorded(
        runs.stable_baselines3,
        "stable_baselines3.zip",
        ("stable-baselines3", "torch"),
        _TORCH,
    ),
    "paddle": Recorded(runs.paddle, "paddle.pdopt", ("paddlepaddle",), PADDLE),
}


def record(name: str, folder: Path) -> None:
    """Writes the checkpoint, and the weights after it, in float64."""
    recorded = RUNS[name]
    run = recorded.make("float64", **recorded.settings)
    shapes = {weight: array.shape for weight, array in run.weights().items()}
    for t, gradients in enumerate(runs.gradients(shapes=shapes)):
        if t == runs.BEFORE:
            run.save(folder / recorded.file)
            if name == "stable_baselines3":
                _without(folder / recorded.file, "system_info.txt", "data")
        run.step(gradients, runs.rate(t, scheduled=True))
    made_by = {
        "packages": {p: metadata.version(p) for p in (*recorded.packages, "numpy")},
        "python": platform.python_version(),
    }
    np.savez_compressed(
        folder / f"{name}.npz", made_by=json.dumps(made_by), **run.weights()
    )


def _without(path: Path, *names: str) -> None:
    """Takes members out of a zip file that say what machine wrote it."""
    with zipfile.ZipFile(path) as file:
        kept = [(m, file.read(m)) for m in file.infolist() if m.filename not in names]
    with zipfile.ZipFile(path, "w") as file:
        for member, content in kept:
            file.writestr(member, content)


def main() -> None:
    """Records the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(RUNS))
    FILES.mkdir(exist_ok=True)
    for name in parser.parse_args().names or RUNS:
        record(name, FILES)
        print(name)


if __name__ == "__main__":
    main()
