"""Which rules `identify` tells apart: after 10, 30 and 100 steps, and at which noise.

    pip install -e ".[examples]"
    python benchmarks/identify.py

prints a table in Markdown. Each row is a rule that made a run. A cell says by how many
times more the next best rule leaves unexplained, where the right one comes first; or
which come with it, as the run does not tell them apart; or else what was found instead.
"float32" and "bfloat16" are the precisions of the parameters. Rates drop at a third of
the run.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from rmsprop_jax import dialects, identify

SIZE = 64
RULES = {
    "torch": {"alpha": 0.95, "eps": 1e-4},
    "torch, momentum": {"alpha": 0.95, "eps": 1e-4, "momentum": 0.9},
    "torch, centered": {"alpha": 0.95, "eps": 1e-4, "centered": True},
    "torch, decay": {"alpha": 0.95, "eps": 1e-4, "weight_decay": 0.01},
    "keras": {"rho": 0.95},
    "keras, momentum": {"rho": 0.95, "momentum": 0.9},
    "timm, momentum": {"momentum": 0.9, "eps": 1e-3},
    "stable_baselines3, momentum": {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3},
    "optax": {"decay": 0.95, "bias_correction": True},
}


def run(tx: Any, steps, dtype):
    """The parameters before the first step and after each, and the gradients."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.normal(-1, 0.7, SIZE)
    gradients = jnp.asarray(scale * (rng.normal(size=(steps, SIZE)) + 0.3), jnp.float32)
    start = jnp.asarray(rng.normal(0, 0.1, SIZE), dtype)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params: Any = optax.apply_updates(params, updates)
        return (params, state), params

    _, after = jax.lax.scan(step, (start, tx.init(start)), gradients)
    return jnp.concatenate([start[None], after]), gradients


def cell(name, steps, dtype):
    """What is found of a run."""
    dialect = name.split(",")[0]

    def rate(count):
        return jnp.where(count < steps // 3, 0.01, 0.003)

    tx = getattr(dialects, dialect)(rate, **RULES[name])
    best = identify(*run(tx, steps, dtype))[0]
    first, *others = best.readings
    if dialect not in best.dialects:
        return f"no: {first.name}"
    if others:
        return "or " + "; ".join(reading.name for reading in best.readings[1:])
    if best.next_best is None:
        return "first"
    return f"× {best.next_best.residual / best.residual:,.0f}"


def main(argv=None):
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one rule, 10 steps")
    args = parser.parse_args(argv)
    names = list(RULES)[:1] if args.quick else list(RULES)
    lengths = (10,) if args.quick else (10, 30, 100)
    dtypes = ("float32",) if args.quick else ("float32", "bfloat16")
    columns = [(steps, dtype) for steps in lengths for dtype in dtypes]
    heads = [f" {steps} steps, {dtype} |" for steps, dtype in columns]
    lines = ["| made by |" + "".join(heads), "|---" * (1 + len(columns)) + "|"]
    for name in tqdm(names, unit="rule"):
        cells = [cell(name, *column) for column in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
