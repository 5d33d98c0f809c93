"""Measure how often `identify` is right, on known kinds of runs and on random ones.

    pip install -e ".[examples]"
    python benchmarks/identify.py
    python benchmarks/identify.py --random 200

The first prints a table in Markdown. Each row is a run: how it was made, what
`identify` answered, and whether that is right. The second makes random runs (rules,
hyperparameters, precisions, 10 to 100 steps, clips, noise, partial decay, and other
optimizers) and counts the answers of each verdict:

- right: the rule that made the run is among the explanations.
- unsure: nothing explains the run, and the text says so.
- wrong: `identify` explains the run by other rules only.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import itertools
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from rmsprop_jax import Explanation, Match, dialects, identify

VERDICTS = RIGHT, UNSURE, WRONG = "right", "unsure", "wrong"
SHAPES = {"bias": (8,), "kernel": (7, 8)}


class Case(NamedTuple):
    """How a run is made.

    Attributes:
        rule: A dialect, or the name that `identify` has for another optimizer.
        arguments: The dialect's arguments but the learning rate, or optax's function.
        learning_rate: The first one; it falls to a third after a third of the run.
        steps: How many.
        log_scale: The decimal logarithm of a typical gradient.
        dtype: The precision of the parameters and of the gradients.
        clip: What the gradients are clipped by, and the share of the steps clipped.
        noise: How far off the recorded gradients are, as a share of their size.
        is_partial: Whether weights decay in the kernel only.
        is_constant: Whether the learning rate stays the same.
    """

    rule: str
    arguments: dict[str, Any]
    learning_rate: float = 0.003
    steps: int = 40
    log_scale: float = -1.5
    dtype: str = "float32"
    clip: tuple[str, float] | None = None
    noise: float = 0.0
    is_partial: bool = False
    is_constant: bool = False

    def describe(self) -> str:
        """Return how the run is made, in a few words."""
        words = [f"{name}={value}" for name, value in self.arguments.items()]
        parts = [f"{self.rule}({', '.join(words)})", f"{self.steps} steps"]
        if self.dtype != "float32":
            parts.append(self.dtype)
        if self.clip:
            kind, share = self.clip
            parts.append(f"{kind} clipped in {100 * share:.0f} % of the steps")
        if self.noise:
            parts.append(f"{100 * self.noise:.0f} % noise in the gradients")
        if self.is_partial:
            parts.append("only the kernel decays")
        if self.is_constant:
            parts.append("constant learning rate")
        return ", ".join(parts)


OTHERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "Adam": optax.adam,
    "AdamW": optax.adamw,
    "LAMB": optax.lamb,
    "Lion": optax.lion,
    "Adafactor": optax.adafactor,
    "Adagrad": optax.adagrad,
    "SGD": optax.sgd,
}

_ALPHAS, _EPS = (0.9, 0.95, 0.99), (1e-8, 1e-4, 1e-2)
_MOMENTUMS, _DECAYS, _FLAGS = (0.5, 0.9), (0.01, 0.1), (False, True)
# The rules of random runs, with the arguments that they may have.
RULES: dict[str, dict[str, tuple[Any, ...]]] = {
    "torch": {
        "alpha": _ALPHAS,
        "eps": _EPS,
        "momentum": _MOMENTUMS,
        "centered": _FLAGS,
        "weight_decay": _DECAYS,
    },
    "keras": {
        "rho": _ALPHAS,
        "epsilon": _EPS,
        "momentum": _MOMENTUMS,
        "centered": _FLAGS,
        "weight_decay": _DECAYS,
    },
    "tensorflow": {
        "decay": _ALPHAS,
        "epsilon": _EPS,
        "momentum": _MOMENTUMS,
        "centered": _FLAGS,
    },
    "timm": {
        "alpha": _ALPHAS,
        "eps": _EPS,
        "momentum": _MOMENTUMS,
        "weight_decay": _DECAYS,
        "decoupled_decay": _FLAGS,
        "lr_in_momentum": _FLAGS,
        "caution": _FLAGS,
    },
    "stable_baselines3": {
        "alpha": _ALPHAS,
        "eps": _EPS,
        "momentum": _MOMENTUMS,
        "weight_decay": _DECAYS,
    },
    "optax": {
        "decay": _ALPHAS,
        "eps": _EPS,
        "eps_in_sqrt": _FLAGS,
        "momentum": _MOMENTUMS,
        "nesterov": _FLAGS,
        "bias_correction": _FLAGS,
    },
    "paddle": {"rho": _ALPHAS, "epsilon": _EPS, "momentum": _MOMENTUMS},
    "mlx": {"alpha": _ALPHAS, "eps": _EPS},
}
OTHER_ARGUMENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Adam": {"b1": (0.8, 0.95), "b2": (0.99, 0.9)},
    "AdamW": {"b1": (0.8, 0.95), "weight_decay": (0.1, 0.01)},
    "SGD": {"momentum": _MOMENTUMS, "nesterov": _FLAGS},
    "Lion": {"b1": (0.95,)},
}

KINDS = [
    Case("tensorflow", {"momentum": 0.9}, clip=("global norm", 1.0)),
    Case("torch", {"alpha": 0.9, "eps": 1e-3}, clip=("global norm", 0.5)),
    Case("tensorflow", {}, 0.03, log_scale=0.0, dtype="bfloat16"),
    Case("tensorflow", {"momentum": 0.9}, 0.01, 80, 0.0, dtype="bfloat16"),
    Case(
        "torch",
        {"alpha": 0.95, "centered": True, "weight_decay": 0.1},
        dtype="bfloat16",
        steps=80,
        is_partial=True,
    ),
    Case("keras", {"rho": 0.95, "momentum": 0.8}),
    Case("timm", {"momentum": 0.9, "caution": True, "eps": 1e-3}),
    Case("optax", {"decay": 0.95, "bias_correction": True}),
    Case("torch", {"momentum": 0.9, "weight_decay": 0.1}, is_partial=True),
    Case("torch", {"alpha": 0.95, "momentum": 0.9}, noise=0.05),
    Case("torch", {"alpha": 0.95}, noise=2.0),
    *(Case(name, {}) for name in OTHERS),
    Case("SGD", {"momentum": 0.9}),
]


def make_transformation(case: Case, clip_norm: float) -> Any:
    """Return the optimizer of a run."""

    def learning_rate(count):
        later = case.learning_rate * (1 if case.is_constant else 0.3)
        return jnp.where(count < case.steps // 3, case.learning_rate, later)

    arguments = dict(case.arguments)
    decays = {name: name == "kernel" for name in SHAPES}
    links = []
    if case.clip:
        kind, _ = case.clip
        clips = {"global norm": optax.clip_by_global_norm, "elements": optax.clip}
        links.append(clips[kind](clip_norm))
    if case.is_partial:
        decay = arguments.pop("weight_decay")
        links.append(optax.masked(optax.add_decayed_weights(decay), decays))
    maker = OTHERS.get(case.rule) or getattr(dialects, case.rule)
    return optax.chain(*links, maker(learning_rate, **arguments))


def make_run(case: Case, seed: int = 0) -> tuple[Any, Any]:
    """Return the parameters before the first step and after each, and the gradients."""
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(case.dtype)
    gradients: dict[str, Any] = {}
    start: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        scale = 10.0 ** rng.normal(case.log_scale, 0.7, shape)
        g = scale * (rng.normal(size=(case.steps, *shape)) + 0.3)
        gradients[name] = jnp.asarray(g, dtype)
        start[name] = jnp.asarray(rng.normal(0, 0.1, shape), dtype)
    tx = make_transformation(case, find_clip_norm(case, gradients))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    with jax.numpy_dtype_promotion("standard"):
        after: Any = jax.lax.scan(step, (start, tx.init(start)), gradients)[1]
    params = {
        name: np.concatenate([np.asarray(start[name])[None], np.asarray(p)])
        for name, p in after.items()
    }
    recorded = {}
    for name, g in gradients.items():
        exact = np.asarray(g, "f")
        noise = case.noise * rng.normal(size=g.shape) * np.abs(exact)
        recorded[name] = (exact + noise).astype(dtype)
    return params, recorded


def find_clip_norm(case: Case, gradients: dict[str, jax.Array]) -> float:
    """Return the norm that clips a share of the steps."""
    if case.clip is None:
        return np.inf
    kind, share = case.clip
    rows = np.concatenate(
        [np.asarray(g, "f").reshape(case.steps, -1) for g in gradients.values()], axis=1
    )
    sizes = np.abs(rows) if kind == "elements" else np.linalg.norm(rows, axis=1)
    return float(0.7 * np.min(sizes) if share == 1 else np.quantile(sizes, 1 - share))


def judge(case: Case, match: Match) -> str:
    """Return the verdict on an answer."""
    if not match.is_explained:
        # Noise can't be explained. The answer must say so, and nothing else.
        return RIGHT if case.noise else UNSURE
    if case.rule in OTHERS:
        names = [explanation.optimizer for explanation in match.explanations]
        # One leaf, or leaves with their own learning rates, may be LAMB's.
        names += ["LAMB" for x in match.explanations if "optax.lamb" in x.calls]
        # A weight decay that rounding hides is said to be hidden.
        decay = 5 * match.best.stderr.get("weight_decay", 0.0)
        if case.rule == "AdamW" and decay >= case.arguments.get("weight_decay", 1e-4):
            names += ["AdamW"] * names.count("Adam")
        return RIGHT if case.rule in names else WRONG
    name = f"dialects.{case.rule}"
    is_right = any(
        has_numbers(case, explanation, explanation.calls[name])
        for explanation in match.explanations
        if name in explanation.calls
    )
    return RIGHT if is_right else WRONG


MOMENTUM_FLAGS = ("nesterov", "lr_in_momentum")
OURS = {"decay": "alpha", "rho": "alpha", "epsilon": "eps"}


def has_numbers(case: Case, explanation: Explanation, found: dict[str, Any]) -> bool:
    """Whether a call has the arguments of the run, within its errors."""
    parameters = inspect.signature(getattr(dialects, case.rule)).parameters
    is_clipped = case.clip is not None and case.clip[1] == 1
    for name in case.arguments.keys() | found.keys():
        default = parameters[name].default
        asked = case.arguments.get(name, default)
        answered = found.get(name, default)
        if name in MOMENTUM_FLAGS and not case.arguments.get("momentum"):
            continue
        if name == "decoupled_decay" and not found.get("weight_decay"):
            continue
        if name == "eps_in_sqrt" and np.isinf(explanation.stderr.get("eps", 0.0)):
            continue  # the place of an undetermined ε is undetermined too
        if isinstance(asked, bool):
            if asked != answered:
                return False
            continue
        ours = OURS.get(name, name)
        if is_clipped and ours in ("eps", "weight_decay", "initial_scale"):
            continue  # known only relative to the clip
        asked, answered = float(asked or 0), float(answered or 0)
        size = 1 - asked if ours == "alpha" else abs(asked)
        error = 5 * explanation.stderr.get(ours, 0.0)
        if not abs(asked - answered) <= max(error, 0.05 * size):
            return False
    return True


def draw_case(seed: int) -> Case:
    """Return a random way to make a run."""
    rng = np.random.default_rng([seed, 27])

    def choose(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    def happens(share: float) -> bool:
        return rng.random() < share

    is_other = happens(0.2)
    rule = choose(*(OTHERS if is_other else RULES))
    arguments = {
        name: choose(*options)
        for name, options in (OTHER_ARGUMENTS if is_other else RULES)
        .get(rule, {})
        .items()
        if happens(0.6)
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for flag in ("nesterov", "caution"):
        if arguments.get(flag) and not arguments.get("momentum"):
            del arguments[flag]
    is_bfloat16 = happens(0.3)
    log_scale = choose(-1.5, 0.0)
    clip = None
    if not is_other and happens(0.25):
        clip = choose(("global norm", 0.5), ("global norm", 1.0), ("elements", 0.1))
    is_coupled = rule in ("torch", "stable_baselines3")
    return Case(
        rule,
        arguments,
        learning_rate=choose(0.001, 0.003, 0.01) * (3 if is_bfloat16 else 1),
        steps=int(rng.integers(10, 101)),
        dtype="bfloat16" if is_bfloat16 else "float32",
        log_scale=log_scale,
        clip=clip,
        noise=0.05 if happens(0.1) else 0.0,
        is_partial="weight_decay" in arguments and is_coupled and happens(0.5),
        is_constant=happens(0.5),
    )


def print_table(cases: list[Case]) -> None:
    """Print a table of cases, in Markdown."""
    print("| run | answer | also possible | verdict |\n|---|---|---|---|")
    for case in tqdm(cases, unit="run"):
        match = identify(*make_run(case))
        answer = f"`{match.best.brief_call}`"
        if not match.is_explained:
            share = 100 * match.best.residual
            answer = f"nothing; the nearest, {answer}, leaves {share:.2g} %"
        others = [x.brief_call for x in match.explanations[1:]]
        # A call with the answer's name is the same optimizer with other arguments.
        names = dict.fromkeys(re.sub(r"\(.*", "", call) for call in others)
        run = re.sub(r"^.*?\)", r"`\g<0>`", case.describe())
        print(
            f"| {run} | {answer} "
            f"| {', '.join(names) if match.is_explained else ''} "
            f"| {judge(case, match)} |"
        )


def run_random(seeds: range) -> None:
    """Print the verdicts on random runs, and each answer that is not right."""
    verdicts: collections.Counter[tuple[str, str]] = collections.Counter()
    for seed in seeds:
        case = draw_case(seed)
        start = time.process_time()
        match = identify(*make_run(case, seed))
        verdict = judge(case, match)
        verdicts[case.dtype, verdict] += 1
        print(f"{seed}: {verdict}, {time.process_time() - start:.1f} s", flush=True)
        if verdict != RIGHT:
            print(f"{case.describe()}\n{match}", flush=True)
    for dtype, verdict in itertools.product(("float32", "bfloat16"), VERDICTS):
        print(f"{dtype}, {verdict}: {verdicts[dtype, verdict]}")


def main(argv=None):
    """Print the table, or the verdicts on random runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument(
        "--random", type=int, default=0, help="the number of random runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first run's seed")
    args = parser.parse_args(argv)
    if args.random:
        run_random(range(args.seed, args.seed + args.random))
    else:
        print_table(KINDS[:1] if args.quick else KINDS)


if __name__ == "__main__":
    main()
