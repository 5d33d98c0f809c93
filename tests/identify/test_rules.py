"""Which RMSProp made a run: of the frameworks, of random rules, and of what is none."""

import dataclasses
import functools
import json
from types import SimpleNamespace
from typing import Any

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from recorded import problem
from recorded.frameworks import FRAMEWORKS
from recorded.record_every_step import STEPS, configurations, record_apart
from support import trajectories
from support.twin import trajectory

from rmsprop_jax import dialects, identify
from rmsprop_jax._identify.causes import _fit_increasing, may_be_first_step
from rmsprop_jax._identify.learning_rates import compare_groups, list_pieces, split
from rmsprop_jax._identify.naming import shorten
from rmsprop_jax._identify.reading import Number, shorten_one_by_one
from rmsprop_jax._identify.recording import make_recording
from rmsprop_jax._identify.run import read_run
from rmsprop_jax._identify.thresholds import ELEMENTS
from rmsprop_jax._optimizer.transform import get_config

RATES = problem.rates("scheduled", 2 * STEPS)[:STEPS]
RUNS = [
    pytest.param(
        name,
        c,
        id=f"{name}/{c.name}",
        marks=pytest.mark.slow,
    )
    for name, framework in FRAMEWORKS.items()
    if framework.recorded
    for c in configurations(name)
]


@functools.cache
def recording():
    with np.load(trajectories.RECORDED / "every_step.npz") as recorded:
        assert json.loads(recorded["made_by"].item())["numpy"]
        return dict(recorded)


@pytest.mark.parametrize(("name", "c"), RUNS)
def test_finds_what_a_framework_did(name, c):
    check_framework(name, c, recording()[f"{name}/{c.name}"])


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_finds_what_an_installed_framework_does(name, tmp_path):
    record_apart(name, tmp_path / "live.npz")
    with np.load(tmp_path / "live.npz") as recorded:
        for c in configurations(name):
            check_framework(name, c, recorded[f"{name}/{c.name}"])


def check_framework(name, c, params):
    """Assert that the rule is found first, with its numbers, and by a margin."""
    match = identify(params, problem.gradients(STEPS))
    best = match.best
    print(match)
    dialect = FRAMEWORKS[name].dialect
    asked = get_config(trajectories.call(name, c.arguments)(0.01, 0.01))
    assert match.explains or c.arguments.get("centered")  # they cancel, in float32
    assert f"dialects.{dialect}" in best.calls
    arguments: Any = best.calls[f"dialects.{dialect}"]
    found = get_config(getattr(dialects, dialect)(0.01, **arguments))
    for number in ("alpha", "eps", "momentum", "weight_decay"):
        close(getattr(found.hyperparams, number), getattr(asked.hyperparams, number))
    close(found.initial_scale, asked.initial_scale)
    for flag in ("centered", "nesterov", "eps_in_sqrt", "bias_correction", "maximize"):
        assert getattr(found.rule, flag) == getattr(asked.rule, flag)
    np.testing.assert_allclose(best.learning_rates, RATES, rtol=0.01)
    # A small ε is hardly seen, nor where it stands; without momentum the learning
    # rates, which are free, do what a bias correction does.
    alike: Any = {"eps": 0.0, "eps_in_sqrt": False, "names": {}}
    # Neither is a start of the size of a small ε.
    alike |= {"initial_scale": 0.0} if asked.initial_scale == 0 else {}
    alike |= {} if asked.rule.has_momentum else {"bias_correction": False}
    others = [
        other
        for other in (*match.explanations[1:], *match.others)
        if not same_rule(other.recipe.options, best.recipe.options, alike)
    ]
    assert all(other.residual > 20 * best.residual for other in others)


def same_rule(one, other, but):
    """Whether two have the same equations but for some, and nearly equal numbers."""
    if one is None:
        return False
    one, other = (x._replace(**but)._asdict() for x in (one, other))
    return all(
        abs(one[name] - other[name]) <= 1e-3 * abs(other[name])
        if isinstance(one[name], float)
        else one[name] == other[name]
        for name in one
    )


