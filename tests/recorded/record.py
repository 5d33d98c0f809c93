"""Records what a framework's own RMSProp does to the problem's parameters.

    pip install <the framework>
    python tests/recorded/record.py keras_jax     # or several names; none for all

writes ``keras_jax.npz`` beside this file: for every configuration and dtype the
parameters after some of the steps, and which versions of what made them. Every
framework is run in a process of its own.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for whoever runs this as a script

from recorded import problem  # noqa: E402
from recorded.frameworks import FRAMEWORKS  # noqa: E402


def record(name: str, path: Path) -> None:
    """Runs the framework in this process and writes its trajectories."""
    framework = FRAMEWORKS[name]
    steps = problem.recorded_steps(name)
    trajectories = {}
    for dtype in ("float32", "float64"):
        start = problem.leaves(name, problem.start().astype(dtype))
        gradients = problem.leaves(name, problem.gradients(max(steps)).astype(dtype))
        for configuration in problem.configurations(name):
            rates = problem.rates(configuration.schedule, max(steps)).tolist()
            run = framework.run(configuration.arguments, rates, start, gradients)
            kept = []
            for t, params in enumerate(run, start=1):
                if t in steps:
                    kept.append(problem.flat([np.array(p) for p in params]))
            assert kept[0].dtype == dtype, f"{name} has no {dtype}"
            trajectories[f"{configuration.name}/{dtype}"] = np.stack(kept)
    made_by = {
        "parameters": _parameters(framework.make()),
        "packages": {p: metadata.version(p) for p in (*framework.packages, "numpy")},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    np.savez_compressed(path, made_by=json.dumps(made_by), **trajectories)


def _parameters(make: Any) -> list[tuple[str, Any]]:
    """The names of the arguments that it takes, and their defaults."""
    make = make.__init__ if inspect.isclass(make) else make
    return [
        (p.name, "required" if p.default is p.empty else p.default)
        for p in inspect.signature(make).parameters.values()
        if p.name != "self"
    ]


def record_apart(name: str, path: Path) -> None:
    """Runs `record` in a new process with the framework's environment."""
    run_apart(__file__, "--here", name, path)


def run_apart(script: str, *arguments: str | Path) -> None:
    """Runs a script for a framework, with its name and a path at the end."""
    *options, name, path = map(str, arguments)
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "GLOG_v": "0"}
    subprocess.run(
        [sys.executable, script, *options, "--out", path, name],
        env={**os.environ, **quiet, **FRAMEWORKS[name].environment},
        check=True,
        cwd=HERE,
    )


def main() -> None:
    """Records the frameworks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(FRAMEWORKS))
    parser.add_argument("--out", type=Path, help="where to write, if not beside this")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    recorded = [name for name, it in FRAMEWORKS.items() if it.recorded]
    for name in options.names or recorded:
        path = options.out or HERE / f"{name}.npz"
        (record if options.here else record_apart)(name, path)
        print(f"{name}: {path.name}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
