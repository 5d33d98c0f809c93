"""Every framework's own RMSProp, run on the problem's gradients.

Each function makes the framework's optimizer with the arguments of its dialect, and
yields the parameters after every step. The frameworks are imported when they are run,
each in a process of its own, as they do not all get on with each other.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

# The arguments but for the rate, the rate of each step, the parameters (a list of
# leaves) and the gradients (a list of leaves with an axis of steps in front).
Run = Callable[
    [dict[str, Any], list[float], list[np.ndarray], list[np.ndarray]],
    Iterator[list[Any]],
]


class Framework(NamedTuple):
    """A framework's RMSProp."""

    dialect: str  # the name of ours
    packages: tuple[str, ...]  # the distributions that decide, theirs first
    make: Callable[[], Any]  # gets what makes the optimizer, whose defaults are ours
    run: Run
    environment: Mapping[str, str] = MappingProxyType({})
    recorded: bool = True  # or only run live, and compared with the same as "torch"


def _constant(rates: list[float]) -> bool:
    return len(set(rates)) == 1


def _torch_like(make: Callable[..., Any]) -> Run:
    def run(arguments, rates, params, gradients):
        torch, rmsprop = import_module("torch"), make()
        ps = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        # timm reads the largest rate from the one that it is made with.
        optimizer = rmsprop(ps, lr=max(rates), **arguments)
        for t, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            for p, g in zip(ps, gradients, strict=True):
                p.grad = torch.tensor(g[t])
            optimizer.step()
            yield [p.detach().numpy() for p in ps]

    return run


def _torch() -> Any:
    return import_module("torch").optim.RMSprop


def _torch_foreach() -> Any:
    return functools.partial(_torch(), foreach=True)


