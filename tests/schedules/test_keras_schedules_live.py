"""Keras's schedules beside the real Keras: in float64 to 1e-12, in float32 to 1e-6."""

import inspect
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schedulers import crossed

from rmsprop_jax import schedules

pytestmark = pytest.mark.live
FUNCTIONS = {
    "ExponentialDecay": "exponential_decay",
    "PiecewiseConstantDecay": "piecewise_constant_decay",
    "PolynomialDecay": "polynomial_decay",
    "InverseTimeDecay": "inverse_time_decay",
    "CosineDecay": "cosine_decay",
    "CosineDecayRestarts": "cosine_decay_restarts",
}
FIRST = {"initial_learning_rate": 0.1}
STEPS = 45
ARGUMENTS = {
    "ExponentialDecay": crossed(
        decay_steps=[1, 10, 2.5], decay_rate=[0.5, 0.96], staircase=[False, True]
    ),
    "PiecewiseConstantDecay": [
        {"boundaries": [3, 9], "values": [0.01, 0.03, 0.02]},
        {"boundaries": [0, 7, 7], "values": [0.5, 0.25, 0.75, 0.125]},
        {"boundaries": [2.5, 30], "values": [0.5, 0.25, 0.75]},
    ],
    "PolynomialDecay": [
        *crossed(
            decay_steps=[1, 11],
            end_learning_rate=[0.0001, 0.3],
            power=[0.5, 2.0],
            cycle=[False, True],
        ),
        *crossed(
            decay_steps=[10.5],
            end_learning_rate=[0.001],
            power=[1.0],
            cycle=[False, True],
        ),
    ],
    "InverseTimeDecay": crossed(
        decay_steps=[1, 10, 2.5], decay_rate=[0.5, 3.0], staircase=[False, True]
    ),
    "CosineDecay": [
        *crossed(decay_steps=[1, 20, 12.5], alpha=[0.0, 0.1]),
        {"decay_steps": 20, "warmup_steps": 5},  # without a target it does nothing
        {"decay_steps": 20, "warmup_target": 0.3},
        {"decay_steps": 20, "warmup_target": 0.3, "warmup_steps": 7, "alpha": 0.1},
        {"decay_steps": 11.5, "warmup_target": 0.02, "warmup_steps": 3.5},
    ],
    "CosineDecayRestarts": [
        *crossed(
            first_decay_steps=[3, 6.5],
            t_mul=[1.0, 1.5, 3.0],
            m_mul=[0.5],
            alpha=[0.1],
        ),
        {"first_decay_steps": 10, "t_mul": 2.0, "m_mul": 1.0, "alpha": 0.0},
    ],
}
CASES = [(name, arguments) for name, of in ARGUMENTS.items() for arguments in of]


def widen(value):
    """Floats as Keras leaves them; it takes Python's for float32."""
    if isinstance(value, list):
        return [widen(x) for x in value]
    return np.float64(value) if isinstance(value, float) else value


def evaluate_keras(name, arguments, counts):
    """The learning rates of the real one, which computes in the first one's dtype."""
    import keras

    wide = {key: widen(value) for key, value in arguments.items()}
    schedule = getattr(keras.optimizers.schedules, name)(**wide)
    return np.array([float(schedule(count)) for count in counts])


def read_parameters(name):
    import keras

    kind = getattr(keras.optimizers.schedules, name)
    return [(p.name, p.default) for p in inspect.signature(kind).parameters.values()]


def list_schedules():
    import keras

    return [x for x in dir(keras.optimizers.schedules) if x[0].isupper()]


@pytest.fixture(scope="module")
def run_with_keras():
    """A process with the real Keras: importing Paddle beside TensorFlow crashes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def with_first(name, arguments):
    return arguments if name == "PiecewiseConstantDecay" else FIRST | arguments


def assert_follows(name, arguments, expected, limit):
    # Not compiled, which would take longer than all of it.
    schedule = getattr(schedules, FUNCTIONS[name])(**arguments)
    found = np.asarray(schedule(jnp.arange(STEPS + 1)))
    near = np.abs(found - expected) <= limit * expected.max()
    if name == "CosineDecayRestarts":
        # There Keras's logarithm may be rounded down: it ends the cycle before.
        first, growth = arguments["first_decay_steps"], arguments["t_mul"]
        restarts = np.cumsum([first * growth**n for n in range(20)])
        is_restart = np.isin(np.arange(STEPS + 1), np.round(restarts, 9))
        lowest = FIRST["initial_learning_rate"] * arguments["alpha"]
        near |= is_restart & (np.abs(expected - lowest) <= limit)
    assert near.all(), (np.flatnonzero(~near), found[~near], expected[~near])


@pytest.mark.parametrize(
    ("name", "arguments"), CASES, ids=[f"{x[0]}-{n}" for n, x in enumerate(CASES)]
)
def test_every_schedule_is_keras_s(run_with_keras, request, name, arguments):
    arguments = with_first(name, arguments)
    expected = run_with_keras(evaluate_keras, name, arguments, range(STEPS + 1))
    assert_follows(name, arguments, expected, 1e-6)
    request.getfixturevalue("x64")
    assert_follows(name, arguments, expected, 1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_keras_s(run_with_keras, name):
    """Their names, order and defaults. The name of the schedule is left out."""
    ours = inspect.signature(getattr(schedules, FUNCTIONS[name])).parameters.values()
    theirs = run_with_keras(read_parameters, name)
    assert [(p.name, p.default) for p in ours] == [
        (parameter, default) for parameter, default in theirs if parameter != "name"
    ]


def test_no_schedule_of_keras_is_missing(run_with_keras):
    known = {*FUNCTIONS, "LearningRateSchedule"}
    assert {*run_with_keras(list_schedules)} == known


rates = st.floats(1e-6, 10.0)
lengths = st.integers(1, 60) | st.floats(1.0, 60.0)
unit = st.floats(0.0, 1.0)
ANY = {
    "ExponentialDecay": {
        "decay_steps": lengths,
        "decay_rate": st.floats(0.01, 1.1),
        "staircase": st.booleans(),
    },
    "PolynomialDecay": {
        "decay_steps": lengths,
        "end_learning_rate": rates,
        "power": st.floats(0.5, 4.0),
        "cycle": st.booleans(),
    },
    "InverseTimeDecay": {
        "decay_steps": lengths,
        "decay_rate": st.floats(0.0, 10.0),
        "staircase": st.booleans(),
    },
    "CosineDecay": {
        "decay_steps": lengths,
        "alpha": unit,
        "warmup_target": st.none() | rates,
        "warmup_steps": st.integers(0, 30),
    },
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ANY)
def test_any_arguments(run_with_keras, name):
    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(
        arguments=st.fixed_dictionaries(ANY[name] | {"initial_learning_rate": rates})
    )
    def check(arguments):
        expected = run_with_keras(evaluate_keras, name, arguments, range(STEPS + 1))
        assert_follows(name, arguments, expected, 1e-12)

    check()
