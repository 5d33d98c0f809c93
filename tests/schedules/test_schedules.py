"""The schedules by themselves: every count, every transformation, every refusal."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.schedulers import CASES, make_ours, real

from rmsprop_jax import rmsprop, schedules

untyped: Any = schedules  # of arguments that can't be
LAST = 2**31 - 1
# One of each, in its simplest form.
ONE_OF_EACH = {name: arguments for name, arguments in reversed(CASES)}
ALL = {name: make_ours(name, of).learning_rate for name, of in ONE_OF_EACH.items()}
ALL |= {
    "SequentialLR": schedules.sequential_lr(
        [schedules.linear_lr(0.1), schedules.step_lr(0.1, 3)], [5]
    ),
    "ChainedScheduler": schedules.chained_scheduler(
        [schedules.linear_lr(0.1), schedules.cosine_annealing_lr(0.1, 7)]
    ),
    "ChainedScheduler with eta_min": schedules.chained_scheduler(
        [schedules.linear_lr(0.1), schedules.cosine_annealing_lr(0.1, 7, 0.01)]
    ),
    "ChainedScheduler that repeats": schedules.chained_scheduler(
        [schedules.cosine_annealing_lr(0.1, 7), schedules.cosine_annealing_lr(0.1, 4)]
    ),
    "ChainedScheduler that replaces": schedules.chained_scheduler(
        [
            schedules.cosine_annealing_warm_restarts(0.1, 5),
            schedules.cosine_annealing_lr(0.1, 7, 0.01),
        ]
    ),
}
# Keras's, and timm's.
ALL |= {
    "CosineLRScheduler": schedules.cosine_lr_scheduler(
        0.1, 9, 0.01, 1.5, 0.5, 3, warmup_t=5
    ),
    "StepLRScheduler": schedules.step_lr_scheduler(0.1, 2.4, 0.9, warmup_t=5),
    "ExponentialDecay": schedules.exponential_decay(0.1, 7, 0.9, staircase=True),
    "PiecewiseConstantDecay": schedules.piecewise_constant_decay([9], [0.1, 0.2]),
    "PolynomialDecay": schedules.polynomial_decay(0.1, 7.5, cycle=True),
    "InverseTimeDecay": schedules.inverse_time_decay(0.1, 7, 0.5),
    "CosineDecay": schedules.cosine_decay(0.1, 9, 0.1, 0.2, 5),
    "CosineDecayRestarts": schedules.cosine_decay_restarts(0.1, 7, 1.5),
}


@jax.jit
def evaluate_all(counts):
    return {name: schedule(counts) for name, schedule in ALL.items()}


def test_transformations_agree():
    """jit, vmap and scan; a Python count, and counts of every integer type."""
    counts = jnp.arange(25, dtype=jnp.int32)
    expected = evaluate_all(counts)
    mapped = jax.jit(jax.vmap(evaluate_all))(counts)
    _, scanned = jax.lax.scan(
        lambda n, _: (n + 1, evaluate_all(n)), counts[0], length=25
    )

    @jax.jit
    def evaluate_one(counts):
        # One function converts the types for all schedules.
        others = [11, np.int64(11), *counts[1:]]
        return {
            name: [f(n) for n in (counts[0], *(others if name == "StepLR" else ()))]
            for name, f in ALL.items()
        }

    types = (jnp.int32, jnp.uint8, jnp.uint32, jnp.int16)
    ones = evaluate_one([np.asarray(11, dtype) for dtype in types])
    for name, values in expected.items():
        assert values.shape == (25,)
        for found in (mapped[name], scanned[name]):
            np.testing.assert_allclose(found, values, rtol=1e-6, err_msg=name)
        for one in ones[name]:
            assert (one.shape, one.dtype) == ((), jnp.float32), name
            np.testing.assert_allclose(one, values[11], rtol=1e-6, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ALL)
def test_float64_under_x64(name):
    for dtype in (jnp.int32, jnp.int64):
        shape = jax.ShapeDtypeStruct((), dtype)
        assert jax.eval_shape(ALL[name], shape).dtype == jnp.float64


def test_the_last_count_of_int32():
    """No sum or product beyond it, and the same for every larger count."""
    without_loop = {name: f for name, f in ALL.items() if name != "MultiplicativeLR"}

    @jax.jit
    def evaluate_ends(large):
        counts = (LAST, 2**40, large, 0, -1)
        return {name: [f(n) for n in counts] for name, f in without_loop.items()}

    for name, values in evaluate_ends(np.uint32(2**32 - 1)).items():
        last, larger, largest, first, negative = values
        assert np.isfinite(last), name
        np.testing.assert_allclose([larger, largest], last, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(negative, first, rtol=1e-6, err_msg=name)


def cosine(part):
    return (1 + math.cos(math.pi * part)) / 2


def step_cosine(half, smallest):
    """A step of a cosine from 0.5, from exact distances to the lowest point."""

    def height(count):
        return math.sin(math.pi * abs(count % (2 * half) - half) / (2 * half)) ** 2

    def step(count, value):
        if height(count - 1) == 0:
            return value + (0.5 - smallest) * height(half + 1)
        return smallest + (value - smallest) * height(count) / height(count - 1)

    return step


def step_chain(count, half, *steps):
    """A chain of which one cosine has this half period, at whose lowest point before
    it forgets any value."""
    start = half + 2 * half * ((count - half) // (2 * half))
    value = 123.0
    for n in range(start, count + 1):
        for step in steps:
            value = step(n, value)
    return value


def chain(*parts):
    return untyped.chained_scheduler([*parts])


FAR = [2**24 + 1, 2**24 + 3, 10**9 + 7, LAST - 1, LAST]


@pytest.mark.parametrize("x64_too", [False, True])
@pytest.mark.parametrize("count", FAR)
def test_no_step_is_lost_far_out(count, x64_too, request):
    """Each beside exact arithmetic: float32 has no odd number from 2**24 on."""
    if x64_too:
        request.getfixturevalue("x64")
    near = math.exp(math.log1p(-1e-9) * count)
    phase = count % 14
    restart = count % 7
    length = 10
    start = 0
    while start + length <= count:
        start, length = start + length, length * 3
    up = Fraction(count % 5)
    height = up / 2 if up <= 2 else (5 - up) / 3
    expected = {
        schedules.step_lr(0.5, step_size=count, gamma=0.5): 0.25,
        schedules.step_lr(0.5, step_size=LAST, gamma=0.5): 0.5 / (1 + (count == LAST)),
        schedules.multi_step_lr(0.5, [count, 2**31 - 1], 0.5): (
            0.25 / (1 + (count == LAST))
        ),
        schedules.constant_lr(0.5, 0.5, total_iters=count): 0.5,
        schedules.linear_lr(0.5, 0.5, 0.0, total_iters=LAST): 0.25 * (1 - count / LAST),
        schedules.exponential_lr(0.5, 1 - 1e-9): 0.5 * near,
        schedules.polynomial_lr(
            0.5, total_iters=count + 2 if count < LAST - 1 else LAST, power=0.25
        ): (
            0.5
            * (
                Fraction(2, count + 2)
                if count < LAST - 1
                else Fraction(LAST - count, LAST)
            )
            ** 0.25
        ),
        schedules.cosine_annealing_lr(0.5, 7): 0.5 * cosine(min(phase, 14 - phase) / 7),
        schedules.cosine_annealing_lr(0.5, LAST): 0.5 * cosine(count / LAST),
        schedules.cosine_annealing_warm_restarts(0.5, 7): 0.5 * cosine(restart / 7),
        schedules.cosine_annealing_warm_restarts(0.5, 10, 3): (
            0.5 * cosine((count - start) / length)
        ),
        schedules.cyclic_lr(0.25, 0.5, 2, 3).learning_rate: 0.25 + 0.25 * float(height),
        schedules.cyclic_lr(0.25, 0.5, LAST, LAST).learning_rate: (
            0.25 + 0.25 * (count / LAST)
        ),
        schedules.one_cycle_lr(
            0.5, LAST, pct_start=0.0, anneal_strategy="linear"
        ).learning_rate: 0.5 + (2e-6 - 0.5) * ((count + 1) / LAST),
        schedules.sequential_lr(
            [
                schedules.linear_lr(0.5),
                schedules.cosine_annealing_warm_restarts(0.5, 7),
            ],
            [count - 3],
        ): 0.5 * cosine(3 / 7),
        schedules.swa_lr(0.5, 0.25, anneal_epochs=LAST, anneal_strategy="linear"): (
            0.25 + 0.25 * (1 - count / LAST)
        ),
        chain(schedules.linear_lr(0.5), schedules.cosine_annealing_lr(0.5, 7)): (
            0.5 * cosine(min(phase, 14 - phase) / 7)
        ),
        chain(schedules.linear_lr(0.5), schedules.cosine_annealing_lr(0.5, 7, 0.125)): (
            0.125 + 0.375 * cosine(min(phase, 14 - phase) / 7)
        ),
        chain(
            schedules.cosine_annealing_lr(0.5, LAST, 0.125),
            schedules.constant_lr(0.5, total_iters=9),
        ): (
            # The cosine falls as if from 1/3, and a constant multiplies what it left.
            0.125 + (3 * (0.5 / 3 + 0.0) - 0.125) * cosine(count / LAST)
        ),
        chain(
            schedules.step_lr(0.5, 6, 0.75),
            schedules.cosine_annealing_lr(0.5, 7, 0.125),
            schedules.exponential_lr(0.5, 0.875),
        ): step_chain(
            count,
            7,
            lambda n, value: value * (1 if n % 6 else 0.75),
            step_cosine(7, 0.125),
            lambda n, value: value * 0.875,
        ),
        chain(
            schedules.cosine_annealing_lr(0.5, 4),
            schedules.cosine_annealing_lr(0.5, 6, 0.125),
        ): step_chain(count, 4, step_cosine(4, 0.0), step_cosine(6, 0.125)),
        chain(
            schedules.cyclic_lr(0.25, 0.5, 2, 3).learning_rate,
            schedules.step_lr(0.5, 3, 0.5),
            schedules.cosine_annealing_lr(0.5, 7, 0.125),
        ): step_cosine(7, 0.125)(
            count, (0.25 + 0.25 * float(height)) * (1 if count % 3 else 0.5)
        ),
        schedules.exponential_decay(0.5, count, 0.5, staircase=True): 0.25,
        schedules.exponential_decay(0.5, 1e9, 0.5): 0.5 * 0.5 ** (count / 1e9),
        schedules.exponential_decay(0.5, 2.5, 1 - 1e-9, staircase=True): (
            0.5 * math.exp(math.log1p(-1e-9) * (count * 2 // 5))
        ),
        schedules.piecewise_constant_decay([count - 1, count], [3.0, 0.5, 4.0]): 0.5,
        schedules.polynomial_decay(0.5, 7, 0.0, power=0.25, cycle=True): (
            0.5
            * Fraction(7 - count % 7 if count % 7 else 0, 7 * (count // 7 + 1)) ** 0.25
        ),
        schedules.polynomial_decay(0.5, count + 2, 0.0, power=0.25): (
            0.5 * Fraction(2, count + 2) ** 0.25
        ),
        schedules.inverse_time_decay(0.5, 1, 1e-9): 0.5 / (1 + 1e-9 * count),
        schedules.inverse_time_decay(0.5, count, 1.0, staircase=True): 0.25,
        schedules.cosine_decay(0.5, LAST): 0.5 * cosine(count / LAST),
        schedules.cosine_decay(0.0, 10, 0.0, 0.5, count - 4): 0.5 * cosine(0.4),
        schedules.cosine_decay_restarts(0.5, 7, 1.0): 0.5 * cosine(restart / 7),
        schedules.cosine_decay_restarts(0.5, 2.5, 1.0): (
            0.5 * cosine(count * 2 % 5 / 5)
        ),
        schedules.cosine_decay_restarts(0.5, 10, 3.0): (
            0.5 * cosine((count - start) / length)
        ),
    }
    found_at_once = jax.jit(lambda n: [schedule(n) for schedule in expected])
    for found, (schedule, value) in zip(
        found_at_once(jnp.int32(count)), expected.items(), strict=True
    ):
        # In float64, the logarithm of 1 − 1e-9 is what limits the power.
        limit = 1e-12 if x64_too else 5e-7
        if "exponential" in repr(schedule):
            limit = max(limit, 1e-7)
        assert abs(found - float(value)) <= limit, (schedule, found, value)


def test_neighbouring_counts_differ_far_out():
    """A count rounded to float32 would take the neighbour's value."""
    periodic = [
        schedules.cosine_annealing_lr(1.0, 5),
        schedules.cosine_annealing_warm_restarts(1.0, 5),
        schedules.cyclic_lr(0.0, 1.0, 5).learning_rate,
    ]
    step = schedules.step_lr(1.0, 2**30 - 1, 0.5)
    near = np.arange(10, 20, dtype=np.int32)
    period = np.int32(10 * ((2**31 - 100) // 10))
    edge = np.array([2**30 - 2, 2**30 - 1], np.int32)

    @jax.jit
    def evaluate_ranges(near, far, edge):
        return [(f(near), f(far)) for f in periodic], step(edge)

    pairs, steps = evaluate_ranges(near, period + near, edge)
    assert [*steps] == [1.0, 0.5]
    for at_first, far in pairs:
        np.testing.assert_allclose(far, at_first, atol=1e-6)
        assert max(np.abs(np.diff(far))) > 0.1


def test_a_learning_rate_may_be_traced():
    """A population of learning rates, and the gradient with respect to one."""

    def third(rate):
        return [
            schedules.step_lr(rate, 2)(3),
            schedules.linear_lr(rate)(3),
            schedules.cosine_annealing_lr(rate, 5, 0.001)(3),
            schedules.cyclic_lr(0.0, rate, 5).learning_rate(3),
            schedules.one_cycle_lr(rate, 10).learning_rate(3),
            schedules.swa_lr(rate, 0.1)(3),
            schedules.chained_scheduler(
                [schedules.linear_lr(rate), schedules.exponential_lr(rate, 0.5)]
            )(3),
            chain(
                schedules.linear_lr(rate), schedules.cosine_annealing_lr(rate, 5, 0.001)
            )(3),
            chain(
                schedules.cosine_annealing_lr(rate, 5),
                schedules.cosine_annealing_lr(rate, 2, 0.001),
            )(3),
            chain(
                schedules.lambda_lr(rate, real), schedules.cosine_annealing_lr(rate, 5)
            )(3),
            schedules.sequential_lr([schedules.lambda_lr(rate, real)] * 2, [2])(3),
        ]

    rates = [0.1, 0.2]

    @jax.jit
    def evaluate_both(traced):
        return jax.vmap(third)(traced), [third(rate) for rate in rates]

    found, expected = evaluate_both(jnp.array(rates))
    np.testing.assert_allclose(np.transpose(found), expected, rtol=2e-6)
    assert all(x != 0 for x in jax.jit(jax.jacobian(third))(jnp.float32(0.1)))


def test_in_an_optimizer():
    """A run with momentum, whose schedules both move, is one with numbers by hand."""
    cycle = schedules.one_cycle_lr(max_lr=0.1, total_steps=10)
    assert cycle.momentum is not None
    tx = rmsprop(cycle.learning_rate, momentum=cycle.momentum)
    params: Any = jnp.array([1.0, -4.0])
    by_hand: Any = params
    state = tx.init(params)
    hand_state = rmsprop(0.1, momentum=0.9).init(params)
    for step in range(10):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
        numbers = [float(cycle.learning_rate(step)), float(cycle.momentum(step))]
        updates, hand_state = rmsprop(numbers[0], momentum=numbers[1]).update(
            by_hand, hand_state, by_hand
        )
        by_hand = optax.apply_updates(by_hand, updates)
    np.testing.assert_allclose(params, by_hand, rtol=1e-5)


def test_optax_s_schedules_are_parts_too():
    made = schedules.sequential_lr(
        [optax.linear_schedule(0.0, 0.1, 4), schedules.step_lr(0.1, 2, 0.5)], [4]
    )
    found = [float(made(n)) for n in range(8)]
    np.testing.assert_allclose(
        found, [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.05, 0.05], rtol=1e-6
    )


def test_a_schedule_shows_its_call():
    """Its repr makes it again, unless a function is in it."""
    names = {key: getattr(schedules, key) for key in schedules.__all__}
    shown = {name: repr(schedule) for name, schedule in ALL.items()}
    again = {
        name: eval(call, names)
        for name, call in shown.items()
        if "function" not in call and "lambda" not in call
    }
    assert len(again) > 20
    counts = jnp.arange(25, dtype=jnp.int32)
    found = jax.jit(lambda n: {name: f(n) for name, f in again.items()})(counts)
    expected = evaluate_all(counts)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


REFUSED = [
    (lambda: untyped.step_lr(0.1, 0), "step_size must be an integer from 1 to"),
    (lambda: untyped.step_lr(0.1, 2.5), "step_size must be an integer from 1 to"),
    (lambda: untyped.step_lr(0.1, 2**31), "step_size must be an integer from 1 to"),
    (lambda: untyped.step_lr(-0.1, 3), "learning_rate must be a finite number"),
    (lambda: untyped.step_lr(0.1, 3, math.nan), "gamma must be a finite number"),
    (lambda: untyped.step_lr(0.1, 3, 10**400), "gamma must be a finite number"),
    (
        lambda: untyped.multi_step_lr(0.1, [-1]),
        "milestones must be an integer from 0",
    ),
    (lambda: untyped.constant_lr(0.1, 0.0), "PyTorch divides by it"),
    (lambda: untyped.constant_lr(0.1, 2.0), "factor must be a number from 0 to 1"),
    (lambda: untyped.linear_lr(0.1, 0.0), "PyTorch divides by it"),
    (lambda: untyped.linear_lr(0.1, 0.5, 1.5), "end_factor must be a number from 0"),
    (
        lambda: untyped.linear_lr(0.1, total_iters=-1),
        "total_iters must be an integer",
    ),
    (lambda: untyped.cosine_annealing_lr(0.1, 0), "T_max must be an integer from 1"),
    (lambda: untyped.cosine_annealing_warm_restarts(0.1, 5, 0), "T_mult must be an"),
    (lambda: untyped.cyclic_lr(0.1, 0.2, mode="square"), "mode must be 'triangular'"),
    (lambda: untyped.one_cycle_lr(0.1), "total_steps must be given, or both epochs"),
    (lambda: untyped.one_cycle_lr(0.1, epochs=3), "total_steps must be given"),
    (lambda: untyped.one_cycle_lr(0.1, 10, pct_start=1.5), "pct_start must be a"),
    (lambda: untyped.one_cycle_lr(0.1, 10, pct_start=0.1), "divides by 0"),
    (
        lambda: untyped.one_cycle_lr(0.1, 10, div_factor=0.0),
        "div_factor must be more",
    ),
    (
        lambda: untyped.one_cycle_lr(0.1, epochs=2**20, steps_per_epoch=2**20),
        r"epochs \* steps_per_epoch must be an integer from 1 to",
    ),
    (lambda: untyped.swa_lr(0.1, 0.2, 5, "square"), "anneal_strategy must be 'cos'"),
    (
        lambda: untyped.sequential_lr([untyped.linear_lr(0.1)], [3]),
        "milestones must be one fewer than the schedulers, but there were 1 and 1",
    ),
    (
        lambda: untyped.sequential_lr([untyped.linear_lr(0.1)] * 3, [5, 3]),
        "milestones must ascend",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.linear_lr(0.1), untyped.one_cycle_lr(0.2, 10)], [3]
        ),
        "must have 0.008 as the base learning rate of linear_lr.*, but it was 0.1",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.cyclic_lr(0.01, 0.2), untyped.linear_lr(0.1)], [3]
        ),
        "must have 0.01 as the base learning rate of linear_lr.*, but it was 0.1",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.one_cycle_lr(0.2, 10), untyped.lambda_lr(0.1, lambda count: 1.0)],
            [3],
        ),
        "must have 0.008 as the base learning rate of lambda_lr.*, but it was 0.1",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.swa_lr(0.1, 0.05), untyped.one_cycle_lr(0.2, 10)], [3]
        ),
        "must have 0.008 as the base learning rate of swa_lr.*, but it was 0.1",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.swa_lr(0.1, 0.05), untyped.swa_lr(0.1, 0.02)], [3]
        ),
        "must have swa_lr=0.02 in swa_lr.*, but it had swa_lr=0.05",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.cosine_annealing_lr(0.1, 5), untyped.one_cycle_lr(0.2, 10)], [6]
        ),
        r"of cosine_annealing_lr.*, but it was 0\.1\. PyTorch then uses both",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.one_cycle_lr(0.2, 10), untyped.cyclic_lr(0.1, 0.2)], [3]
        ),
        "must have base_momentum=0.8, max_momentum=0.9 in one_cycle_lr.*, but it had "
        r"base_momentum=0.85, max_momentum=0.95\.",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.one_cycle_lr(0.4, 9), untyped.one_cycle_lr(0.4, 9, div_factor=9)],
            [3],
        ),
        r"must have div_factor=9\.0 in one_cycle_lr.*, but it had div_factor=25\.0",
    ),
    (
        lambda: untyped.sequential_lr(
            [
                untyped.chained_scheduler([untyped.one_cycle_lr(0.2, 10)]),
                untyped.one_cycle_lr(0.2, 10, max_momentum=0.9),
            ],
            [3],
        ),
        "must have max_momentum=0.9 in chained_scheduler.* it had max_momentum=0.95",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.sequential_lr([untyped.linear_lr(0.1)], [])] * 2, [3]
        ),
        "must not begin with a sequential_lr",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.linear_lr(0.1), untyped.linear_lr(0.1, total_iters=0)], [3]
        ),
        "total_iters of linear_lr must be at least 1 after a milestone",
    ),
    (
        lambda: untyped.sequential_lr(
            [untyped.linear_lr(0.1), schedules.polynomial_lr(0.1, 0)], [3]
        ),
        "total_iters of polynomial_lr must be at least 1 after a milestone",
    ),
    (
        lambda: untyped.chained_scheduler([]),
        "schedulers must have at least one schedule, but it was empty",
    ),
    (
        lambda: untyped.chained_scheduler(
            [untyped.linear_lr(0.1), untyped.linear_lr(0.2)]
        ),
        "schedulers must have the same base learning rate",
    ),
    (lambda: chain(untyped.swa_lr(0.1, 0.2)), "Write the learning rate as a function"),
    (
        lambda: chain(untyped.sequential_lr([untyped.linear_lr(0.1)], [])),
        "multiply the learning rate that they find, replace it",
    ),
    (
        lambda: chain(
            untyped.cosine_annealing_lr(0.1, 5, eta_min=0.01),
            untyped.multiplicative_lr(0.1, real),
        ),
        "multiplicative_lr only with one cosine_annealing_lr, whose eta_min is 0",
    ),
    (
        lambda: chain(
            untyped.cosine_annealing_lr(0.1, 5, eta_min=0.01),
            untyped.linear_lr(0.1, total_iters=100_000),
        ),
        "at most 100000 learning rates that .* needed 100006. Give fewer",
    ),
    (
        lambda: chain(
            untyped.cosine_annealing_lr(0.1, 499), untyped.cosine_annealing_lr(0.1, 501)
        ),
        "a T_max that has a small common multiple",
    ),
    (
        lambda: chain(
            untyped.cosine_annealing_lr(0.1, LAST), untyped.cosine_annealing_lr(0.1, 2)
        ),
        "at most 100000 learning rates that are computed once",
    ),
    (lambda: untyped.cosine_lr_scheduler(0.1, 5, cycle_mul=0.5), "cycle_mul must be"),
    (lambda: untyped.step_lr_scheduler(0.1, 0.5), "decay_t must be .* at least 1"),
    (lambda: untyped.exponential_decay(0.1, 0, 0.5), "decay_steps must be .* least 1"),
    (lambda: untyped.inverse_time_decay(0.1, 5, -1), "decay_rate must be a finite"),
    (lambda: untyped.polynomial_decay(0.1, 5, -1), "end_learning_rate must be a"),
    (lambda: untyped.cosine_decay(0.1, 5, warmup_target=-1), "warmup_target must be"),
    (lambda: untyped.cosine_decay_restarts(0.1, 5, 0.5), "t_mul must be .* least 1"),
    (
        lambda: untyped.cosine_decay_restarts(0.1, 1, 1 + 1e-9),
        "t_mul must be 1, or so much larger that there are at most 10000 cycles",
    ),
    (lambda: untyped.piecewise_constant_decay([3], [0.1]), "values must be one more"),
    (
        lambda: untyped.piecewise_constant_decay([3, 2], [0.1] * 3),
        "boundaries must ascend, but they were",
    ),
    (lambda: untyped.reduce_lr_on_plateau(0.1, factor=1.0), "factor must be more"),
    (lambda: untyped.reduce_lr_on_plateau(0.1, threshold=2), "from 0 to 1 if it is"),
    (lambda: untyped.reduce_lr_on_plateau(0.1, patience=-1), "patience must be an"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED)