def with_timm(name: str) -> Any:
    """A module of timm.

    timm imports torchvision, which must have been built for this very torch. Where it
    was not, two operators are missing, which timm's optimizers do not need.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        for module in [m for m in sys.modules if m.startswith("torchvision")]:
            del sys.modules[module]
        library = import_module("torch").library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")
        _KEPT.append(library)
    return import_module(name)


_KEPT = []  # a library that is collected takes its operators along


def _timm() -> Any:
    return with_timm("timm.optim").RMSpropTF


def _stable_baselines3() -> Any:
    return import_module(
        "stable_baselines3.common.sb2_compat.rmsprop_tf_like"
    ).RMSpropTFLike


def _keras() -> Any:
    return import_module("keras").optimizers.RMSprop


def _run_keras(arguments, rates, params, gradients):
    keras = import_module("keras")
    if keras.backend.backend() == "jax":
        import_module("jax").config.update(
            "jax_enable_x64", params[0].dtype == np.float64
        )
    keras.config.set_floatx(params[0].dtype.name)
    table = keras.ops.convert_to_tensor(np.asarray(rates))

    class Table(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return table[keras.ops.cast(step, "int32")]

    rate = rates[0] if _constant(rates) else Table()
    optimizer = _keras()(learning_rate=rate, **arguments)
    variables = [keras.Variable(p, dtype=p.dtype.name) for p in params]
    for t in range(len(rates)):
        optimizer.apply(
            [keras.ops.convert_to_tensor(g[t]) for g in gradients], variables
        )
        yield [keras.ops.convert_to_numpy(v) for v in variables]


def _tensorflow_like(make: Callable[[], Any]) -> Run:
    def run(arguments, rates, params, gradients):
        tf = import_module("tensorflow")
        # They take a Python number as float32, whatever the variables are; a momentum
        # of 0 is exact, and has to stay a number that Keras can read.
        numbers = {
            name: tf.constant(value, params[0].dtype)
            if isinstance(value, float) and value
            else value
            for name, value in arguments.items()
        }
        variables = [tf.Variable(p) for p in params]
        rate = tf.Variable(0.0, dtype=params[0].dtype)
        optimizer = make()(learning_rate=rate.value, **numbers)
        for t, value in enumerate(rates):
            rate.assign(value)
            gs = [tf.constant(g[t]) for g in gradients]
            optimizer.apply_gradients(zip(gs, variables, strict=True))
            yield [v.numpy() for v in variables]

    return run


def _tensorflow() -> Any:
    return import_module("tensorflow").compat.v1.train.RMSPropOptimizer


def _keras_legacy() -> Any:
    return import_module("tf_keras").optimizers.legacy.RMSprop


def _sonnet() -> Any:
    return import_module("sonnet").optimizers.RMSProp


def _run_sonnet(arguments, rates, params, gradients):
    tf = import_module("tensorflow")
    variables = [tf.Variable(p) for p in params]
    rate = tf.Variable(0.0, dtype=params[0].dtype)
    numbers = {  # Sonnet takes a Python number as float32, whatever the variables are
        name: tf.constant(value, params[0].dtype) if isinstance(value, float) else value
        for name, value in arguments.items()
    }
    optimizer = _sonnet()(rate, **numbers)
    for t, value in enumerate(rates):
        rate.assign(value)
        optimizer.apply([tf.constant(g[t]) for g in gradients], variables)
        yield [v.numpy() for v in variables]


def _tf_keras() -> Any:
    return import_module("tf_keras").optimizers.RMSprop


def _run_tf_keras(arguments, rates, params, gradients):
    tf, tf_keras = import_module("tensorflow"), import_module("tf_keras")
    table = tf.constant(rates, params[0].dtype)

    class Table(tf_keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return table[tf.cast(step, tf.int32)]

    rate = rates[0] if _constant(rates) else Table()
    optimizer = _tf_keras()(learning_rate=rate, jit_compile=False, **arguments)
    variables = [tf.Variable(p) for p in params]
    optimizer.build(variables)
    for t in range(len(rates)):
        gs = [tf.constant(g[t]) for g in gradients]
        optimizer.apply_gradients(zip(gs, variables, strict=True))
        yield [v.numpy() for v in variables]


def _optax() -> Any:
    return import_module("optax").rmsprop


def _run_optax(arguments, rates, params, gradients):
    jax, optax = import_module("jax"), import_module("optax")
    jax.config.update("jax_enable_x64", params[0].dtype == np.float64)
    table = jax.numpy.asarray(rates)
    rate = rates[0] if _constant(rates) else lambda count: table[count]
    tx = _optax()(rate, **arguments)
    ps = [jax.numpy.asarray(p) for p in params]
    state = tx.init(ps)

    @jax.jit
    def step(gs, state, ps):
        updates, state = tx.update(gs, state, ps)
        return optax.apply_updates(ps, updates), state

    for t in range(len(rates)):
        ps, state = step([g[t] for g in gradients], state, ps)
        yield [np.asarray(p) for p in ps]


def _jax_example_libraries() -> Any:
    return import_module("jax.example_libraries.optimizers").rmsprop


def _run_jax_example_libraries(arguments, rates, params, gradients):
    jax = import_module("jax")
    jax.config.update("jax_enable_x64", params[0].dtype == np.float64)
    table = jax.numpy.asarray(rates)
    rate = rates[0] if _constant(rates) else lambda count: table[count]
    numbers = dict(arguments)
    momentum = numbers.pop("momentum")
    make = _jax_example_libraries()
    if momentum:
        make = import_module("jax.example_libraries.optimizers").rmsprop_momentum
        numbers["momentum"] = momentum
    init, update, read = make(rate, **numbers)
    update = jax.jit(update)
    state = init(params)
    for t in range(len(rates)):
        state = update(t, [g[t] for g in gradients], state)
        yield [np.asarray(p) for p in read(state)]


def _mlx() -> Any:
    return import_module("mlx.optimizers").RMSprop


def _run_mlx(arguments, rates, params, gradients):
    mx = import_module("mlx.core")
    mx.set_default_device(mx.cpu)  # the only device with float64
    mx_dtype = getattr(mx, params[0].dtype.name)
    table = mx.array(rates)
    rate = rates[0] if _constant(rates) else lambda count: table[count]
    optimizer = _mlx()(rate, **arguments)
    ps = {str(i): mx.array(p, dtype=mx_dtype) for i, p in enumerate(params)}
    for t in range(len(rates)):
        gs = {str(i): mx.array(g[t], dtype=mx_dtype) for i, g in enumerate(gradients)}
        ps = optimizer.apply_gradients(gs, ps)
        mx.eval(ps, optimizer.state)
        yield [np.array(p) for p in ps.values()]


def _paddle() -> Any:
    return import_module("paddle").optimizer.RMSProp


def _run_paddle(arguments, rates, params, gradients):
    paddle = import_module("paddle")
    paddle.set_device("cpu")
    paddle.set_default_dtype(params[0].dtype.name)
    ps = [paddle.to_tensor(p, stop_gradient=False) for p in params]
    optimizer = _paddle()(rates[0], parameters=ps, **arguments)
    for t, rate in enumerate(rates):
        optimizer.set_lr(rate)
        for p, g in zip(ps, gradients, strict=True):
            (p * paddle.to_tensor(g[t])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        yield [p.numpy() for p in ps]


_TF = "tensorflow"

FRAMEWORKS = {
    "torch": Framework("torch", ("torch",), _torch, _torch_like(_torch)),
    "torch_foreach": Framework(
        "torch",
        ("torch",),
        _torch,
        _torch_like(_torch_foreach),
        recorded=False,
    ),
    "timm": Framework("timm", ("timm", "torch"), _timm, _torch_like(_timm)),
    "stable_baselines3": Framework(
        "stable_baselines3",
        ("stable-baselines3", "torch"),
        _stable_baselines3,
        _torch_like(_stable_baselines3),
    ),
    "keras_jax": Framework(
        "keras",
        ("keras", "jax"),
        _keras,
        _run_keras,
        MappingProxyType({"KERAS_BACKEND": "jax"}),
    ),
    "keras_torch": Framework(
        "keras",
        ("keras", "torch"),
        _keras,
        _run_keras,
        MappingProxyType({"KERAS_BACKEND": "torch"}),
    ),
    "tf_keras": Framework("keras", ("tf_keras", _TF), _tf_keras, _run_tf_keras),
    "keras_legacy": Framework(
        "keras_legacy",
        ("tf_keras", _TF),
        _keras_legacy,
        _tensorflow_like(_keras_legacy),
    ),
    "tensorflow": Framework(
        "tensorflow", (_TF,), _tensorflow, _tensorflow_like(_tensorflow)
    ),
    "sonnet": Framework("sonnet", ("dm-sonnet", _TF), _sonnet, _run_sonnet),
    "optax": Framework("optax", ("optax", "jax"), _optax, _run_optax),
    "jax_example_libraries": Framework(
        "jax_example_libraries",
        ("jax",),
        _jax_example_libraries,
        _run_jax_example_libraries,
    ),
    "mlx": Framework("mlx", ("mlx",), _mlx, _run_mlx),
    "paddle": Framework("paddle", ("paddlepaddle",), _paddle, _run_paddle),
}
