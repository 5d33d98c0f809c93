"""Our trajectories on the problem of `recorded`, and how far they are from theirs.

Distances are relative to how far the parameters have moved.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recorded import problem
from recorded.frameworks import FRAMEWORKS
from support.steps import compile_quickly

from rmsprop_jax import dialects
from rmsprop_jax._optimizer.transform import (
    get_config,
    make_transformation_of_config,
)

RECORDED = Path(__file__).parents[1] / "recorded"
SCHEDULES = ("constant", "scheduled")
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}

# Of each configuration, by its name: [recorded steps, SIZE].
Trajectories = dict[str, np.ndarray]

# The optimizer for a schedule and its largest value.
Call = Callable[[Any, Any], optax.GradientTransformation]


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """jax as one has it who works in that dtype."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def theirs(path: Path, dtype: str) -> Trajectories:
    """What a framework did."""
    with np.load(path) as recording:
        return {
            key.removesuffix(f"/{dtype}"): recording[key]
            for key in recording.files
            if key.endswith(f"/{dtype}")
        }


def made_by(path: Path) -> dict[str, Any]:
    """What a recording was made by, and the arguments which that takes."""
    with np.load(path) as recording:
        return json.loads(recording["made_by"].item())


def call(framework: str, arguments: problem.Arguments) -> Call:
    """The call of our dialect with a framework's arguments."""
    dialect = functools.partial(
        getattr(dialects, FRAMEWORKS[framework].dialect), **arguments
    )
    if "corrected_weight_decay" in arguments:
        # There the largest rate is the one that the optimizer is made with.
        return lambda rate, peak: dialect(rate, max_lr=peak)
    return lambda rate, peak: dialect(rate)


def run(
    framework: str,
    dtype: str,
    calls: Mapping[str, Call],
    traced: Mapping[tuple[str, ...], tuple[Callable[..., Call], list[Any]]]
    | None = None,
    jit: Callable[..., Any] = jax.jit,
) -> Trajectories:
    """What ours do under both schedules, all compiled as one function.

    Args:
        framework: Whose problem it is.
        dtype: Of parameters and gradients.
        calls: One optimizer each, by name.
        traced: By several names, what makes the optimizer from numbers, and these
            numbers, one set for each name: one program does them all.
        jit: What compiles.
    """
    steps = problem.recorded_steps(framework)

    def leaves(numbers):
        return [
            jnp.asarray(leaf)
            for leaf in problem.leaves(framework, numbers.astype(dtype))
        ]

    def trajectory(call, rates, start, gradients, numbers=None):
        call = call if numbers is None else call(numbers)
        tx = call(lambda count: rates[count], jnp.max(rates))

        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (start, tx.init(start)), gradients)[1]

    def everything(rates, start, gradients):
        found: dict[Any, Any] = {
            name: jax.vmap(functools.partial(trajectory, call), (0, None, None))(
                rates, start, gradients
            )
            for name, call in calls.items()
        }
        for names, (call, numbers) in (traced or {}).items():
            one = functools.partial(trajectory, call)
            of_rates = jax.vmap(one, (0, None, None, None))
            every = jax.vmap(of_rates, (None, None, None, 0))
            many = every(rates, start, gradients, jnp.asarray(numbers, dtype))
            for i, name in enumerate(names):
                found[name] = jax.tree.map(lambda x, i=i: x[i], many)
        return found

    with precision(dtype):
        rates = np.stack([problem.rates(name, max(steps)) for name in SCHEDULES])
        params = jit(everything)(
            jnp.asarray(rates.astype(dtype)),
            leaves(problem.start()),
            leaves(problem.gradients(max(steps))),
        )
    kept = [t - 1 for t in steps]
    return {
        f"{name},{schedule}": problem.flat([np.asarray(leaf[i])[kept] for leaf in them])
        for name, them in params.items()
        for i, schedule in enumerate(SCHEDULES)
    }


def ours(framework: str, dtype: str) -> Trajectories:
    """What our dialect does in every configuration that the framework is run in."""

    def asked(name):
        return FRAMEWORKS[name].dialect, problem.configurations(name)

    # Two backends of one framework ask for the same.
    return _ours(next(n for n in FRAMEWORKS if asked(n) == asked(framework)), dtype)


# In float64, calls of torch that differ in these numbers alone are one program, in
# which the numbers are traced. (In float32 a traced α loses digits of 1 − α.) A quarter
# of the calls has one set of them as Python's numbers.
TRACED = ("alpha", "eps")


@functools.cache
def _ours(framework: str, dtype: str) -> Trajectories:
    arguments = {
        c.name.removesuffix(f",{c.schedule}"): c.arguments
        for c in problem.configurations(framework)
    }
    # In float64 the rule is compared, and not what the compiler makes of it.
    jit = compile_quickly if dtype == "float64" else jax.jit
    if framework != "torch" or dtype == "float32":
        calls = {name: call(framework, each) for name, each in arguments.items()}
        return run(framework, dtype, calls, jit=jit)
    groups: dict[str, dict[str, problem.Arguments]] = {}
    for name, each in arguments.items():
        rest = {key: value for key, value in each.items() if key not in TRACED}
        groups.setdefault(str(rest), {})[name] = each

    def call_with(rest: problem.Arguments) -> Callable[..., Call]:
        return lambda numbers: call(
            framework, rest | dict(zip(TRACED, numbers, strict=True))
        )

    calls: dict[str, Call] = {}
    traced: dict[tuple[str, ...], tuple[Callable[..., Call], list[Any]]] = {}
    for n, group in enumerate(groups.values()):
        (first, own), *_ = group.items()
        if n % 4 == 0:
            calls[first] = call(framework, own)
        names = tuple(name for name in group if name not in calls)
        traced[names] = call_with(own), [[group[k][x] for x in TRACED] for k in names]
    return run(framework, dtype, calls, traced, jit)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to how far the other has moved."""
    return float(np.abs(_difference(one, other)).max())


def rms_distance(ones: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The root mean square of the differences, relative as above."""
    each = [
        np.mean(np.square(_difference(one, other)))
        for one, other in zip(ones, others, strict=True)
    ]
    return float(np.sqrt(np.mean(each)))


