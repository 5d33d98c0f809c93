"""Measure on a GPU: correctness, times, kernels, memory and bits, in eight minutes.

    PYTHONPATH=. python benchmarks/on_gpu.py OUT
    PYTHONPATH=. python benchmarks/on_gpu.py OUT --rehearse    all of it, on a CPU
    PYTHONPATH=. python benchmarks/on_gpu.py --table docs/gpu.json

It needs jax with CUDA, optax and pytest, and a clone of the project; torch is included
if it is installed. The most important parts run first, each in its own process with a
time limit, which is a share of `--seconds`. Time that a part does not use is left to
the next ones. Each part writes its results into OUT/gpu.json immediately, so that a
kill loses nothing; what it printed is in OUT/<part>.txt.

- tests: those with the marker `numerics`.
- trajectories: 60 steps in float32, compared with torch's on the same device.
- steps: times of a step, as step_cost.py measures them. All contenders take turns, with
  one large array that is read and written in place. "of copying" is the rate at which a
  step moves bytes, as a share of the rate for that array.
- kernels: what a profile of some steps shows on the GPU, seconds to compile, memory.
- rounding: the bfloat16 state, compared with the CPU's and with a float32 state.

At the end it prints Markdown. If that goes into the documentation, so does gpu.json. It
exits with 1 if a part failed; running out of time is not a failure.
"""

import argparse
import collections
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs some too

import jax
import jax.numpy as jnp
import numpy as np
import optax
import step_cost

from rmsprop_jax import rmsprop

ROOT = Path(__file__).parents[1]
OWED = (
    "No GPU has run this yet, so these figures are missing. This command measures them "
    "in eight minutes:\n\n    PYTHONPATH=. python benchmarks/on_gpu.py OUT"
)
# In order of importance, with each one's share of the time; then for a rehearsal.
PARTS = {
    "tests": (4, 3),
    "trajectories": (1, 2),
    "steps": (7, 6),
    "kernels": (2, 3),
    "rounding": (1, 2),
}
RULES = ["momentum", "plain", "centered, momentum", "coupled decay"]
BY = [name for name in step_cost.BY if "bitsandbytes" not in name]
# Parameters, leaves and options. Those that take longest to compile come last.
CASES = [
    *((10**8, 1, rule) for rule in RULES),
    (10**7, 100, "momentum"),
    (10**6, 100, "momentum"),
    (10**6, 1, "momentum"),
    (10**8, 100, "momentum"),
    *((10**7, 100, rule) for rule in RULES[1:]),
    (10**7, 1000, "momentum"),
    (10**6, 1000, "momentum"),
]
REHEARSED = [(10**4, 10, "momentum"), *((10**4, 1, rule) for rule in RULES)]


def load(out: Path) -> dict[str, Any]:
    """Read gpu.json, or return an empty result."""
    path = out / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(out: Path, **found: Any) -> None:
    """Add to gpu.json; a kill leaves the old file or the new one."""
    new = out / "gpu.json.new"
    new.write_text(json.dumps(load(out) | found, indent=1) + "\n")
    new.replace(out / "gpu.json")


# The parts


