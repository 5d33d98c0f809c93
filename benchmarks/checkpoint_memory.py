"""Measure the peak memory and the time of reading a checkpoint.

    pip install torch==2.13.0
    python benchmarks/checkpoint_memory.py 0.8 4        # sizes in GB

For each size, this makes a file with the shapes of a decoder in torch, and reads it in
new processes. Memory is how far the resident memory of the process rises above its
value before the call, including pages of files (nothing is mapped). The state that
``to_torch`` gets exists before. "elsewhere" is the peak without the result, as if the
result were in another device's memory. Time is compared with reading the bytes of the
file into memory. The file is in the system's cache. All figures are medians of
processes in turn, because how fast the system hands out memory varies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

MOMENTUM = 0.9
REPEATS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum, centered": {"momentum": MOMENTUM, "centered": True},
}
CALLS = (
    "bytes",
    "load_weights",
    "from_torch",
    "from_torch, transposed",
    "from_torch, 8 devices",
    "to_torch",
)


def make_file(path: Path, gigabytes: float, settings: dict[str, Any]) -> None:
    """Write the weights and the state of layers of 4 width² parameters each."""
    # Imported only here, because a measured process must not have torch in memory.
    try:
        torch = import_module("torch")
    except ImportError:
        raise SystemExit("This needs PyTorch: pip install torch") from None
    kinds = 2 + 2 * bool(settings)
    layers = 8
    width = int((gigabytes * 1e9 / (4 * kinds * layers * 4)) ** 0.5) // 64 * 64 or 64
    shapes = {f"layers.{i}.up.weight": (2 * width, width) for i in range(layers)}
    shapes |= {f"layers.{i}.down.weight": (width, 2 * width) for i in range(layers)}
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    parameters = {n: torch.nn.Parameter(w) for n, w in weights.items()}
    optimizer = torch.optim.RMSprop(parameters.items(), lr=0.01, **settings)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": weights, "optimizer": optimizer.state_dict()}, path)


def read_memory(field: str) -> int:
    """Return a number of bytes from the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def measure(call: str, path: Path) -> dict[str, float]:
    """Return the peak, the result's size and the time of a call, in this process."""
    import jax
    import numpy as np

    from rmsprop_jax import checkpoints

    functions: Any = checkpoints
    rows = jax.sharding.NamedSharding(
        jax.make_mesh((jax.device_count(),), ("devices",)),
        jax.sharding.PartitionSpec("devices"),
    )

    def transpose(weights: dict[str, Any]) -> dict[str, Any]:
        return {name: weight.T for name, weight in weights.items()}

    calls: dict[str, Callable[[], Any]] = {
        "bytes": path.read_bytes,
        "load_weights": lambda: functions.load_weights(path),
        "from_torch": lambda: functions.from_torch(path)[1],
        "from_torch, transposed": lambda: functions.from_torch(path, transpose)[1],
        "from_torch, 8 devices": lambda: functions.from_torch(path, shardings=rows)[1],
    }
    if call == "to_torch":
        like = functions.read(path)["optimizer"]
        _, state = functions.from_torch(like)
        calls[call] = lambda: functions.to_torch(state, like=like)
    jax.block_until_ready(jax.device_put(np.ones((8, 8)), rows))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = read_memory("VmHWM")
    start = time.perf_counter()
    result = calls[call]()
    jax.block_until_ready([x for x in jax.tree.leaves(result) if hasattr(x, "shape")])
    seconds = time.perf_counter() - start
    size = len(result) if call == "bytes" else 0
    size += sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(result))
    return {
        "peak": read_memory("VmHWM") - before,
        "result": size,
        "seconds": seconds,
    }


def measure_apart(call: str, path: Path) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--here", call, str(path)]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    quiet = {"JAX_PLATFORMS": "cpu", **(devices if "devices" in call else {})}
    done = subprocess.run(
        command, env={**os.environ, **quiet}, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table for each size, or with --here measure one call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=float, help="in GB")
    parser.add_argument("--quick", action="store_true", help="a file of 10 MB")
    parser.add_argument("--here", nargs=2, help="a call and a file")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure(given.here[0], Path(given.here[1]))))
        return
    for size in [0.01] if given.quick else given.sizes or [0.8]:
        for name, settings in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.pt"
                make_file(path, size, settings)
                print_table(path, name, 1 if given.quick else REPEATS)


def print_table(path: Path, name: str, repeats: int) -> None:
    """Print the memory and time of each call, relative to those of the file."""
    size = path.stat().st_size
    print(f"\n{size / 1e9:.2f} GB, {name}")
    print("| call | peak | elsewhere | time | compared with reading the bytes |")
    print("|---|---|---|---|---|")
    found: dict[str, list[dict[str, float]]] = {call: [] for call in CALLS}
    errors: dict[str, str] = {}
    for _ in range(repeats):
        for call in CALLS:
            try:
                found[call].append(measure_apart(call, path))
            except subprocess.CalledProcessError as error:
                errors[call] = error.stderr.splitlines()[-1]

    def find_median(call: str, quantity: str) -> float:
        return statistics.median(each[quantity] for each in found[call])

    for call in CALLS:
        if call in errors:
            print(f"| {call} | {errors[call]} |")
            continue
        peak, seconds = find_median(call, "peak"), find_median(call, "seconds")
        elsewhere = peak - find_median(call, "result")
        print(
            f"| {call} | {peak / size:.2f} × | {elsewhere / size:.2f} × | "
            f"{seconds:.2f} s | {seconds / find_median('bytes', 'seconds'):.2f} × |",
            flush=True,
        )


if __name__ == "__main__":
    main()