def _difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one - other) / np.abs(other - problem.start()).max()


def is_centered(name: str) -> bool:
    return "centered=True" in name


def check_same_rule(framework: str, path: Path) -> None:
    """Asserts that ours is theirs, but for the last bits of float64."""
    them, us = theirs(path, "float64"), ours(framework, "float64")
    assert them.keys() == us.keys()
    far = {name: distance(us[name], them[name]) for name in them}
    worst = max(far, key=lambda name: far[name])
    assert far[worst] <= TOLERANCE["float64"], f"{worst}: {far[worst]:.1e}"


def check_same_numbers(framework: str, path: Path) -> None:
    """Asserts that ours are their float32 numbers; centered, that ours are as good.

    What E[g²] − m² costs them there, they are off by themselves: then ours has to be
    within the tolerance of their float64, and no farther than they are.
    """
    them, us = theirs(path, "float32"), ours(framework, "float32")
    exact = theirs(path, "float64")
    for name in them:
        goal = exact if is_centered(name) else them
        far = distance(us[name], goal[name])
        assert far <= TOLERANCE["float32"], f"{name}: {far:.1e}"
    centered = list(filter(is_centered, them))
    if centered:
        goal = [exact[name] for name in centered]
        far = rms_distance([us[name] for name in centered], goal)
        their_far = rms_distance([them[name] for name in centered], goal)
        # Where ν starts at 1, and they don't divide by little, nothing cancels.
        limit = 1.1 if framework == "stable_baselines3" else 0.5
        assert far <= limit * their_far, f"{far:.1e}, but theirs {their_far:.1e}"


def wrong_rules(framework: str, path: Path) -> dict[str, float]:
    """How far from theirs a rule is that differs from the dialect in one option.

    In float32, with a learning rate that changes.
    """
    arguments = _telling_arguments(framework)
    right = get_config(call(framework, arguments)(0.01, 0.01))
    flags = ["eps_in_sqrt"]
    flags += ["learning_rate_in_momentum"] * right.rule.has_momentum
    flags += ["decoupled_weight_decay"] * right.rule.has_weight_decay
    wrong = {"initial_scale": right._replace(initial_scale=1.0 - right.initial_scale)}
    for flag in flags:
        opposite = {flag: not getattr(right.rule, flag)}
        wrong[flag] = right._replace(rule=right.rule._replace(**opposite))

    def make_call(option: str) -> Call:
        def make(learning_rate: Any, _: Any) -> optax.GradientTransformation:
            numbers = wrong[option].hyperparams._replace(learning_rate=learning_rate)
            return make_transformation_of_config(
                wrong[option]._replace(hyperparams=numbers)
            )

        return make

    goal = theirs(path, "float32")[problem.Configuration(arguments, "scheduled").name]
    calls = {option: make_call(option) for option in wrong}
    runs = run(framework, "float32", calls, jit=compile_quickly)
    return {option: distance(runs[f"{option},scheduled"], goal) for option in wrong}


def _telling_arguments(framework: str) -> problem.Arguments:
    """A framework's call that is a plain rule with momentum and decay, if it can.

    And with a large ε: where the second moment begins at 1 a small one is not seen.
    """
    numbers = {"decay", "rho", "gamma", "alpha", "epsilon", "eps"}
    numbers |= {"momentum", "weight_decay"}
    plain = [
        c.arguments
        for c in problem.configurations(framework)
        if not any(value for word, value in c.arguments.items() if word not in numbers)
    ]

    def telling(arguments: problem.Arguments) -> tuple[int, float]:
        eps = arguments.get("eps", arguments.get("epsilon", 0.0))
        return sum(map(bool, arguments.values())), eps

    return max(plain, key=telling)


# Arguments of ours that theirs do not have; each docstring says why.
OURS_ALONE = {"max_lr", "jax_example_libraries.momentum"}


def check_same_arguments(framework: str, path: Path) -> None:
    """Asserts that ours takes arguments of theirs, by the same names and defaults."""
    dialect = FRAMEWORKS[framework].dialect
    them = dict(made_by(path)["parameters"])
    them.pop("params", None)
    us = {
        p.name: p
        for p in inspect.signature(getattr(dialects, dialect)).parameters.values()
        if not {p.name, f"{dialect}.{p.name}"} & OURS_ALONE
    }
    for name, p in us.items():
        assert name in them
        default = "required" if p.default is p.empty else p.default
        # A default of 0 would become a buffer under optax.inject_hyperparams.
        is_none = name in ("momentum", "weight_decay") and not them[name]
        assert default == (None if is_none else them[name])
    positional = [n for n, p in us.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(them)[: len(positional)]
