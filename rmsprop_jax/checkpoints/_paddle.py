"""Read the state of ``paddle.optimizer.RMSProp`` from a ``.pdopt`` file.

The file is a dictionary of arrays, with a key for each moment of each parameter, such
as ``linear_0.w_0_mean_square_0``:

    mean_square     nu; if centered, ν = E[g²] − m²
    momentum        mu, which includes the learning rate as in the dialect; always there
    mean_grad       grad_mean; always there, and 0 unless centered
    LR_Scheduler    last_epoch: the schedule's count; only there with a schedule

The settings are not in the file. In the ``.pdparams`` file that is saved with it,
``StructuredToParameterName@@`` says which weight of the model is ``linear_0.w_0``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import dialects
from rmsprop_jax._optimizer.state import LARGEST_COUNT
from rmsprop_jax.checkpoints._convert.arrays import NumpyArray, Value, to_numpy
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import (
    ErrorHints,
    Group,
    Moment,
    ParamState,
    Run,
    ToParams,
    make_run,
)
from rmsprop_jax.checkpoints._readers import read_file
from rmsprop_jax.checkpoints._readers.source import (
    File,
    StoredArray,
    explain_content_errors,
)

MOMENT_KEYS: dict[Moment, str] = {
    "nu": "mean_square",
    "mu": "momentum",
    "grad_mean": "mean_grad",
}
# A number at the end distinguishes Paddle's variables. With mixed precision, the
# moments belong to the float32 master weights.
_KEY = re.compile(r"(.+?)(?:_fp32_master_\d+)?_(mean_square|momentum|mean_grad)_\d+")
NAMES_KEY = "StructuredToParameterName@@"
_SCHEDULER = "LR_Scheduler"
_MASTER_WEIGHTS = "master_weights"
_HINTS = ErrorHints(
    keys=MOMENT_KEYS,
    to_drop="take their keys out of the checkpoint.",
    to_join="Combine them in one optimizer first.",
)

StateDict: TypeAlias = Mapping[str, Any]


def from_paddle(
    checkpoint: StateDict | File,
    to_params: ToParams | None = None,
    *,
    learning_rate: optax.ScalarOrSchedule,
    rho: float,
    epsilon: float,
    momentum: optax.ScalarOrSchedule,
    centered: bool,
    weight_decay: float | None,
    names: Mapping[str, str] | File | None = None,
    count: int | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Resume a run of ``paddle.optimizer.RMSProp`` in JAX.

    Paddle does not save the settings, so give those that the optimizer was made with.
    (Its own defaults are those of `rmsprop_jax.dialects.paddle`.) Parameter groups with
    their own settings are not in the file either: convert a part of the dictionary for
    each group, and join the results with ``optax.partition``.

    Args:
        checkpoint: A file that ``paddle.save(optimizer.state_dict(), ...)`` wrote
            (``.pdopt``), or the dictionary, of Paddle's tensors or NumPy arrays.
        to_params: As in `from_torch`.
        learning_rate: A number, or a schedule: a function of the step count.
        rho: As in `rmsprop_jax.dialects.paddle`.
        epsilon: As in `rmsprop_jax.dialects.paddle`.
        momentum: As in `rmsprop_jax.dialects.paddle`.
        centered: As in `rmsprop_jax.dialects.paddle`.
        weight_decay: As in `rmsprop_jax.dialects.paddle`.
        names: The weight for each of Paddle's own names, such as ``linear_0.w_0``:
            the ``.pdparams`` file of the same run, or the dictionary
            ``{name: p.name for name, p in model.named_parameters()}``. By default the
            parameters have Paddle's own names.
        count: The step count, on which only a schedule depends. By default it is
            ``last_epoch`` of the scheduler in the file, or 0 if there is no scheduler.
        shardings: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` with `rmsprop_jax.dialects.paddle`. The state is like that
        of ``tx.init(params)``. It shares no memory with ``checkpoint``.

    Raises:
        ValueError: If the dictionary is not one of ``paddle.optimizer.RMSProp``, lacks
            something, or was made with other settings; if ``names`` or ``to_params`` do
            not fit it.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_paddle
        >>> checkpoint = {
        ...     "linear_0.b_0_mean_square_0": np.array([4.0, 1.0], np.float32),
        ...     "linear_0.b_0_momentum_0": np.array([0.5, 0.0], np.float32),
        ...     "linear_0.b_0_mean_grad_0": np.zeros(2, np.float32),
        ... }
        >>> tx, state = from_paddle(
        ...     checkpoint,
        ...     learning_rate=0.1,
        ...     rho=0.95,
        ...     epsilon=1e-6,
        ...     momentum=0.9,
        ...     centered=False,
        ...     weight_decay=None,
        ...     names={"bias": "linear_0.b_0"},
        ... )
        >>> state.mu
        {'bias': Array([0.5, 0. ], dtype=float32)}

    References:
        paddlepaddle 3.3.1, ``paddle/optimizer/rmsprop.py`` and ``optimizer.py``.
    """
    what, content = _read(checkpoint)
    with explain_content_errors(what):
        moments = collect_moments(what, content)
        _check_centered(what, moments, centered=centered)
        if count is None:
            count = read_count(what, content)
    found = _rename(names, [*moments])
    settings = {
        "rho": rho,
        "epsilon": epsilon,
        "momentum": momentum,
        "centered": centered,
        "weight_decay": weight_decay,
    }
    params = [
        ParamState(name, 0, count, **arrays)
        for name, arrays in zip(found, moments.values(), strict=True)
    ]
    group = Group(dialects.paddle, learning_rate, settings)
    return make_run(what, params, [group], to_params, _HINTS, shardings=shardings)


