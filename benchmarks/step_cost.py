"""One training step of ours beside optax.rmsprop's: time, bytes and temporaries.

    pip install -e ".[examples]"
    python benchmarks/step_cost.py

On whatever device JAX finds. The two take turns, and each ratio is of the medians of
one run, as times alone jitter. Bytes and temporaries are what the compiler says, per
parameter and in words of four bytes, where it says anything.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax import rmsprop

DECAY = 0.1


def of_optax(**options):
    """What in optax is nearest to ours; the decay is a link in front, as it has it."""
    decay = options.pop("weight_decay", 0.0)
    tx = optax.rmsprop(0.01, decay=0.99, eps_in_sqrt=False, **options)
    return optax.chain(optax.add_decayed_weights(decay), tx) if decay else tx


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True},
    "centered, momentum": {"centered": True, "momentum": 0.9},
    "coupled decay": {"weight_decay": DECAY},
    "coupled decay, momentum": {"weight_decay": DECAY, "momentum": 0.9},
}


class Run:
    """A compiled training step with donated parameters and state, and its times."""

    def __init__(self, tx, size):
        """Compile for one leaf of `size` float32 parameters."""

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.carry = jnp.ones(size), tx.init(jnp.ones(size))
        self.gradients = jnp.ones(size)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.step = jitted.lower(*self.carry, self.gradients).compile()
        self.times = []

    def once(self):
        """One step; its time is kept."""
        start = time.perf_counter()
        self.carry = jax.block_until_ready(self.step(*self.carry, self.gradients))
        self.times.append(time.perf_counter() - start)

    def row(self):
        """Milliseconds, and words moved and held per parameter."""
        words = 4 * self.gradients.size
        moved = (self.step.cost_analysis() or {}).get("bytes accessed", float("nan"))
        memory = self.step.memory_analysis()
        held = memory.temp_size_in_bytes if memory else float("nan")
        milliseconds = 1e3 * statistics.median(self.times)
        return f"{milliseconds:9.2f} {moved / words:6.1f} {held / words:6.1f}"


def main(argv=None):
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1 << 23, help="parameters")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="small and short")
    args = parser.parse_args(argv)
    size, steps = (1 << 16, 5) if args.quick else (args.size, args.steps)

    print(f"{size:,} float32 parameters on {jax.devices()[0].device_kind}")
    print(
        f"{'':28}{'ms':>9} {'words':>6} {'held':>6}{'ms':>13} {'words':>6} {'held':>6}"
    )
    pairs = {
        f"{name}, beside optax": (rmsprop(0.01, **options), of_optax(**options))
        for name, options in OPTIONS.items()
    } | {
        f"bfloat16 beside float32{name}": (
            rmsprop(0.01, state_dtype="bfloat16", **options),
            rmsprop(0.01, **options),
        )
        for name, options in {"": {}, ", mom.": {"momentum": 0.9}}.items()
    }
    for name, transformations in pairs.items():
        runs = [Run(tx, size) for tx in transformations]
        for _ in range(steps):
            for run in runs:
                run.once()
        ratio = statistics.median(runs[0].times) / statistics.median(runs[1].times)
        print(f"{name:40}{runs[0].row()}    {runs[1].row()}   time × {ratio:.2f}")


if __name__ == "__main__":
    main()
