"""Runs of Keras and TensorFlow that write files, and go on.

A run is a small network, or of tf.compat.v1 two variables, that gets the `gradients`.
After BEFORE of them its files are written, and it goes on for AFTER more. ``NAME.npz``
has the weights and the optimizer's variables, as the framework itself has them, before,
and the weights after.
"""

from __future__ import annotations

import itertools
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BEFORE, AFTER = 7, 5
RATE = 0.01


class Framework(NamedTuple):
    """What writes files."""

    packages: tuple[str, ...]
    environment: dict[str, str]
    endings: tuple[str, ...]  # of the files


_TF = ("tf_keras", "tensorflow-cpu")
_OLD = {"TF_USE_LEGACY_KERAS": "1"}
FRAMEWORKS = {
    "keras_jax": Framework(
        ("keras", "jax"), {"KERAS_BACKEND": "jax"}, (".keras", ".weights.h5", ".h5")
    ),
    "keras_tensorflow": Framework(
        ("keras", "tensorflow-cpu"),
        {"KERAS_BACKEND": "tensorflow"},
        (".keras", ".index"),
    ),
    "tf_keras": Framework(_TF, _OLD, (".keras", ".weights.h5", ".h5", ".index")),
    "keras_legacy": Framework(_TF, _OLD, (".h5", ".index")),
    "tensorflow": Framework(("tensorflow-cpu",), {}, (".index",)),
}
KERAS_3 = ("keras_jax", "keras_tensorflow")
# Keras's schedules, with what makes the most of their formulas.
SCHEDULES = [
    ("ExponentialDecay", {"decay_steps": 4, "decay_rate": 0.5}),
    ("ExponentialDecay", {"decay_steps": 4, "decay_rate": 0.5, "staircase": True}),
    ("InverseTimeDecay", {"decay_steps": 4, "decay_rate": 0.5}),
    ("PolynomialDecay", {"decay_steps": 9, "end_learning_rate": 0.002, "power": 2.0}),
    (
        "PolynomialDecay",
        {"decay_steps": 3, "end_learning_rate": 0.002, "power": 0.5, "cycle": True},
    ),
    ("CosineDecay", {"decay_steps": 9, "alpha": 0.1}),
    (
        "CosineDecay",
        {"decay_steps": 4, "alpha": 0.1, "warmup_target": 0.02, "warmup_steps": 6},
    ),
    (
        "CosineDecayRestarts",
        {"first_decay_steps": 3, "t_mul": 2.0, "m_mul": 0.5, "alpha": 0.1},
    ),
    ("PiecewiseConstantDecay", {"boundaries": [3, 9], "values": [0.01, 0.03, 0.02]}),
]


def runs(framework: str) -> dict[str, dict[str, Any]]:
    """The arguments of each run by its name; every combination."""
    is_keras_3 = framework in KERAS_3
    decay = {"keras_legacy": {"decay": 0.1}, "tensorflow": {}}
    switches: dict[str, dict[str, Any]] = {
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
        "decayed": decay.get(framework, {"weight_decay": 0.01}),
        "scheduled": {"scheduled": True},
        "accumulated": {"gradient_accumulation_steps": 3} if is_keras_3 else {},
    }
    switches = {name: arguments for name, arguments in switches.items() if arguments}
    found: dict[str, dict[str, Any]] = {}
    for size in range(len(switches) + 1):
        for names in itertools.combinations(switches, size):
            arguments = {k: v for name in names for k, v in switches[name].items()}
            if arguments.pop("scheduled", False):
                n = 0 if framework == "tensorflow" else len(found) % len(SCHEDULES)
                arguments["schedule"] = [*SCHEDULES[n]]
            # A decay is a schedule itself. On JAX, Keras compiles each run anew.
            twice = {"decay", "schedule"} <= set(arguments)
            slow = framework == "keras_jax" and 2 < size < len(switches)
            if not twice and not slow:
                found["-".join(names) or "plain"] = arguments
    both = {"momentum": 0.9, "centered": True}
    if framework in (*KERAS_3, "tf_keras"):
        for n, schedule in enumerate(SCHEDULES):
            found[f"schedule_{n}"] = {"schedule": [*schedule]}
        found["clipnorm"] = {"clipnorm": 0.5}
        found["global_clipnorm"] = {"global_clipnorm": 0.5}
        found["clipvalue"] = {"clipvalue": 0.3}
        found["ema"] = {"use_ema": True, "ema_overwrite_frequency": None, **both}
    if framework != "tensorflow":
        found["mixed_float16"] = {"dtype": "mixed_float16", **both}
        found["float64"] = {"dtype": "float64", **both}
    if is_keras_3:
        found["bfloat16"] = {"dtype": "bfloat16", **both}
        found["all"] = {
            "dtype": "mixed_float16",
            "use_ema": True,
            "gradient_accumulation_steps": 4,
            "schedule": [*SCHEDULES[0]],
            "clipnorm": 0.5,
            "weight_decay": 0.01,
            **both,
        }
    return found


