"""Measure a training step's time, compared with optax, torch and bitsandbytes.

    pip install -e ".[examples]"
    python benchmarks/step_cost.py

This runs on whatever device JAX finds. torch and bitsandbytes are included if they are
installed and see the same device. All take turns, so the ratio of two times in one run
says more than the times. A turn is as many steps as take about 50 ms, and one wait at
its end, as in a training loop.

The script prints Markdown. "of copying" compares a step with changing the signs of an
array in place, measured in the same turns: the smallest number of bytes that the step
must move (parameters, gradients and state read, parameters and state written) per
second, over that array's bytes per second. If everything fits into a cache, it can be
more than 1. Words moved and held are what XLA reports, per parameter, at four bytes
each.
"""

import argparse
import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs some too

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax import rmsprop

RATE = 0.01
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
    "coupled decay": {"weight_decay": 0.1},
    "coupled decay, momentum": {"weight_decay": 0.1, "momentum": 0.9},
}


class Run(NamedTuple):
    """A contender, which makes one step at a time."""

    step: Callable[[], object]  # starts a step, without waiting for its end
    wait: Callable[[], object]  # waits until all steps have ended
    state: int  # bytes of the state
    says: str = "| – | – |"  # words moved and held
    program: Any = None  # what XLA compiled
    compiling: float = math.nan  # seconds, including tracing and lowering


def shapes_of(size: int, leaves: int) -> list[int]:
    """Lengths of the leaves, at most 20 different ones, with about `size` elements.

    They are multiples of 128, like those of most weights. XLA on CPU does not vectorize
    a step with bfloat16 state over a single axis whose length is not divisible by the
    number of cores.
    """
    kinds = min(leaves, 20)
    unit = 2 * size / leaves / (kinds + 1)
    return [128 * math.ceil(unit * (i % kinds + 1) / 128) for i in range(leaves)]


def of_jax(tx: optax.GradientTransformation, shapes: list[int]) -> Run:
    """A compiled step with donated parameters and state."""

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    carry: Any = ({i: jnp.ones(n) for i, n in enumerate(shapes)},)
    carry += (tx.init(carry[0]),)
    gradients = jax.tree.map(jnp.ones_like, carry[0])
    jitted = jax.jit(step, donate_argnums=(0, 1))
    start = time.perf_counter()
    program: Any = jitted.lower(*carry, gradients).compile()
    compiling = time.perf_counter() - start

    def once():
        nonlocal carry
        carry = program(*carry, gradients)

    words = 4 * sum(shapes)
    moved = (program.cost_analysis() or {}).get("bytes accessed", math.nan) / words
    memory = program.memory_analysis()
    held = memory.temp_size_in_bytes / words if memory else math.nan
    state = sum(x.nbytes for x in jax.tree.leaves(carry[1]))
    wait = lambda: jax.block_until_ready(carry)  # noqa: E731
    return Run(once, wait, state, f"| {moved:.1f} | {held:.1f} |", program, compiling)


def ours(dtype: str, shapes: list[int], **options: Any) -> Run:
    """Make a step of rmsprop with a state of `dtype`."""
    return of_jax(rmsprop(RATE, state_dtype=dtype, **options), shapes)


def of_optax(shapes: list[int], weight_decay: float = 0.0, **options: Any) -> Run:
    """The nearest rule of optax, with its weight decay first in the chain."""
    tx = optax.rmsprop(RATE, decay=0.99, eps_in_sqrt=False, **options)
    if weight_decay:
        tx = optax.chain(optax.add_decayed_weights(weight_decay), tx)
    return of_jax(tx, shapes)