def test_what_can_t_be_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


MISTYPED = [
    (lambda: untyped.step_lr("0.1", 3), "learning_rate must be a number"),
    (lambda: untyped.step_lr(0.1, "3"), "step_size must be a number"),
    (lambda: untyped.step_lr(0.1, step_size=True), "step_size must be a number"),
    (lambda: untyped.exponential_decay(0.1, 3, 1, 1), "staircase must be True or"),
    (lambda: untyped.lambda_lr(0.1, 0.5), "lr_lambda must be a function"),
    (lambda: untyped.multiplicative_lr(0.1, 0.5), "lr_lambda must be a function"),
    (lambda: untyped.cyclic_lr(0.1, 0.2, scale_fn=1), "scale_fn must be a function"),
    (lambda: untyped.cyclic_lr(0.1, 0.2, cycle_momentum=1), "must be True or False"),
    (lambda: untyped.sequential_lr([0.1, 0.2], [3]), "schedulers must be schedules"),
    (lambda: untyped.chained_scheduler([real]), "rmsprop_jax.schedules"),
    (lambda: untyped.step_lr(0.1, 3)(0.5), "count must be an integer"),
    (lambda: untyped.step_lr(0.1, 3)(jnp.ones(3)), "count must be an integer"),
]


@pytest.mark.parametrize(("call", "sentence"), MISTYPED)
def test_what_is_of_another_type_is_refused(call, sentence):
    with pytest.raises(TypeError, match=sentence):
        call()


def test_a_plateau_needs_its_value():
    tx = schedules.reduce_lr_on_plateau(0.1, mode="max")
    params = jnp.ones(3)
    with pytest.raises(TypeError, match="value must be given to update"):
        tx.update(params, tx.init(params), params)