def gradients(shapes: list[tuple[int, ...]]) -> list[list[np.ndarray]]:
    """Of each step, of each variable, the same everywhere."""
    rng = np.random.default_rng(0)
    # Not around 0, so that what is centered differs from what is not.
    return [
        [rng.normal(0.5, 1.0, shape).astype(np.float32) for shape in shapes]
        for _ in range(BEFORE + AFTER)
    ]


def run(framework: str, path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes a run, writes its files, and says what it holds."""
    if framework == "tensorflow":
        return _run_tensorflow(path, dict(arguments))
    return _run_keras(framework, path, dict(arguments))


def _run_keras(framework: str, path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    is_keras_3 = framework in KERAS_3
    keras = import_module("keras" if is_keras_3 else "tf_keras")
    dtype = arguments.pop("dtype", "float32")
    made = dict(arguments)
    if framework == "keras_jax":
        import_module("jax").config.update("jax_enable_x64", dtype == "float64")
    keras.backend.clear_session()
    keras.backend.set_floatx("float64" if dtype == "float64" else "float32")
    policies = keras.config if is_keras_3 else keras.mixed_precision
    getattr(policies, "set_dtype_policy" if is_keras_3 else "set_global_policy")(dtype)

    rate: Any = RATE
    if "schedule" in made:
        kind, numbers = made.pop("schedule")
        if "boundaries" not in numbers:
            numbers = {"initial_learning_rate": RATE, **numbers}
        rate = getattr(keras.optimizers.schedules, kind)(**numbers)
    kinds = keras.optimizers.legacy if framework == "keras_legacy" else keras.optimizers
    kwargs = {} if is_keras_3 or framework == "keras_legacy" else {"jit_compile": False}
    optimizer = kinds.RMSprop(rate, epsilon=1e-6, **made, **kwargs)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, name="first"),
            layers.BatchNormalization(name="norm"),
            keras.Sequential([layers.Dense(2), layers.Dense(1)], name="block"),
        ]
    )
    model.compile(optimizer, "mse")
    optimizer = model.optimizer  # mixed precision puts a loss scale around it
    model(np.zeros((1, 3), np.float32))
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    variables = model.trainable_variables
    if is_keras_3:
        optimizer.build(variables)

    def label(variable: Any) -> str:
        return getattr(variable, "path", variable.name).removesuffix(":0")

    def arrays(of: Any) -> dict[str, np.ndarray]:
        return {label(v): _array(v) for v in of}

    def step(of_step: list[np.ndarray]) -> None:
        given = of_step
        if optimizer is not inner:  # they come scaled, as from the scaled loss
            scale = optimizer.dynamic_scale if is_keras_3 else optimizer.loss_scale
            scale = float(np.array(scale))
            given = [g * np.float32(scale) for g in of_step]
        if framework == "keras_jax":
            _step_in_jax(optimizer, variables, given)
            return
        to_tensor = import_module("tensorflow").constant
        tensors = [to_tensor(g, variables[0].dtype) for g in given]
        if optimizer is not inner and not is_keras_3:
            optimizer.get_scaled_loss(to_tensor(0.0))  # or it warns that nobody did
            tensors = optimizer.get_unscaled_gradients(tensors)
        optimizer.apply_gradients(zip(tensors, variables, strict=True))

    steps = gradients([tuple(v.shape) for v in variables])
    for of_step in steps[:BEFORE]:
        step(of_step)
    recorded: dict[str, Any] = {
        f"weights/{n}": x for n, x in arrays(model.weights).items()
    }
    own: Any = inner.variables  # of legacy optimizers a function
    own = own() if callable(own) else own
    recorded |= {f"optimizer/{n}": _array(v) for n, v in enumerate(own)}
    _write(framework, path, model)
    for of_step in steps[BEFORE:]:
        step(of_step)
    recorded |= {f"after/{n}": x for n, x in arrays(variables).items()}
    np.savez_compressed(path.with_name(f"{path.name}.npz"), **recorded)
    return {
        "arguments": arguments,
        "dtype": dtype,
        "names": [label(v) for v in variables],
        "weights": [label(v) for v in model.weights],
        "optimizer": [getattr(v, "path", v.name) for v in own],
    }


def _step_in_jax(optimizer: Any, variables: Any, of_step: list[np.ndarray]) -> None:
    """As Keras's own loop does it on JAX: compiled, without side effects."""
    jax = import_module("jax")
    if not hasattr(optimizer, "compiled"):
        optimizer.compiled = jax.jit(optimizer.stateless_apply)
    given = [jax.numpy.asarray(g, variables[0].dtype) for g in of_step]
    own = [v.value for v in optimizer.variables]
    moved, own = optimizer.compiled(own, given, [v.value for v in variables])
    pairs = zip((*variables, *optimizer.variables), (*moved, *own), strict=True)
    for variable, value in pairs:
        variable.assign(value)


def _array(variable: Any) -> np.ndarray:
    """A variable's value; bfloat16, which NumPy's files lack, as float32."""
    array = np.asarray(variable.numpy()).copy()  # the next step writes there
    return array.astype(np.float32) if "bfloat16" in array.dtype.name else array


def _write(framework: str, path: Path, model: Any) -> None:
    """All kinds of files that the framework has."""
    for ending in FRAMEWORKS[framework].endings:
        if ending == ".index":
            tf = import_module("tensorflow")
            tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path))
        elif ending == ".weights.h5":
            model.save_weights(f"{path}{ending}")
        else:
            model.save(f"{path}{ending}")