def test_command(*, rehearse: bool) -> list[str]:
    """Return the command that runs the tests with the marker."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.numerics" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--color=no"]
    command += ["-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings="]
    command += ["-m", "numerics and not slow", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist"):
        workers = 2 if rehearse else min(8, os.cpu_count() or 1)
        command += ["-n", str(workers), "--dist", "worksteal"]
    return command + files


def read_outcomes(text: str) -> dict[str, Any]:
    """Count the outcomes in what pytest -v has printed, with xdist or without."""
    word = "(PASSED|FAILED|ERROR|SKIPPED)"
    outcomes = {}
    for line in text.splitlines():
        if match := re.match(rf"\[gw\d+\](?: \[ *\d+%\])? {word} (.+::.+?) *$", line):
            outcomes[match[2]] = match[1]
        elif match := re.match(rf"(\S+::.+?) {word}\b", line):
            outcomes[match[1]] = match[2]
        elif match := re.match(r"ERROR (\S+\.py)(?: |$)", line):  # not even imported
            outcomes[match[1]] = "ERROR"
    chosen = re.search(r"(?:\[|/ |collected )(\d+) (?:items\]|selected|items\n)", text)
    return {
        "chosen": int(chosen[1]) if chosen else len(outcomes),
        "passed": sum(outcome == "PASSED" for outcome in outcomes.values()),
        "skipped": sum(outcome == "SKIPPED" for outcome in outcomes.values()),
        "failed": [
            t for t, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")
        ],
    }


def measure_trajectories(out: Path, *, rehearse: bool) -> None:
    """Save how far float32 runs with a schedule are from torch's on the same device."""
    try:
        import torch
    except ImportError:
        save(out, trajectories={"error": "torch is not installed"})
        return
    steps, shape = 60, (129, 65)
    device = "cuda" if torch.cuda.is_available() and not rehearse else "cpu"
    rates = np.where(np.arange(steps) < steps // 2, 0.01, 0.002).astype("float32")
    found: dict[str, Any] = {"steps": steps, "torch on": device, "largest": {}}
    for rule in RULES:
        options = step_cost.OPTIONS[rule]
        rng = np.random.default_rng(0)
        start = rng.normal(size=shape).astype("float32")
        gradients = rng.normal(size=(steps, *shape)).astype("float32")
        tx = rmsprop(lambda count: jnp.asarray(rates)[count], **options)
        params = jnp.asarray(start)
        state, update = tx.init(params), jax.jit(tx.update)
        theirs = torch.nn.Parameter(torch.tensor(start, device=device))
        optimizer = torch.optim.RMSprop([theirs], **options)
        for gradient, rate in zip(gradients, rates, strict=True):
            updates, state = update(jnp.asarray(gradient), state, params)
            params = params + updates
            optimizer.param_groups[0]["lr"] = float(rate)
            theirs.grad = torch.tensor(gradient, device=device)
            optimizer.step()
        far = np.abs(np.asarray(params) - theirs.detach().cpu().numpy()).max()
        found["largest"][rule] = float(far / np.abs(params).max())
        save(out, trajectories=found)


def free_memory() -> None:
    """Free the memory of the last case."""
    jax.clear_caches()
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def measure_steps(out: Path, *, rehearse: bool) -> None:
    """Save the times of a step of every case."""
    copied, turns = (10**6, 3) if rehearse else (2 * 10**8, 9)
    cases: list[Any] = []
    planned = REHEARSED if rehearse else CASES
    for size, leaves, rule in planned:
        shapes = step_cost.shapes_of(size, leaves)
        runs = {"copy": step_cost.copying(copied)}
        by: dict[str, Any] = {}
        for name in BY:
            # torch.compile takes minutes for 1,000 leaves, and 20 s on a CPU.
            is_last = len(cases) + 1 == len(planned)
            if name == "torch.compile" and (leaves > 100 or (rehearse and not is_last)):
                continue
            try:
                runs[name] = step_cost.BY[name](shapes, **step_cost.OPTIONS[rule])
                runs[name].step()
                runs[name].wait()
            except Exception as error:  # the others continue in any case
                runs.pop(name, None)
                by[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        times = step_cost.times_of(runs, turns)
        speed = 8 * copied / statistics.median(times.pop("copy"))
        for name, took in times.items():
            middle = statistics.median(took)
            moved = 12 * sum(shapes) + 2 * runs[name].state
            by[name] = {
                "ms": [1e3 * x for x in (middle, min(took), max(took))],
                "of copying": moved / middle / speed,
            }
        case = {"parameters": size, "leaves": leaves, "options": rule}
        cases.append(case | {"copied bytes a second": speed, "by": by})
        save(out, steps=cases)
        runs.clear()
        free_memory()


def read_profile(
    folder: Path, *, on_gpu: bool
) -> tuple[collections.Counter[str], float]:
    """Return the kernels in a profile by name, and the seconds that they took.

    A CPU has no streams, so what is read there is only good for a rehearsal.
    """
    plane_name, line_name = ("/device:GPU", "Stream") if on_gpu else ("/host", "tf_XLA")
    kernels: collections.Counter[str] = collections.Counter()
    took = 0.0
    path = max(folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines if plane.name.startswith(plane_name) else ():
            for event in line.events if line.name.startswith(line_name) else ():
                if on_gpu or re.fullmatch(r"\w*fusion[\w.]*", event.name):
                    kernels[event.name] += 1
                    took += event.duration_ns / 1e9
    return kernels, took


def measure_kernels(out: Path, *, rehearse: bool) -> None:
    """Save the launches, the compile time and the memory of some steps."""
    steps, device = 10, jax.devices()[0]
    size = 10**4 if rehearse else 10**7
    found: list[Any] = []
    # The bfloat16 state first, because a device reports only its highest peak so far.
    by = ["rmsprop, bfloat16 state", "rmsprop", "optax"]
    for leaves in (1, 10 if rehearse else 100):
        for name in by:
            free_memory()
            shapes = step_cost.shapes_of(size, leaves)
            before = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
            run = step_cost.BY[name](shapes, momentum=0.9)
            run.step()
            run.wait()
            folder = out / f"profile_{leaves}_{name.replace(' ', '_')}"
            with jax.profiler.trace(str(folder)):
                for _ in range(steps):
                    run.step()
                run.wait()
            kernels, took = read_profile(folder, on_gpu=not rehearse)
            memory = run.program.memory_analysis()
            peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
            found.append(
                {
                    "parameters": size,
                    "leaves": leaves,
                    "options": "momentum",
                    "by": name,
                }
                | {"kernels a step": kernels.total() / steps}
                | {"kernels": dict(kernels.most_common(5))}
                | {"ms on the device": 1e3 * took / steps}
                | {"seconds to compile": run.compiling}
                | {"temporary bytes": memory.temp_size_in_bytes if memory else None}
                | {"peak bytes": peak if peak > before else None}
            )
            save(out, kernels=found)
            del run


def measure_rounding(out: Path, *, rehearse: bool) -> None:
    """Save the share of bits equal to the CPU's, and ν's mean relative to float32's."""
    steps, shape = 20, (256, 100) if rehearse else (1024, 1024)
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(steps, *shape)).astype("float32")

    def run(device, dtype):
        """The moments after the first step and after the last."""
        tx = rmsprop(momentum=0.9, state_dtype=dtype)
        params = jax.device_put(np.ones(shape, "float32"), device)
        state, update = jax.device_put(tx.init(params), device), jax.jit(tx.update)
        states = []
        for gradient in gradients:
            _, state = update(jax.device_put(gradient, device), state, params)
            states.append(state)
        return [
            np.asarray(x, "float64")
            for s in (states[0], states[-1])
            for x in (s.nu, s.mu)
        ]

    here = run(jax.devices()[0], "bfloat16")
    there = run(jax.devices("cpu")[0], "bfloat16")
    exact = run(jax.devices()[0], "float32")
    same = [float((a == b).mean()) for a, b in zip(here, there, strict=True)]
    save(
        out,
        rounding={
            "steps": steps,
            "elements": here[0].size,
            "same as CPU, one step": {"nu": same[0], "mu": same[1]},
            "same as CPU, all steps": {"nu": same[2], "mu": same[3]},
            "mean of nu ratio": float(here[2].mean() / exact[2].mean()),
        },
    )


MEASURES = {
    "trajectories": measure_trajectories,
    "steps": measure_steps,
    "kernels": measure_kernels,
    "rounding": measure_rounding,
}


# Running them


def run_part(
    out: Path, name: str, command: list[str], limit: float, env: Any = None
) -> None:
    """Run a part with a time limit in seconds, and save how it ended."""
    log, start, code = out / f"{name}.txt", time.monotonic(), None
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group with its child processes
        )
    try:
        while code is None and (left := start + limit - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(left, 3))
            if name == "tests":
                save(out, tests=read_outcomes(log.read_text(errors="replace")))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ended = {None: "out of time", 0: "done"}.get(code, "failed")
    told = log.read_text(errors="replace").strip().splitlines()
    parts = load(out).get("parts", {})
    parts[name] = {"ended": ended, "seconds": time.monotonic() - start}
    if ended == "failed":
        parts[name]["error"] = told[-1].strip(" =") if told else f"exit code {code}"
    save(out, parts=parts)
    print(f"{name}: {ended} after {time.monotonic() - start:.0f} s", flush=True)


def run_all(out: Path, seconds: float, *, rehearse: bool) -> dict[str, Any]:
    """Run every part, and return what was found."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # this ends a part too
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").unlink(missing_ok=True)
    save(out, rehearsal=rehearse)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu" if rehearse else "cuda,cpu",
        "PYTHONWARNINGS": "default",  # torch.compile warns
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    shares = {name: each[rehearse] for name, each in PARTS.items()}
    for name in PARTS:
        left = seconds - (time.monotonic() - start)
        limit = left * shares[name] / sum(shares.values())
        del shares[name]
        command = [sys.executable, str(Path(__file__).resolve()), str(out)]
        command += ["--part", name, *["--rehearse"] * rehearse]
        if name == "tests":
            command = test_command(rehearse=rehearse)
        run_part(out, name, command, limit, env)
    return load(out)


# The table


def format_megabytes(count: float | None) -> str:
    """Return bytes as megabytes, if they are known."""
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def format_case(case: dict[str, Any]) -> str:
    """Return the first cells of a row."""
    return f"| {case['options']} | {case['parameters']:,} | {case['leaves']:,} |"


def format_steps(cases: list[Any]) -> list[str]:
    """Return the table of times: median, spread and share of each contender."""
    lines = [
        "Milliseconds of a step (least to most), and the speed as a share of copying:",
        "",
        f"| options | parameters | leaves | {' | '.join(BY)} |",
        "| --- " * (3 + len(BY)) + "|",
    ]
    for case in cases:
        cells: list[str] = []
        for name in BY:
            one = case["by"].get(name, {})
            if "ms" in one:
                middle, least, most = one["ms"]
                cell = f"{middle:.3f} ({least:.3f}–{most:.3f}), {one['of copying']:.0%}"
            else:
                cell = one.get("error", "–").partition(":")[0]
            cells.append(f" {cell} |")
        lines.append(format_case(case) + "".join(cells))
    return lines


def format_kernels(rows: list[Any]) -> list[str]:
    """Return the table of kernels, compile times and memory."""
    lines = [
        "Kernels of a step in a profile, and what it holds:",
        "",
        "| options | parameters | leaves | by | kernels | they took | compiled in "
        "| temporaries | peak |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        lines.append(
            f"{format_case(row)} {row['by']} | {row['kernels a step']:g} "
            f"| {row['ms on the device']:.3f} ms | {row['seconds to compile']:.2f} s "
            f"| {format_megabytes(row['temporary bytes'])} "
            f"| {format_megabytes(row['peak bytes'])} |"
        )
    return lines


def format_table(result: dict[str, Any]) -> str:
    """Return the Markdown of the results, which mentions what is missing."""
    versions = [
        f"{name} {result[name]}" for name in ("jax", "optax", "torch") if name in result
    ]
    lines = [", ".join([result.get("device", "No device"), *versions]) + "."]
    if result.get("rehearsal"):
        lines[0] = f"A rehearsal on a CPU; these times mean nothing. {lines[0]}"
    for name, part in result.get("parts", {}).items():
        if part["ended"] != "done":
            why = f": {part['error']}" if "error" in part else ""
            lines += [
                "",
                f"{name}: {part['ended']} after {part['seconds']:.0f} s{why}.",
            ]
    if tests := result.get("tests"):
        lines += ["", f"Of {tests['chosen']:,} tests, {tests['passed']:,} passed"]
        lines[-1] += f", {len(tests['failed'])} failed, {tests['skipped']} skipped."
        lines += [f"\n- failed: `{name}`" for name in tests["failed"]]
    trajectories = result.get("trajectories", {})
    if "error" in trajectories:
        lines += ["", f"Not compared with torch: {trajectories['error']}."]
    elif trajectories:
        far = [f"{rule} {x:.1e}" for rule, x in trajectories["largest"].items()]
        lines += [
            "",
            f"After {trajectories['steps']} float32 steps the largest difference from "
            f"torch on {trajectories['torch on']}, relative to the largest parameter: "
            f"{'; '.join(far)}.",
        ]
    if steps := result.get("steps"):
        speed = statistics.median(case["copied bytes a second"] for case in steps)
        lines += [
            "",
            f"An array in place: {speed / 1e12:.3f} TB/s.",
            "",
            *format_steps(steps),
        ]
    if kernels := result.get("kernels"):
        lines += ["", *format_kernels(kernels)]
    if rounding := result.get("rounding"):
        first, last = (rounding[f"same as CPU, {x}"] for x in ("one step", "all steps"))
        lines += [
            "",
            f"bfloat16 state, {rounding['elements']:,} elements. The CPU's bits: ν "
            f"{first['nu']:.3%} and momentum {first['mu']:.3%} after one step, "
            f"{last['nu']:.3%} and {last['mu']:.3%} after {rounding['steps']}. "
            f"ν's mean then, over float32's: {rounding['mean of nu ratio']:.5f}.",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the parts, or one of them, or print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", help="a folder for what is found")
    parser.add_argument("--rehearse", action="store_true", help="small, on a CPU")
    parser.add_argument("--seconds", type=float, help="460; of a rehearsal, 110")
    parser.add_argument("--part", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print it, and end")
    args = parser.parse_args(argv)
    if args.table:
        print(format_table(json.loads(args.table.read_text())))
        return 0
    if not args.out:
        parser.error("OUT is missing: a folder for what is found")
    out = args.out.resolve()
    if args.part:
        versions = {"jax": jax.__version__, "optax": optax.__version__}
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions["torch"] = importlib.metadata.version("torch")
        save(out, device=jax.devices()[0].device_kind, **versions)
        MEASURES[args.part](out, rehearse=args.rehearse)
        return 0
    seconds = args.seconds or (110 if args.rehearse else 460)
    result = run_all(out, seconds, rehearse=args.rehearse)
    print(f"\n{format_table(result)}")
    return int(any(part["ended"] == "failed" for part in result["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
