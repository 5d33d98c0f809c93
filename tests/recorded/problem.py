"""The problem that every RMSProp is given, theirs and ours: only NumPy is needed here.

The gradients are drawn beforehand, so that a difference between two rules is not hidden
or amplified by a loss. Gradients, parameters and rates are float32 numbers, so that a
float32 and a float64 run see the same ones.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

SIZE = 36  # real numbers in all
RECORDED = (1, 2, 5, 20, 45, 61, 80, 100)  # steps after which parameters are kept
TORCH_RECORDED = (1, 2, 5, 20, 61, 100, 150, 200)

Arguments = dict[str, Any]


class Configuration(NamedTuple):
    """A call of a dialect, but for its rate, and the rates of each step."""

    arguments: Arguments
    schedule: str  # a key of `rates`

    @property
    def name(self) -> str:
        words = [f"{name}={value}" for name, value in self.arguments.items()]
        return ",".join([*words, self.schedule])


def start() -> np.ndarray:
    """The parameters at the start, float32 [SIZE]."""
    return np.random.default_rng(1).normal(0, 0.1, SIZE).astype(np.float32)


def gradients(steps: int) -> np.ndarray:
    """The gradient of each step, float32 [steps, SIZE].

    The scales span six orders of magnitude. Some gradients are zero now and then, one
    at first and one always; a few have a mean of 10 deviations, which a centered rule
    has to subtract.
    """
    rng = np.random.default_rng(2)
    scale = 10.0 ** rng.permutation(np.linspace(-4, 2, SIZE))
    mean = np.zeros(SIZE)
    mean[::5] = 1.0
    mean[::9] = 10.0
    drawn = scale * (mean + rng.normal(size=(300, SIZE)))
    drawn[rng.random(drawn.shape) < 0.05] = 0.0
    drawn[:7, 3] = 0.0
    drawn[:, 4] = 0.0
    return drawn[:steps].astype(np.float32)


def rates(schedule: str, steps: int) -> np.ndarray:
    """The rate of each step, float64 [steps] but with float32 values.

    "scheduled" warms up, drops to a tenth, is 0 at one step, rises, and decays.
    """
    t = np.arange(steps)
    rate = np.full(steps, 1 / 64)
    if schedule == "scheduled":
        rate = np.where(t < 20, (t + 1) / 20, 1.0) / 32
        rate[40:60] /= 10
        rate[60] = 0.0
        rate[75:] *= 0.98 ** (t[75:] - 75)
    return rate.astype(np.float32).astype(np.float64)


def leaves(framework: str, flat: np.ndarray) -> list[np.ndarray]:
    """The parameters or gradients, [..., SIZE], as the leaves of a framework's model.

    torch has complex numbers too, and timm's caution sees leaves as a whole.
    """
    if framework.startswith("torch"):
        return [
            flat[..., :24],
            np.ascontiguousarray(flat[..., 24:]).view(_complex(flat)),
        ]
    if framework == "timm":
        return [flat[..., :24], flat[..., 24:]]
    return [flat]


def flat(leaves: list[Any]) -> np.ndarray:
    """The inverse of `leaves`."""
    reals = [x.view(x.real.dtype) if np.iscomplexobj(x) else x for x in leaves]
    return np.concatenate(reals, axis=-1)


def _complex(x: np.ndarray) -> type:
    return np.complex64 if x.dtype == np.float32 else np.complex128


def recorded_steps(framework: str) -> tuple[int, ...]:
    return TORCH_RECORDED if framework.startswith("torch") else RECORDED


def _grid(**choices: tuple[Any, ...]) -> list[Arguments]:
    return [
        dict(zip(choices, values, strict=True))
        for values in itertools.product(*choices.values())
    ]


def _float32(arguments: Arguments) -> Arguments:
    return {
        name: float(np.float32(value)) if isinstance(value, float) else value
        for name, value in arguments.items()
    }


_FLAGS = (False, True)
_MOMENTUM = (0.0, 0.9)
_DECAY = (0.0, 0.001)

_TORCH = [
    {"alpha": alpha, "eps": eps} | rest
    for alpha, eps in ((0.99, 1e-8), (0.9, 1e-3), (0.5, 1e-8))
    for rest in _grid(
        weight_decay=_DECAY, momentum=_MOMENTUM, centered=_FLAGS, maximize=_FLAGS
    )
]
_KERAS = _grid(momentum=_MOMENTUM, centered=_FLAGS, weight_decay=(None, 0.001))
_DECAYS = [
    {},
    {"weight_decay": 0.001},
    {"weight_decay": 0.05, "decoupled_decay": True},
    {"weight_decay": 0.05, "decoupled_decay": True, "corrected_weight_decay": True},
]

_ARGUMENTS: dict[str, list[Arguments]] = {
    "torch": _TORCH,
    "torch_foreach": _TORCH,
    "keras_jax": _KERAS,
    "keras_torch": _KERAS,
    # It takes the decay as float32, whatever the parameters are.
    "tf_keras": [_float32(arguments | {"rho": 0.9}) for arguments in _KERAS],
    "tensorflow": _grid(
        decay=(0.9,), epsilon=(1e-10, 0.001), momentum=_MOMENTUM, centered=_FLAGS
    ),
    "keras_legacy": _grid(
        rho=(0.9,), epsilon=(1e-7,), momentum=_MOMENTUM, centered=_FLAGS
    ),
    "sonnet": _grid(
        decay=(0.9,), epsilon=(1e-10,), momentum=_MOMENTUM, centered=_FLAGS
    ),
    "timm": [
        {"eps": 0.001} | decay | rest
        for decay in _DECAYS
        for rest in [
            *_grid(centered=_FLAGS, momentum=_MOMENTUM),
            *_grid(momentum=(0.9,), lr_in_momentum=(False,)),
            *_grid(caution=(True,), momentum=(0.9,), lr_in_momentum=_FLAGS),
        ]
    ],
    "stable_baselines3": _grid(
        eps=(1e-8, 0.001),
        momentum=_MOMENTUM,
        centered=_FLAGS,
        weight_decay=_DECAY,
    ),
    "optax": [
        *_grid(momentum=(None, 0.9), centered=_FLAGS, eps_in_sqrt=_FLAGS),
        *_grid(momentum=(0.9,), nesterov=(True,), centered=_FLAGS),
        *_grid(initial_scale=(1.0,), momentum=(None, 0.9)),
        *_grid(bias_correction=(True,), momentum=(None, 0.9), eps_in_sqrt=_FLAGS),
        # At the first step their corrected variance is a rounding error: without an
        # eps that covers it there is nothing to compare with.
        *_grid(bias_correction=(True,), centered=(True,), eps=(100.0,)),
    ],
    "jax_example_libraries": _grid(momentum=_MOMENTUM, gamma=(0.9, 0.99)),
    "mlx": _grid(alpha=(0.99, 0.9), eps=(1e-8, 1e-3)),
    # Paddle's kernel takes these numbers as float32, whatever the parameters are.
    "paddle": [
        _float32(arguments | {"rho": 0.95, "epsilon": 1e-6})
        for arguments in _grid(
            momentum=_MOMENTUM, centered=_FLAGS, weight_decay=(None, 0.001)
        )
    ],
}


def configurations(framework: str) -> list[Configuration]:
    return [
        Configuration(arguments, schedule)
        for arguments in _ARGUMENTS[framework]
        for schedule in ("constant", "scheduled")
    ]
