"""Measure what a training step costs before it runs: tracing, lowering, compiling.

    python benchmarks/compiled.py                   for the CPU
    python benchmarks/compiled.py --platform tpu    for a TPU v5e, without one
    python benchmarks/compiled.py --platform h100   for an H100, without one

Many leaves of few shapes, momentum 0.9, one donated training step. It prints Markdown:
seconds (the least of several), their multiple of optax's in the same run, the kernels
of the step, and its temporaries. For the CPU, it also prints the time of an update
outside of jit. For the other two, it prints how long their compilers expect the kernels
to take (not measured, and without the launches), on a GPU the time of the arithmetic as
a share of that of the memory traffic, and on a TPU the bytes that cross its HBM.

The compilers of the other two run on any x86 machine:

    pip install -e ".[devices]"
"""

import argparse
import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import compilers
import jax
import jax.numpy as jnp
import optax
from step_cost import OPTIONS

from rmsprop_jax import rmsprop

RULES = {rule: x for rule, x in OPTIONS.items() if "weight_decay" not in x}
LARGE = (8192, 4096)
SHAPES = {10: 10, 100: 10, 1000: 20}  # how many shapes this many leaves have
DEVICES = {"tpu": "v5e:2x4", "h100": "h100:1x1x1"}


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--platform", choices=["cpu", "tpu", "h100"], default="cpu")
    parser.add_argument("--leaves", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeat", type=int, default=3, help="the least counts")
    parser.add_argument("--quick", action="store_true", help="ten leaves, once")
    options = parser.parse_args()
    if options.quick:
        options.leaves, options.repeat = [10], 1
    return options


def print_estimates_of_rules(makers, lowered):
    """Print how long the compiler expects one large leaf to take, by each rule."""
    params = {"kernel": jax.ShapeDtypeStruct(LARGE, "float32")}
    head: list[str] = []
    for rule, options in RULES.items():
        expected = {
            state: compilers.estimate(lowered(make(**options), params).compile())
            for state, make in makers.items()
        }
        optax_, ours, smaller = expected.values()
        on_gpu = not math.isnan(ours.memory)
        if not head:
            unit = "µs" if on_gpu else "cycles"
            head = ["rule", *(f"{name}, {unit}" for name in expected)]
            head += ["float32, × optax", "bfloat16, × optax"]
            head += [f"{x}: arithmetic / memory" for x in expected if on_gpu][1:]
            print(f"| {' | '.join(head)} |\n|---{'|--:' * (len(head) - 1)}|")
        cells = [f"{x.time:,.0f}" for x in expected.values()]
        cells += [f"{x.time / optax_.time:.2f}" for x in (ours, smaller)]
        if on_gpu:
            cells += [f"{x.arithmetic / x.memory:.2f}" for x in (ours, smaller)]
        print(f"| {rule} | {' | '.join(cells)} |")
    print()


def main() -> None:
    """Print the tables."""
    options = parse()
    name = DEVICES.get(options.platform)
    device = compilers.devices(name)[0] if name else jax.devices()[0]
    home = jax.sharding.SingleDeviceSharding(device)
    makers: dict[str, Callable[..., Any]] = {
        "optax": lambda **rule: optax.rmsprop(0.01, 0.99, eps_in_sqrt=False, **rule)
    }
    for dtype in ("float32", "bfloat16"):
        makers[dtype] = functools.partial(rmsprop, 0.01, state_dtype=dtype)

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), tree
        )

    def lowered(tx, params):
        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        trees = map(placed, (params, jax.eval_shape(tx.init, params), params))
        return jax.jit(step, donate_argnums=(0, 1)).lower(*trees)

    def measured(tx, params):
        jax.clear_caches()
        start = time.perf_counter()
        program = lowered(tx, params)
        middle = time.perf_counter()
        program: Any = program.compile()
        return middle - start, time.perf_counter() - middle, program

    def update_outside_of_jit(tx):
        params = {f"layer_{i}": jnp.ones((64, 64)) for i in range(10)}
        state = tx.init(params)
        updates, state = tx.update(params, state, params)
        start = time.perf_counter()
        for _ in range(50):
            updates, state = tx.update(params, state, params)
        jax.block_until_ready(updates)
        return (time.perf_counter() - start) / 50

    print(f"jax {jax.__version__}, optax {optax.__version__}, {device.device_kind}\n")
    if name:
        print_estimates_of_rules(makers, lowered)
    head = "leaves of shapes", "state", "tracing and lowering, s", "× optax"
    head += "compiling, s", "× optax", "kernels", "temporaries, bytes per parameter"
    print(f"| {' | '.join(head)} |\n|---|---{'|--:' * (len(head) - 2)}|")
    estimates: list[str] = []
    for leaves in options.leaves:
        shapes = SHAPES.get(leaves, 10)
        params = {
            f"layer_{i}": jax.ShapeDtypeStruct((128, 64 * (i % shapes + 1)), "float32")
            for i in range(leaves)
        }
        size = sum(p.size for p in params.values())
        best: dict[str, Any] = {}
        for _ in range(options.repeat):
            for state, make in makers.items():
                new = measured(make(momentum=0.9), params)
                old = best.get(state, new)
                best[state] = (min(new[0], old[0]), min(new[1], old[1]), new[2])
        for state, (lowering, compiling, program) in best.items():
            first, second, *_ = best["optax"]
            kernels = len(re.findall(r" fusion\(", compilers.entry_of(program)))
            held = program.memory_analysis().temp_size_in_bytes
            print(
                f"| {leaves} of {shapes} | {state} "
                f"| {lowering:.2f} | {lowering / first:.1f} "
                f"| {compiling:.2f} | {compiling / second:.1f} "
                f"| {kernels:,} | {held / size:.2f} |"
            )
            expected = compilers.estimate(program)
            moved = compilers.hbm_bytes(program) / size
            estimates.append(
                f"| {leaves} of {shapes} | {state} | {expected.time:,.1f} "
                f"| {kernels:,} |"
                if options.platform == "h100"
                else f"| {leaves} of {shapes} | {state} | {expected.time:,.0f} "
                f"| {moved:.2f} |"
            )
    if name:
        last = "time, cycles | bytes moved per parameter"
        last = "time, µs | launches" if options.platform == "h100" else last
        print(f"\n| leaves of shapes | state | {last} |")
        print("|---|---|--:|--:|", *estimates, sep="\n")
    if options.platform == "cpu":
        best = {}
        for _ in range(options.repeat):
            for name, make in makers.items():
                new = update_outside_of_jit(make(momentum=0.9))
                best[name] = min(new, best.get(name, new))
        print("\n| update of ten leaves outside of jit | |\n| --- | --- |")
        for name, seconds in best.items():
            part = seconds / best["optax"]
            print(f"| {name} | {1e3 * seconds:.2f} ms ({part:.2f}) |")


if __name__ == "__main__":
    main()
