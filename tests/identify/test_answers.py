"""Answers of `identify` to runs on which it was once wrong, or hard to read."""

import dataclasses
import functools
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmsprop_jax import dialects, identify

ROOT = Path(__file__).parents[2]
BENCHMARK: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "identify.py"))
Case, KINDS = BENCHMARK["Case"], BENCHMARK["KINDS"]
SHAPES = BENCHMARK["SHAPES"]
STEPS = 40


@functools.cache
def answer(index):
    """The answer to a run of the benchmark's table."""
    match = identify(*BENCHMARK["make_run"](KINDS[index]))
    print(match)
    return match


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(KINDS)), ids=lambda i: KINDS[i].describe())
def test_the_table_of_the_documentation_is_right(index):
    case, match = KINDS[index], answer(index)
    assert BENCHMARK["judge"](case, match) == "right"
    check_text(match)


def check_text(match):
    """Assert what every answer's text must be."""
    lines = str(match).splitlines()
    assert all(len(line) <= 88 for line in lines)
    assert "1 steps" not in str(match)
    assert "nan" not in str(match)
    if match.is_explained:
        first = str(match).split("\n  ")[0]
        assert " ".join(first.split()).startswith(match.best.call[:40])
        assert ("  Learning rate: " in str(match)) == match.is_explained
    else:
        assert "Learning rate" not in str(match)
        assert lines[0] == "Nothing explains this run up to rounding."


def index_of(rule, **fields):
    """The index of the first run of a rule in the table."""
    return next(
        i
        for i, case in enumerate(KINDS)
        if case.rule == rule and all(getattr(case, k) == v for k, v in fields.items())
    )


@pytest.mark.slow
def test_if_every_step_is_clipped_the_scale_is_fixed():
    match = answer(index_of("tensorflow", clip=("global norm", 1.0)))
    assert match.dialects[0] == "tensorflow"
    assert match.best.hyperparameters["initial_scale"] == 1
    case = KINDS[index_of("tensorflow", clip=("global norm", 1.0))]
    _, gradients = BENCHMARK["make_run"](case)
    norm = BENCHMARK["find_clip_norm"](case, gradients)
    assert abs(match.best.hyperparameters["clip"] - norm) < 0.01 * norm
    # Nothing fixes the scale of torch's rule, so that its clip is a power of ten.
    case = Case("torch", {"momentum": 0.9}, clip=("global norm", 1.0))
    match = identify(*BENCHMARK["make_run"](case))
    print(match)
    assert match.dialects[0] == "torch"
    numbers = match.best.hyperparameters
    assert numbers["clip"] == pytest.approx(0.1)
    assert numbers["eps"] / numbers["clip"] == pytest.approx(1e-8 / norm, rel=0.05)
    assert match.arguments_for("torch").keys() == {"eps", "momentum"}
    assert match.arguments_for("torch")["momentum"] == 0.9
    assert "Every step was clipped" in str(match)


@pytest.mark.slow
def test_what_fits_within_bfloat16_is_listed_and_defaults_come_first():
    match = answer(index_of("tensorflow", dtype="bfloat16", steps=40))
    assert match.explains
    assert match.best.brief_call == "dialects.tensorflow(…)"
    assert "This is SGD" not in str(match)
    match = answer(index_of("torch", dtype="bfloat16"))
    options = match.best.recipe.options
    assert options is not None
    assert options.weight_decay_mask == {
        "bias": False,
        "kernel": True,
    }
    assert "Weight decay on some leaves only: ['kernel']." in str(match)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "not_first"),
    [
        ("tensorflow", {"momentum": 0.9, "epsilon": 1e-3}, "efficientnet"),
        ("torch", {"alpha": 0.99, "eps": 0.01}, "torchbeast"),
    ],
)
def test_a_frameworks_call_comes_before_a_papers(name, arguments, not_first):
    match = identify(*BENCHMARK["make_run"](Case(name, arguments, log_scale=0.0)))
    print(match)
    assert not_first in match.dialects
    assert match.dialects[0] == name


@pytest.mark.slow
def test_leaves_are_tried_by_themselves_if_nothing_explains_all():
    tx = optax.multi_transform(
        {"torch": dialects.torch(0.003, 0.9), "adam": optax.adam(0.003)},
        {"kernel": "torch", "bias": "adam"},
    )
    match = identify(*run(tx))
    print(match)
    assert not match.is_explained
    assert match.by_leaf["['kernel']"].dialects[0] == "torch"
    assert match.by_leaf["['bias']"].best.optimizer == "Adam"
    assert "By itself, ['bias']: optax.adam(0.003)." in str(match)
    assert "Leaves by themselves had a quick search only" in str(match)


