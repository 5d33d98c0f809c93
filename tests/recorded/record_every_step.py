"""Records every step of some runs of each framework, in every_step.npz beside this.

    pip install <the frameworks>
    python tests/recorded/record_every_step.py

For `rmsprop_jax.identify`, which looks at single updates: float32 parameters, the
problem's gradients, rates that change.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for whoever runs this as a script

from recorded import problem  # noqa: E402
from recorded.frameworks import FRAMEWORKS  # noqa: E402
from recorded.record import run_apart  # noqa: E402

STEPS = 60


def configurations(framework: str) -> list[problem.Configuration]:
    """The one with the most arguments, and that of the centered ones."""

    def telling(c: problem.Configuration) -> int:
        return sum(map(bool, c.arguments.values()))

    found = []
    for centered in (False, True):
        some = [
            c
            for c in problem.configurations(framework)
            if c.schedule == "scheduled"
            and bool(c.arguments.get("centered")) == centered
            and not {"caution", "corrected_weight_decay"} & c.arguments.keys()
        ]
        found += [max(some, key=telling)] if some else []
    return found


def record(name: str, path: Path) -> None:
    """Runs the framework in this process and writes its trajectories, [61, SIZE]."""
    start = problem.leaves(name, problem.start())
    gradients = problem.leaves(name, problem.gradients(STEPS))
    rates = problem.rates("scheduled", 2 * STEPS)[:STEPS].tolist()
    runs = {}
    for c in configurations(name):
        run = FRAMEWORKS[name].run(c.arguments, rates, start, gradients)
        steps = [problem.flat([np.array(p) for p in params]) for params in run]
        runs[f"{name}/{c.name}"] = np.stack([problem.start(), *steps])
    packages = (*FRAMEWORKS[name].packages, "numpy")
    made_by = {p: metadata.version(p) for p in packages}
    np.savez_compressed(path, made_by=json.dumps(made_by), **runs)


def record_apart(name: str, path: Path) -> None:
    """Runs `record` in a new process with the framework's environment."""
    run_apart(__file__, name, path)


def main() -> None:
    """Records all frameworks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="one, in this process")
    parser.add_argument("--out", type=Path, default=HERE / "every_step.npz")
    options = parser.parse_args()
    if options.name:
        record(options.name, options.out)
        return
    runs = {}
    made_by = {"python": platform.python_version(), "machine": platform.machine()}
    for name in (name for name, it in FRAMEWORKS.items() if it.recorded):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.npz"
            record_apart(name, path)
            with np.load(path) as recording:
                runs |= {k: recording[k] for k in recording.files if k != "made_by"}
                made_by |= json.loads(recording["made_by"].item())
        print(name, flush=True)
    np.savez_compressed(options.out, made_by=json.dumps(made_by), **runs)


if __name__ == "__main__":
    main()