def find_paddle_weights(what: str, content: object) -> dict[str, NumpyArray]:
    """Return the weights in a ``.pdparams`` file."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must hold weights by name, but it holds none.")
    found = {k: v for k, v in content.items() if k != NAMES_KEY}
    arrays = (np.ndarray, StoredArray)
    odd = [key for key, value in found.items() if not isinstance(value, arrays)]
    if odd or not found or any(_KEY.fullmatch(str(key)) for key in found):
        raise ValueError(
            f"{what} must hold weights by name, as paddle.save(model.state_dict(), "
            f"...) writes them, but it holds {(odd or [*found])[:8]}."
        )
    return {name: np.asarray(_view_bfloat16(x)) for name, x in found.items()}


def _read(checkpoint: StateDict | File) -> tuple[str, Any]:
    if isinstance(checkpoint, str | os.PathLike):
        content = read_file(checkpoint, "paddle").content
        return repr(os.fspath(checkpoint)), content
    return "checkpoint", checkpoint


def _view_bfloat16(value: Value) -> Value:
    """Return Paddle's bfloat16, which NumPy sees as 16-bit integers, as bfloat16."""
    if isinstance(value, StoredArray):
        is_bfloat16 = value.dtype == np.uint16
        dtype = jnp.dtype(jnp.bfloat16) if is_bfloat16 else value.dtype
        return dataclasses.replace(value, dtype=dtype)
    array = np.asarray(value)
    return array.view(jnp.bfloat16) if array.dtype == np.uint16 else array


def collect_moments(
    what: str, content: object
) -> dict[str, dict[Moment, NumpyArray | StoredArray]]:
    """Return the moments of each parameter, by Paddle's names of the parameters."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{what} must hold the state of a paddle.optimizer.RMSProp, but it holds "
            f"{type(content).__name__}."
        )
    moment_of: dict[str, Moment] = {key: moment for moment, key in MOMENT_KEYS.items()}
    found: dict[str, dict[Moment, NumpyArray | StoredArray]] = {}
    for key, value in content.items():
        if key in (NAMES_KEY, _SCHEDULER, _MASTER_WEIGHTS):
            continue
        match = _KEY.fullmatch(str(key))
        if not match:
            raise ValueError(
                f"{what} must hold the state of a paddle.optimizer.RMSProp, with keys "
                f"like 'linear_0.w_0_mean_square_0', but it has {key!r}. If it is a "
                "whole checkpoint, give the optimizer's part; the state of another "
                "optimizer can't be converted."
            )
        array = _view_bfloat16(value)
        if not isinstance(array, StoredArray):
            array = to_numpy(array)
        found.setdefault(match[1], {})[moment_of[match[2]]] = array
    for name, arrays in found.items():
        missing = [key for moment, key in MOMENT_KEYS.items() if moment not in arrays]
        shapes = {array.shape for array in arrays.values()}
        if missing or len(shapes) > 1:
            raise ValueError(
                f"{what} must have all moments of {name!r}, all of one shape, but "
                + (f"{missing[0]!r} is missing." if missing else f"it has {shapes}.")
            )
    if not found:
        raise ValueError(
            f"{what} must hold the state of a paddle.optimizer.RMSProp that has made a "
            f"step, but it has only {[*content]}."
        )
    return found


def read_count(what: str, content: StateDict) -> int:
    scheduler = content.get(_SCHEDULER, {})
    count = scheduler.get("last_epoch", 0) if isinstance(scheduler, Mapping) else None
    if not isinstance(count, int) or count < 0:
        raise ValueError(
            f"{what} must have a whole number as the last_epoch of its {_SCHEDULER}, "
            f"but it was {scheduler!r}."
        )
    return min(count, LARGEST_COUNT)


def _check_centered(
    what: str,
    moments: Mapping[str, Mapping[Moment, Value]],
    *,
    centered: bool,
) -> None:
    """Raise if the means of the gradients contradict ``centered``."""
    was = any(np.any(arrays["grad_mean"]) for arrays in moments.values())
    stepped = any(np.any(arrays["nu"]) for arrays in moments.values())
    if was != bool(centered) and stepped:
        raise ValueError(
            f"centered must be {was}, as the optimizer was made with, but it was "
            f"{centered}: the 'mean_grad' in {what} are "
            f"{'not all 0' if was else 'all 0'}."
        )


def _rename(names: Mapping[str, str] | File | None, own: list[str]) -> list[str]:
    """Return the names of the weights that Paddle calls `own`."""
    if names is None:
        return own
    what, given = _read(names)
    given = given.get(NAMES_KEY, given) if isinstance(given, Mapping) else {}
    pairs = given.items() if isinstance(given, Mapping) else ()
    name_of = {
        theirs: name
        for name, theirs in pairs
        if isinstance(name, str) and isinstance(theirs, str)
    }
    lost = [name for name in own if name not in name_of]
    if lost:
        raise ValueError(
            "names must have all parameters of the optimizer, but "
            f"{'it' if what == 'checkpoint' else what} has no {lost[0]!r}. It has "
            f"{[*name_of][:8]}. Paddle numbers layers in the order in which a process "
            "makes them, so take the names from the run that wrote the file."
        )
    return [name_of[name] for name in own]
