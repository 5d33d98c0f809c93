"""What a training step costs before it runs: tracing, lowering, compiling.

    python benchmarks/compiled.py                   for the CPU
    python benchmarks/compiled.py --platform tpu    for a TPU v5e, without one
    python benchmarks/compiled.py --platform h100   for an H100, without one

Many leaves of few shapes, momentum 0.9, one donated training step. It prints Markdown:
seconds, in brackets as a multiple of optax's in the same run (the least of several),
the kernels that the step has, and its temporaries. For the CPU also the time of an
update outside of jit.

The compilers of the other two run on any x86 machine:

    pip install -e ".[devices]"
"""

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import compilers
import jax
import jax.numpy as jnp
import optax

from rmsprop_jax import rmsprop

SHAPES = {10: 10, 100: 10, 1000: 20}  # of so many leaves
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


def main() -> None:
    """Prints the tables."""
    options = parse()
    name = DEVICES.get(options.platform)
    device = compilers.devices(name)[0] if name else jax.devices()[0]
    home = jax.sharding.SingleDeviceSharding(device)
    makers: dict[str, Callable[[], Any]] = {
        "optax": lambda: optax.rmsprop(0.01, 0.99, momentum=0.9, eps_in_sqrt=False)
    }
    for dtype in ("float32", "bfloat16"):
        makers[dtype] = lambda dtype=dtype: rmsprop(
            0.01, momentum=0.9, state_dtype=dtype
        )

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), tree
        )

    def measured(tx, params):
        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        trees = map(placed, (params, jax.eval_shape(tx.init, params), params))
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*trees)
        middle = time.perf_counter()
        program: Any = lowered.compile()
        end = time.perf_counter()
        entry = program.as_text().partition("\nENTRY")[2]
        kernels = len(re.findall(r" fusion\(", entry))
        held = program.memory_analysis().temp_size_in_bytes
        return middle - start, end - middle, kernels, held

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
    print("| leaves of shapes | state | traced, lowered | compiled | kernels | held |")
    print("| --- | --- | --- | --- | --- | --- |")
    for leaves in options.leaves:
        shapes = SHAPES.get(leaves, 10)
        params = {
            f"layer_{i}": jax.ShapeDtypeStruct((128, 64 * (i % shapes + 1)), "float32")
            for i in range(leaves)
        }
        size = sum(p.size for p in params.values())
        best: dict[str, Any] = {}
        for _ in range(options.repeat):
            for name, make in makers.items():
                new = measured(make(), params)
                old = best.get(name, new)
                best[name] = (min(new[0], old[0]), min(new[1], old[1]), *new[2:])
        for name, (lowering, compiling, kernels, held) in best.items():
            first, second, *_ = best["optax"]
            print(
                f"| {leaves} of {shapes} | {name} "
                f"| {lowering:.2f} s ({lowering / first:.1f}) "
                f"| {compiling:.2f} s ({compiling / second:.1f}) "
                f"| {kernels} | {held / size:.2f} bytes |"
            )
    if options.platform == "cpu":
        best = {}
        for _ in range(options.repeat):
            for name, make in makers.items():
                new = update_outside_of_jit(make())
                best[name] = min(new, best.get(name, new))
        print("\n| update of ten leaves outside of jit | |\n| --- | --- |")
        for name, seconds in best.items():
            part = seconds / best["optax"]
            print(f"| {name} | {1e3 * seconds:.2f} ms ({part:.2f}) |")


if __name__ == "__main__":
    main()