@pytest.mark.slow
def test_noise_and_gradients_of_another_run_are_said_to_be_that():
    noisy = answer(index_of("torch", noise=0.05))
    assert noisy.best.call.startswith("dialects.torch(")
    assert "Noise of about" in str(noisy)
    assert not noisy.causes
    assert 0.01 < noisy.best.residual < 0.1
    params, _ = BENCHMARK["make_run"](Case("torch", {}))
    _, others = BENCHMARK["make_run"](Case("torch", {}), 1)
    match = identify(params, others)
    print(match)
    assert not match.is_explained
    assert "These gradients may not belong to this run" in str(match)
    check_text(match)


@pytest.mark.slow
def test_nothing_is_said_if_rounding_hides_the_rule():
    seed = 433  # small updates in bfloat16
    case = BENCHMARK["draw_case"](seed)
    match = identify(*BENCHMARK["make_run"](case, seed))
    print(match)
    assert not match.is_explained
    assert str(match).startswith("This recording can't tell what made the run.")
    assert "it hides the rule" in str(match)


def test_the_first_line_is_the_call_to_paste():
    case = Case("keras", {"momentum": 0.5}, steps=16, is_constant=True)
    params, gradients = BENCHMARK["make_run"](case)
    match = identify(params, gradients)
    print(match)
    check_text(match)
    first, *_ = str(match).splitlines()
    assert first == match.best.call == "dialects.keras(0.003, momentum=0.5)"
    check_updates(eval(first, {"dialects": dialects}), params, gradients)
    check_updates(match.best.transformation(), params, gradients)
    # If nothing explains a run, no dialect does.
    nothing = dataclasses.replace(match, is_explained=False)
    assert "keras" in match.dialects
    assert nothing.dialects == ()
    with pytest.raises(ValueError, match="No RMSProp explains this run"):
        nothing.arguments_for("keras")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["steps", "cosine"])
def test_a_call_with_a_schedule_runs_as_it_is(kind):
    """Learning rates that fall in steps, behind a clip, and at every step."""
    case = Case("keras", {"momentum": 0.9}, clip=("global norm", 0.5))
    params, gradients = BENCHMARK["make_run"](case)
    norm = BENCHMARK["find_clip_norm"](case, gradients)
    schedules = {
        "steps": optax.piecewise_constant_schedule(0.01, {10: 0.1, 25: 0.5}),
        "cosine": optax.cosine_decay_schedule(0.01, STEPS),
    }
    tx = dialects.keras(schedules[kind], momentum=0.9)
    params, gradients = run(optax.chain(optax.clip_by_global_norm(norm), tx))
    match = identify(params, gradients)
    print(match)
    check_text(match)
    call = str(match).split("\n  Learning rate: ")[0]
    names = {"dialects": dialects, "optax": optax, "match": match}
    check_updates(eval(call, names), params, gradients)
    if kind == "steps":
        assert [steps for steps, _ in match.best.pieces] == [10, 15, STEPS - 25]
        rates = [rate for _, rate in match.best.pieces]
        assert rates == [0.01, 0.001, 0.0005]
        assert "0.01 for 10 steps, then 0.001 for 15 steps, then 0.0005." in str(match)
    else:
        assert "match.best.schedule is the learning rate" in str(match)


@pytest.mark.slow
def test_groups_of_parameters_under_one_cycle():
    """As PyTorch's OneCycleLR does it, with a learning rate of each group."""
    rate = optax.cosine_onecycle_schedule(STEPS, 0.01)

    def fast(count):
        return 3 * rate(count)

    tx = optax.multi_transform(
        {
            "slow": dialects.torch(rate, 0.9, momentum=cycle, weight_decay=0.1),
            "fast": dialects.torch(fast, 0.9, momentum=cycle),
        },
        {"kernel": "slow", "bias": "fast"},
    )
    params, gradients = run(tx)
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert match.arguments_for("torch")["alpha"] == 0.9
    assert match.arguments_for("torch")["weight_decay"] == 0.1
    text = " ".join(str(match).split())
    assert "['bias'] 1, ['kernel'] 0.333333" in text
    assert "Weight decay on some leaves only: ['kernel']." in text
    assert "The momentum changes from step to step, between 0.85 and 0.95" in text
    assert "match.best.transformation() has it." in text
    check_updates(match.best.transformation(), params, gradients)