def of_torch(kind: str, shapes: list[int], **options: Any) -> Run:
    """torch.optim.RMSprop in one of its three ways, or bitsandbytes' in some bits.

    Raises:
        ImportError: If the package is not installed.
        TypeError: If it has no such option, or not for this device.
    """
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise TypeError("this torch has no CUDA")
    params = [torch.nn.Parameter(torch.ones(n, device=device)) for n in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    if kind in ("loop", "foreach", "compile"):
        torch.compiler.reset()  # otherwise it stops compiling after eight
        foreach = kind != "loop"
        tx: Any = torch.optim.RMSprop(params, RATE, foreach=foreach, **options)
        step = torch.compile(tx.step) if kind == "compile" else tx.step
    else:
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        if options:
            raise TypeError("it ignores or refuses these options")
        # 8 bits for small leaves too, because the speed is measured.
        tx = bitsandbytes.optim.RMSprop(
            params, RATE, optim_bits=int(kind), min_8bit_size=1
        )
        step = tx.step
    step()
    tensors = [x for state in tx.state.values() for x in state.values()]
    state = sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return Run(step, wait, state)


BY: dict[str, Callable[..., Run]] = {
    "rmsprop": functools.partial(ours, "float32"),
    "rmsprop, bfloat16 state": functools.partial(ours, "bfloat16"),
    "optax": of_optax,
    "torch for-loop": functools.partial(of_torch, "loop"),
    "torch foreach": functools.partial(of_torch, "foreach"),
    "torch.compile": functools.partial(of_torch, "compile"),
    "bitsandbytes": functools.partial(of_torch, "32"),
    "bitsandbytes, 8 bits": functools.partial(of_torch, "8"),
}


def copying(size: int) -> Run:
    """An array of `size` elements, read and written in place."""
    array = jnp.ones(size)
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def once():
        nonlocal array
        array = negate(array)

    return Run(once, lambda: jax.block_until_ready(array), 0)


def times_of(runs: dict[str, Run], turns: int) -> dict[str, list[float]]:
    """Measure the seconds per step of each contender in every turn."""
    steps: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2 + turns):
        for name, run in runs.items():
            count = steps.get(name, 1)
            start = time.perf_counter()
            for _ in range(count):
                run.step()
            run.wait()
            times[name].append((time.perf_counter() - start) / count)
            steps[name] = max(1, min(1000, round(0.05 / times[name][-1])))
    return {name: each[2:] for name, each in times.items()}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--leaves", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument(
        "--options", nargs="+", choices=OPTIONS, default=["plain", "momentum"]
    )
    parser.add_argument("--by", nargs="+", choices=BY, default=list(BY))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small and short")
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.leaves, args.turns, args.options = [1e4], [1, 10], 1, OPTIONS

    device = jax.devices()[0].device_kind
    print(f"float32 on {device}, jax {jax.__version__}, optax {optax.__version__}\n")
    head = "options", "parameters", "leaves", "by", "ms", "× optax", "of copying"
    print(f"| {' | '.join(head)} | words moved | held |\n{'| --- ' * 9}|")
    absent: dict[str, None] = {}
    for options in args.options:
        for size in map(int, args.sizes):
            for leaves in args.leaves:
                shapes = shapes_of(size, leaves)
                runs = {"copy": copying(size)}
                for by in args.by:
                    try:
                        runs[by] = BY[by](shapes, **OPTIONS[options])
                    except (ImportError, TypeError, RuntimeError) as error:
                        absent[f"{by}, {options}: {error}".partition("\n")[0]] = None
                times = {
                    by: statistics.median(each)
                    for by, each in times_of(runs, args.turns).items()
                }
                bandwidth = 8 * size / times.pop("copy")
                for by, took in times.items():
                    bytes_ = 12 * sum(shapes) + 2 * runs[by].state
                    print(
                        f"| {options} | {size:,} | {leaves:,} | {by} | {1e3 * took:.3f}"
                        f" | {took / times.get('optax', math.nan):.2f}"
                        f" | {bytes_ / took / bandwidth:.2f} {runs[by].says}",
                        flush=True,
                    )
    for what in absent:
        print(f"\nNot in the table: {what}")


if __name__ == "__main__":
    main()