def _run_tensorflow(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """A graph and a session, as tf.compat.v1 is used."""
    tf = import_module("tensorflow").compat.v1
    made = {"decay": 0.9, "epsilon": 1e-6, **arguments}
    scheduled = made.pop("schedule", None)
    shapes = [(3, 2), (2,)]
    steps = gradients(shapes)
    with tf.Graph().as_default(), tf.Session() as session:
        rng = np.random.default_rng(1)
        variables = [
            tf.get_variable(f"net/{name}", initializer=rng.normal(size=s).astype("f"))
            for name, s in zip(("w", "b"), shapes, strict=True)
        ]
        count = tf.train.get_or_create_global_step()
        rate = tf.train.exponential_decay(RATE, count, 4, 0.5) if scheduled else RATE
        optimizer = tf.train.RMSPropOptimizer(rate, **made)
        given = [tf.placeholder("float32", s) for s in shapes]
        pairs = list(zip(given, variables, strict=True))
        update = optimizer.apply_gradients(pairs, global_step=count)
        average = tf.train.ExponentialMovingAverage(0.9)
        with tf.control_dependencies([update]):
            update = average.apply(variables)
        session.run(tf.global_variables_initializer())
        for of_step in steps[:BEFORE]:
            session.run(update, dict(zip(given, of_step, strict=True)))
        names = [v.op.name for v in variables]
        recorded = {}
        for n, v in zip(names, variables, strict=True):
            recorded[f"weights/{n}"] = session.run(v)
            recorded[f"average/{n}"] = session.run(average.average(v))
        slots = {
            f"{name}/{slot}": optimizer.get_slot(v, slot)
            for slot in optimizer.get_slot_names()
            for name, v in zip(names, variables, strict=True)
        }
        for n, slot in enumerate(slots.values()):
            recorded[f"optimizer/{n}"] = session.run(slot)
        tf.train.Saver().save(session, str(path), write_meta_graph=False)
        for of_step in steps[BEFORE:]:
            session.run(update, dict(zip(given, of_step, strict=True)))
        recorded |= {
            f"after/{n}": session.run(v) for n, v in zip(names, variables, strict=True)
        }
    np.savez_compressed(path.with_name(f"{path.name}.npz"), **recorded)
    return {
        "arguments": arguments,
        "dtype": "float32",
        "names": names,
        "weights": names,
        "optimizer": [*slots],
    }