def check_updates(tx, params, gradients, rtol=2e-3):
    """Assert that an optimizer makes the run."""

    def step(state, now):
        updates, state = tx.update(now[0], state, now[1])
        return state, updates

    before = jax.tree.map(lambda x: jnp.asarray(x[:-1]), params)
    state = tx.init(jax.tree.map(lambda x: x[0], before))
    gradients = jax.tree.map(jnp.asarray, gradients)
    with jax.numpy_dtype_promotion("standard"):  # as optax's schedules need it
        updates: Any = jax.lax.scan(step, state, (gradients, before))[1]
    for name, u in updates.items():
        observed = np.diff(np.asarray(params[name], "f8"), axis=0)
        scale = np.sqrt(np.mean(np.square(observed)))
        np.testing.assert_allclose(u, observed, rtol=rtol, atol=rtol * scale)


def draw(seed=0):
    """Gradients of some orders of magnitude, and where a run starts."""
    params, gradients = BENCHMARK["make_run"](Case("torch", {}, steps=STEPS), seed)
    return {name: p[0] for name, p in params.items()}, gradients


def run(tx: Any):
    """The parameters that an optimizer makes, and the gradients."""
    start, gradients = draw()

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    start: dict[str, Any] = jax.tree.map(jnp.asarray, start)
    gradients = jax.tree.map(jnp.asarray, gradients)
    with jax.numpy_dtype_promotion("standard"):
        after: Any = jax.lax.scan(step, (start, tx.init(start)), gradients)[1]
    params = {name: np.concatenate([start[name][None], after[name]]) for name in start}
    return params, jax.tree.map(np.asarray, gradients)


def cycle(count):
    return 0.95 - 0.1 * jnp.abs(jnp.mod(count / 20, 2) - 1)


@pytest.mark.slow
def test_a_momentum_that_changes_is_found():
    """OneCycleLR and CyclicLR do that by default."""
    params, gradients = run(dialects.torch(0.003, 0.9, momentum=cycle))
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert "torch" in match.dialects
    assert "The momentum changes from step to step" in str(match)
    assert np.isinf(match.best.stderr["momentum"])
    options = match.best.recipe.options
    assert options is not None
    found: Any = options.momentum
    expected = cycle(np.arange(1, STEPS))
    np.testing.assert_allclose(found(np.arange(1, STEPS)), expected, rtol=0.01)
    check_updates(match.best.transformation(), params, gradients)


@pytest.mark.slow
def test_timms_caution_and_corrected_weight_decay():
    tx = dialects.timm(0.003, 0.9, 1e-3, momentum=0.9, caution=True)
    params, gradients = run(tx)
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert match.arguments_for("timm") == {
        "momentum": 0.9,
        "eps": 1e-3,
        "caution": True,
    }
    check_updates(match.best.transformation(), params, gradients)
    rate = optax.cosine_decay_schedule(0.01, STEPS)
    tx = dialects.timm(
        rate,
        eps=1e-3,
        weight_decay=0.1,
        decoupled_decay=True,
        corrected_weight_decay=True,
        max_lr=0.01,
    )
    match = identify(*run(tx))
    print(match)
    assert match.explains
    arguments = match.arguments_for("timm")
    assert arguments["corrected_weight_decay"] is True
    assert arguments["weight_decay"] == pytest.approx(0.1, rel=0.01)


@pytest.mark.slow
def test_leaves_have_learning_rates_of_their_own():
    tx = optax.multi_transform(
        {"slow": dialects.torch(0.001, 0.9), "fast": dialects.torch(0.004, 0.9)},
        {"kernel": "slow", "bias": "fast"},
    )
    params, gradients = run(tx)
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert match.arguments_for("torch") == {"alpha": 0.9}
    assert "['bias'] 1, ['kernel'] 0.25" in " ".join(str(match).split())
    check_updates(match.best.transformation(), params, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(96, 16, 1), (64, 1)])