def close(found, asked):
    """Within 1 %."""
    assert abs(found - asked) <= 0.01 * abs(asked), (found, asked)


def run(tx, gradients, start):
    """The parameters before the first step and after each."""

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    with jax.numpy_dtype_promotion("standard"):
        carry = jax.tree.map(jax.numpy.asarray, (start, tx.init(start)))
        after = jax.jit(lambda g: jax.lax.scan(step, carry, g)[1])(gradients)
    return jax.tree.map(
        lambda first, rest: np.concatenate([first[None], rest]), start, after
    )


def noise(steps=STEPS, size=problem.SIZE, seed=0):
    """Gradients over some orders of magnitude, and where a run starts."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.normal(-1.5, 0.7, size)
    gradients = scale * (rng.normal(size=(steps, size)) + 0.3)
    return gradients.astype("f"), rng.normal(0, 0.1, size).astype("f")


OTHERS = {
    "Adam": optax.adam(0.01),
    "Lion": optax.lion(0.001),
    "SGD": optax.sgd(0.01, momentum=0.9),
    "Adagrad": optax.adagrad(0.01, initial_accumulator_value=0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_an_rmsprop_is_not_called_one(name):
    gradients, start = noise()
    match = identify(run(OTHERS[name], gradients, start), gradients)
    print(match)
    assert match.is_explained
    assert not match.explains
    assert match.best.optimizer == name
    assert f"This is {name}, and not RMSProp." in str(match)
    assert not match.dialects
    # That is said only if nothing else fits.
    rivals = {
        "and not RMSProp": {"optimizer": "RMSProp"},
        f"This is {name}, and": {"optimizer": "another"},
    }
    for sentence, changes in rivals.items():
        rival = dataclasses.replace(match.best, **changes)
        both = dataclasses.replace(match, explanations=(match.best, rival))
        assert sentence not in str(both)
    changing = dataclasses.replace(
        match.best, calls=match.best.calls | {"optax.lamb": {}}, pieces=()
    )
    hidden = dataclasses.replace(match, explanations=(changing,))
    assert f"This is {name} or LAMB, and not RMSProp." in str(hidden)
    rate = 0.001 if name == "Lion" else 0.01
    np.testing.assert_allclose(match.best.learning_rates, rate, rtol=1e-3)
    with pytest.raises(ValueError, match="is not one of them"):
        match.best.transformation()


@pytest.mark.slow
def test_decay_of_some_leaves_and_a_clip():
    gradients, start = noise(size=40)
    gradients, start = (
        {"kernel": x[..., :30].reshape(*x.shape[:-1], 5, 6), "bias": x[..., 30:]}
        for x in (gradients, start)
    )
    norm = np.median([np.linalg.norm(gradients["kernel"][t]) for t in range(STEPS)])
    decays = {"kernel": True, "bias": False}
    for clip in (None, float(norm)):
        tx = dialects.torch(0.003, 0.9, 1e-3, momentum=0.5)
        tx = optax.chain(optax.masked(optax.add_decayed_weights(0.1), decays), tx)
        if clip:
            tx = optax.chain(optax.clip_by_global_norm(clip), tx)
        match = identify(run(tx, gradients, start), gradients)
        print(match)
        assert match.explains
        assert "torch" in match.dialects
        numbers = match.best.hyperparameters
        close(numbers["weight_decay"], 0.1)
        options = match.best.recipe.options
        assert options is not None
        assert options.weight_decay_mask == decays
        assert ("clip" in numbers) == bool(clip)
        if clip:
            close(numbers["clip"], clip)


@pytest.mark.slow
@pytest.mark.parametrize("skips", [True, False])
def test_steps_at_which_nothing_moves(skips):
    """They were skipped, or their rate was 0 and the state went on."""
    gradients, start = noise()
    rates = np.full(STEPS, 0.01)
    rates[[0, 7]] = 0
    kept = np.flatnonzero(rates) if skips else np.arange(STEPS)
    numbers: Any = {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}
    rate = rates[kept]
    after = trajectory(
        gradients[kept], start, learning_rate=rate.__getitem__, **numbers
    )
    params = np.stack([start] * (STEPS + 1))
    for t, (p, *_) in zip(kept, after, strict=True):
        params[t + 1 :] = p
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert match.arguments_for("torch") == numbers
    goal = np.where(rates, rates, np.nan) if skips else rates
    np.testing.assert_allclose(match.best.learning_rates, goal, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("torch", {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}),
        # Its buffer holds the rate, so that the first one can't be seen.
        ("keras", {"rho": 0.9, "epsilon": 1e-3, "momentum": 0.9}),
    ],
)
def test_a_run_from_the_middle(name, numbers: Any):
    gradients, start = noise()
    params = run(getattr(dialects, name)(0.01, **numbers), gradients, start)
    match = identify(params[30:], gradients[30:], count=30)
    print(match)
    assert match.explains
    for argument, number in match.arguments_for(name).items():
        close(number, numbers[argument])
    np.testing.assert_allclose(match.best.learning_rates, 0.01, rtol=0.01)


@pytest.mark.slow
def test_schedules_count_from_the_beginning_of_the_run():
    """Also if the recording begins later: the answer resumes the run."""
    schedule = optax.piecewise_constant_schedule(0.01, {40: 0.5})
    gradients, start = noise()
    params = run(dialects.torch(schedule, alpha=0.9, eps=1e-3), gradients, start)
    match = identify(params[30:], gradients[30:], count=30)
    assert "piecewise_constant_schedule(0.01, {40: 0.5})" in match.best.call
    for count in (0, 30, 39, 40, 60, 1000):
        expected = schedule(count)
        np.testing.assert_allclose(match.best.schedule(count), expected, rtol=1e-4)
    known = identify(params[30:], gradients[30:], count=30, learning_rate=schedule)
    assert known.explains
    assert known.best.call == match.best.call


def train(tx: Any, seed, steps=60):
    """The parameters and the gradients of a small network that an optimizer trains."""
    keys = jax.random.split(jax.random.key(seed), 6)
    x = jax.random.normal(keys[0], (256, 8))
    batches = jax.random.randint(keys[1], (steps, 32), 0, 256)
    shapes = {"kernel": (8, 16), "bias": (16,), "out": (16, 3), "out_bias": (3,)}
    params: Any = {
        name: 0.3 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys[2:], shapes.items(), strict=True)
    }

    def loss(p, batch):
        hidden = jax.numpy.tanh(x[batch] @ p["kernel"] + p["bias"][None])
        out = hidden @ p["out"] + p["out_bias"][None]
        return jax.numpy.mean((out - jax.numpy.sin(x[batch, :3])) ** 2)

    def step(carry, batch):
        p, state = carry
        g = jax.grad(loss)(p, batch)
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), (p, g)

    with jax.numpy_dtype_promotion("standard"):
        carry = params, tx.init(params)
        after, gradients = jax.jit(lambda b: jax.lax.scan(step, carry, b)[1])(batches)
    whole = {k: np.concatenate([params[k][None], after[k]]) for k in params}
    return whole, jax.tree.map(np.asarray, gradients)


def cut(tree, start):
    return {name: x[start:] for name, x in tree.items()}


COSINE = optax.cosine_decay_schedule(2e-3, 80)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "numbers"),
    [
        ("torch", 0, {"alpha": 0.95, "eps": 1e-6, "momentum": 0.9}),
        ("torch", 1, {"alpha": 0.95, "eps": 1e-6, "momentum": 0.9}),
        ("keras", 1, {"rho": 0.95, "momentum": 0.9}),
    ],
)
def test_the_middle_of_a_network_s_training(name, seed, numbers: Any):
    """The state from before is found, and not made up for by other numbers."""
    numbers = numbers | {"centered": True, "weight_decay": 0.01}
    tx = getattr(dialects, name)(COSINE, **numbers)
    params, gradients = (cut(x, 20) for x in train(tx, seed))
    match = identify(params, gradients, count=20)
    print(match)
    assert match.explains
    # In as many digits as the errors allow, these are the very numbers.
    assert match.arguments_for(name) == numbers
    best, expected = match.best, 1e-3 * (1 + np.cos(np.pi * np.arange(20, 60) / 80))
    seen = np.isfinite(best.learning_rates_stderr)
    assert list(np.flatnonzero(~seen)) == ([0] if name == "keras" else [])
    off = np.abs(best.learning_rates - expected)[seen]
    assert np.all(off <= 5 * best.learning_rates_stderr[seen] + 1e-9)
    np.testing.assert_allclose(best.learning_rates[seen], expected[seen], rtol=1e-4)
    assert "learning rates of the leaves" not in str(match)
    momentum = best.hyperparameters["momentum"]
    assert 0 < abs(momentum - 0.9) <= 5 * best.stderr["momentum"]


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_forgotten_count_is_a_cause(momentum):
    tx = dialects.torch(COSINE, 0.95, momentum=momentum)
    params, gradients = (cut(x, 20) for x in train(tx, 0))
    match = identify(params, gradients)
    print(match)
    assert not match.is_explained
    assert not match.dialects
    (cause,) = match.causes
    assert cause.startswith("The recording may not start at the beginning of the run")
    assert cause in " ".join(str(match).split())


@pytest.mark.slow
def test_a_wrong_learning_rate_is_a_cause_and_printed_as_given():
    tx = dialects.torch(2e-3, 0.95, 1e-6, centered=True, momentum=0.9)
    params, gradients = train(tx, 0)
    match = identify(params, gradients, learning_rate=[1e-3] * 60)
    print(match)
    assert not match.is_explained
    (cause,) = match.causes
    assert cause.startswith("The learning_rate given may not be the run's")
    assert "Noise of about" not in str(match)
    assert match.best.pieces == ((60, 1e-3),)
    assert "(0.001, " in match.best.brief_call


def test_a_first_step_is_told_from_a_later_one():
    """Its updates are an increasing function of the gradients, whatever the rule."""
    np.testing.assert_allclose(
        _fit_increasing(np.array([1.0, 3.0, 1.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])),
        [1.0, 1.5, 1.5, 4.0],
    )
    gradients, start = noise(steps=30)
    for tx in (
        dialects.torch(0.01, 0.9, momentum=0.9, weight_decay=0.1),
        dialects.keras(0.01, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(0.1), dialects.keras(0.01)),
        optax.adam(0.01),
    ):
        params = run(tx, gradients, start)
        for first in (0, 8):
            recording = make_recording(
                read_run(params[first:], gradients[first:]),
                gradient_norms=None,
                max_elements=ELEMENTS,
                skips=True,
            )
            found: Any = SimpleNamespace(recording=recording, group_of=np.zeros(1, int))
            assert may_be_first_step(found) == (first == 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_recordings_in_few_bits(dtype):
    """Of a run that was itself in these bits, and gradients that were."""
    gradients, start = noise()
    few = jax.numpy.dtype(dtype)
    gradients, start = gradients.astype(few), start.astype(few)
    numbers: Any = {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}
    match = identify(run(dialects.torch(0.1, **numbers), gradients, start), gradients)
    print(match)
    assert match.explains
    best = match.best
    for name, number in match.arguments_for("torch").items():
        assert abs(number - numbers[name]) < 0.2 * abs(numbers[name])
        error = best.stderr[name]
        assert abs(best.hyperparameters[name] - numbers[name]) < 5 * error


@pytest.mark.slow
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    alpha=st.sampled_from([0.8, 0.9, 0.95, 0.99]),
    eps=st.sampled_from([1e-8, 1e-3, 1e-2]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    flags=st.tuples(*[st.booleans()] * 5),
    begins=st.sampled_from([{}, {"initial_scale": 1.0}, {"bias_correction": True}]),
    drops=st.booleans(),
)
def test_finds_random_rules(alpha, eps, momentum, weight_decay, flags, begins, drops):
    names = ("centered", "nesterov", "eps_in_sqrt", "learning_rate_in_momentum")
    options = dict(zip((*names, "decoupled_weight_decay"), flags, strict=True)) | begins
    gradients, start = noise()
    gradients *= 30  # or else a second moment from 1 never moves
    rates = np.where((np.arange(STEPS) < 25) | (not drops), 0.01, 0.002)
    after = trajectory(
        gradients,
        start,
        learning_rate=lambda t: rates[t],
        alpha=alpha,
        eps=eps,
        momentum=momentum,
        weight_decay=weight_decay,
        **options,
    )
    params = np.stack([start, *(p for p, *_ in after)]).astype("f")
    match = identify(params, gradients)
    print(match)
    assert match.explains

    def same(explanation):
        found = explanation.recipe.options
        if found is None:
            return False
        flags = {"centered"} | ({"nesterov"} if momentum else set())
        return (
            abs(found.alpha - alpha) <= 0.01 * (1 - alpha)
            and abs(found.momentum - momentum) <= 0.01 * momentum
            and all(getattr(found, flag) == options[flag] for flag in flags)
        )

    assert any(map(same, match.explanations))


def test_learning_rates_in_pieces():
    """The best split into one piece, two, and so on, of noisy learning rates."""
    lengths, rates = [9, 14, 7], [0.01, 0.003, 0.0031]
    rng = np.random.default_rng(0)
    stderr = np.full(30, 1e-5)
    noisy = np.repeat(rates, lengths) + stderr * rng.normal(size=30)
    stderr[3], noisy[3] = np.inf, 1.0  # it can't be seen
    one, two, three, four = split(noisy, stderr)
    assert one == [30]
    assert two == [9, 21]
    assert three == lengths
    assert sum(four) == 30
    assert len(list(split(noisy[:2], stderr[:2]))) == 2
    assert not list(split(np.full(5, np.nan), np.ones(5)))


def test_known_learning_rates_in_pieces():
    assert list_pieces(np.array([0.3, 0.3, 0.1, 0.3])) == [(2, 0.3), (1, 0.1), (1, 0.3)]
    assert list_pieces(np.full(3, 0.1)) == [(3, 0.1)]
    assert not list_pieces(np.arange(9.0))


def test_learning_rates_of_leaves_with_constant_factors():
    rates = np.linspace(1, 2, 20)[:, None] * [1.0, 3.0]
    errors, seen = np.full((20, 2), 1e-6), np.zeros(2, bool)
    np.testing.assert_array_equal(compare_groups(rates, errors, seen), [1, 3])
    rates[:, 1] = 3.0
    assert compare_groups(rates, errors, seen) is None


def test_numbers_are_shortened_with_what_the_others_imply():
    """Each by itself would be 0.9 and 2; together they are 0.9 and 2.5."""
    errors = np.array([0.004, 0.2])
    covariance = np.outer(errors, errors) * np.array([[1, -0.9999], [-0.9999, 1]])
    reading: Any = SimpleNamespace(
        numbers={"momentum": Number(0.888, 0.004), "eps": Number(3.1, 0.2)},
        covariance=covariance,
        learning_rate_error=0.0,
    )
    assert shorten_one_by_one(reading, 1.0) == {"momentum": 0.9, "eps": 2.5}
    kept = shorten_one_by_one(reading, 0.0)
    assert kept["momentum"] == pytest.approx(0.888)


def test_numbers_in_few_digits():
    assert shorten(0.9699999, 1e-7) == 0.97
    assert shorten(0.9699999, 1e-9) == 0.9699999
    assert shorten(3.04e-5, 1e-6) == 3e-5
    assert shorten(0.0, 1.0) == 0.0
