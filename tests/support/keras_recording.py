"""Runs of Keras that examples/record_keras.py records, on the backend of this process.

    KERAS_BACKEND=jax python tests/support/keras_recording.py FOLDER

writes a recording for each function of `RUNS`, and what else a test wants to know of it
in a .json of the same name.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import keras  # noqa: E402
from record_keras import Recorder  # noqa: E402

STEPS = 60


def make_model(dtype="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="first"),
            keras.layers.Dense(3, name="second"),
        ]
    )


def fit(model: Any, optimizer: Any, path, steps=STEPS, **arguments):
    """Train for more steps than are recorded, and return the recorder."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16 * (steps + 15), 6)).astype("float32")
    y = x[:, :3] ** 2
    model.compile(optimizer, "mse")
    recorder = Recorder(path, steps=steps, **arguments)
    before = len(model.optimizer.variables)
    model.fit(x, y, batch_size=16, verbose=0, shuffle=False, callbacks=[recorder])
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert type(inner).__module__.startswith("keras")
    assert len(inner.variables) <= 2 + 4 * len(model.trainable_variables)
    assert before == 0 or len(model.optimizer.variables) >= before
    # The run goes on without the recorder.
    model.fit(x[:32], y[:32], batch_size=16, verbose=0)
    iterations: Any = keras.ops.convert_to_numpy(inner.iterations)
    return {"iterations": int(iterations)}


def plain(path):
    """Momentum, a schedule and a clip of the global norm; a sample of the elements."""
    rate: Any = keras.optimizers.schedules.PiecewiseConstantDecay([29], [0.004, 0.001])
    optimizer = keras.optimizers.RMSprop(
        rate, rho=0.8, momentum=0.5, epsilon=1e-3, global_clipnorm=0.5
    )
    return fit(make_model(), optimizer, path, elements=60)


def mixed_float16(path):
    """The first steps overflow, so that the loss scale skips them."""
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.RMSprop(0.003, rho=0.8, momentum=0.5),
        initial_scale=2.0**22,
    )
    found = fit(make_model("mixed_float16"), optimizer, path, steps=40)
    keras.config.set_dtype_policy("float32")
    return found


def bfloat16(path):
    """The parameters are bfloat16, and are stored so."""
    found = fit(make_model("bfloat16"), keras.optimizers.SGD(0.05), path, steps=10)
    keras.config.set_dtype_policy("float32")
    return found


def own_loop(path):
    """Gradients from elsewhere, after some steps, and a variable without any."""
    model = make_model()
    variables = model.trainable_variables
    optimizer = keras.optimizers.RMSprop(0.002, rho=0.9, centered=True)
    optimizer.build(variables)
    rng = np.random.default_rng(0)

    def step():
        given = [rng.normal(size=tuple(v.shape)).astype("float32") for v in variables]
        tensors = [keras.ops.convert_to_tensor(g) for g in given]
        optimizer.apply([*tensors[:-1], None], variables)
        return given

    for _ in range(3):
        step()
    recorder = Recorder(path, steps=8)
    recorder.attach(optimizer)
    given = [step() for _ in range(8)]
    recorder.save()
    step()
    with np.load(path) as found:
        for v, *of_variable in zip(variables[:-1], *given, strict=False):
            recorded = found[f"gradients/{v.path}"]
            np.testing.assert_array_equal(recorded, np.stack(of_variable))
    return {"left_out": variables[-1].path}


RUNS = {f.__name__: f for f in (plain, mixed_float16, bfloat16, own_loop)}

if __name__ == "__main__":
    for name, make in RUNS.items():
        file = Path(sys.argv[1]) / f"{name}.npz"
        file.with_suffix(".json").write_text(json.dumps(make(str(file))))