def test_nothing_is_claimed_of_a_leaf_that_shows_nothing(sizes):
    """With a learning rate of its own in each step, one element explains itself."""
    rng = np.random.default_rng(0)
    names = ["kernel", "bias", "scale"][: len(sizes)]
    start = {
        name: jnp.asarray(0.3 * rng.normal(size=size), jnp.float32)
        for name, size in zip(names, sizes, strict=True)
    }
    decayed = dialects.torch(0.01, weight_decay=0.01, momentum=0.5)
    plain = dialects.torch(0.02, momentum=0.5)
    tx = optax.partition(
        {"kernel": decayed, "other": plain},
        {name: "kernel" if name == "kernel" else "other" for name in names},
    )
    params: list[Any] = [start]
    state, gradients = tx.init(start), []
    for _ in range(60):
        g = {
            name: 0.1 * jnp.asarray(rng.normal(size=p.shape), jnp.float32) + 0.1 * p
            for name, p in params[-1].items()
        }
        updates, state = tx.update(g, state, params[-1])
        params.append(optax.apply_updates(params[-1], updates))
        gradients.append(g)
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert match.arguments_for("torch")["weight_decay"] == 0.01
    text = " ".join(str(match).split())
    one_element = names[-1]
    assert f"decay on some leaves only: ['{one_element}']" not in text
    assert "as in LAMB" not in text
    if len(sizes) == 2:
        assert f"Nothing is known of ['{one_element}']" in text


def test_lists_without_the_parameters_before_the_first_step():
    tree = {"w": np.ones(2)}
    with pytest.raises(ValueError, match=r"one tree more .* were 10 trees of params"):
        identify([tree] * 10, [tree] * 10)


@pytest.mark.slow
def test_a_clip_after_the_decay():
    """MXNet does that, element by element."""
    tx = optax.chain(
        optax.add_decayed_weights(0.1), optax.clip(0.05), dialects.torch(0.003, 0.9)
    )
    params, gradients = run(tx)
    match = identify(params, gradients)
    print(match)
    assert match.explains
    assert "after the weight decay is added" in str(match)
    assert "add_decayed_weights(0.1), optax.clip(0.05)" in " ".join(str(match).split())
    check_updates(match.best.transformation(), params, gradients)


def scale_by_foreign(kind):
    """RMSProp with ε as a floor, or with fastai's momentum of the gradient."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    def update(updates, state, params=None):
        del params
        nu, mean = state
        nu = jax.tree.map(lambda n, g: 0.9 * n + 0.1 * g * g, nu, updates)
        mean = jax.tree.map(lambda m, g: 0.8 * m + g, mean, updates)
        if kind == "floor":
            new = jax.tree.map(
                lambda n, g: -0.003 * g / jnp.maximum(jnp.sqrt(n), 0.05), nu, updates
            )
        else:
            new = jax.tree.map(lambda n, m: -0.003 * m / (jnp.sqrt(n) + 1e-3), nu, mean)
        return new, (nu, mean)

    return optax.GradientTransformation(init, update)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "optimizer", "sentence"),
    [
        ("floor", "RMSProp with a floor", "max(√ν, ε), as in pylearn2 and Blocks"),
        ("raw", "fastai's RMSProp", "before it is divided, as in fastai"),
    ],
)
def test_rules_that_no_option_expresses_are_named(kind, optimizer, sentence):
    match = identify(*run(scale_by_foreign(kind)))
    print(match)
    assert match.is_explained
    assert match.best.optimizer == optimizer
    assert sentence in " ".join(str(match).split())
    assert match.best.hyperparameters["alpha"] == pytest.approx(0.9, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "arguments", "share"),
    [
        ("torch", {"alpha": 0.9}, 0.5),
        # If every step is clipped, the scale is known only because ν starts from 1.
        ("optax", {"decay": 0.95, "initial_scale": 1.0}, 1.0),
    ],
)
def test_elements_of_a_large_run_with_the_global_norms(rule, arguments, share):
    case = Case(rule, arguments, clip=("global norm", share))
    params, gradients = BENCHMARK["make_run"](case)
    norm = BENCHMARK["find_clip_norm"](case, gradients)
    square = sum(
        np.sum(np.square(g), axis=tuple(range(1, g.ndim))) for g in gradients.values()
    )
    some = [{"kernel": x["kernel"][:, ::2, ::2]} for x in (params, gradients)]
    match = identify(*some, gradient_norms=np.sqrt(square))
    print(match)
    assert match.explains
    assert match.arguments_for(rule) == arguments
    assert match.best.hyperparameters["clip"] == pytest.approx(norm, rel=0.01)
    with pytest.raises(ValueError, match="gradient_norms"):
        identify(*some, gradient_norms=np.sqrt(square)[:-1])
