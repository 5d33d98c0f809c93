"""The state of ``paddle.optimizer.RMSProp`` in a ``.pdopt`` file.

A dictionary of arrays, with a key for each moment of each parameter, such as
``linear_0.w_0_mean_square_0``:

    mean_square     nu; centered, ν = E[g²] − m²
    momentum        mu, with the rate inside as in the dialect; always there
    mean_grad       grad_mean; always there, and 0 unless centered
    LR_Scheduler    last_epoch: the count of the schedule; without one there is no count

The settings are not in the file. In the ``.pdparams`` beside it,
``StructuredToParameterName@@`` says which weight of the model is ``linear_0.w_0``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints._arrays import as_array, as_float
from rmsprop_jax.checkpoints._files import File
from rmsprop_jax.checkpoints._pickles import opened, read
from rmsprop_jax.checkpoints._records import Group, Record, Wording, from_records

StateDict: TypeAlias = Mapping[str, Any]

_KEYS = {"nu": "mean_square", "mu": "momentum", "grad_mean": "mean_grad"}
# A number at the end tells Paddle's variables apart. With mixed precision the moments
# are those of the float32 weights.
_KEY = re.compile(r"(.+?)(?:_fp32_master_\d+)?_(mean_square|momentum|mean_grad)_\d+")
_NAMES = "StructuredToParameterName@@"
_SCHEDULER = "LR_Scheduler"
_WORDING = Wording(
    keys=_KEYS,
    to_drop="take their keys out of state_dict.",
    to_join="Make one optimizer of them first.",
)


def from_paddle(
    state_dict: StateDict | File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
    *,
    learning_rate: optax.ScalarOrSchedule,
    rho: float,
    epsilon: float,
    momentum: optax.ScalarOrSchedule,
    centered: bool,
    weight_decay: float | None,
    names: Mapping[str, str] | File | None = None,
    count: int | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where Paddle stopped.

    Paddle does not save the settings: give those that the optimizer was made with. (Its
    own defaults are those of `rmsprop_jax.dialects.paddle`.) Groups of parameters with
    settings of their own are not in the file either: then give a part of the dictionary
    for each group, and put them together by ``optax.partition``.

    Args:
        state_dict: A file that ``paddle.save(optimizer.state_dict(), ...)`` wrote
            (``.pdopt``), or the dictionary, of Paddle's tensors or NumPy arrays.
        to_params: As in `from_torch`.
        learning_rate: The rate, or a schedule: a function of the count of updates.
        rho: See `rmsprop_jax.dialects.paddle`.
        epsilon: Likewise.
        momentum: Likewise.
        centered: Likewise.
        weight_decay: Likewise.
        names: Which of Paddle's own names, such as ``linear_0.w_0``, is which weight:
            the ``.pdparams`` file beside it, or what
            ``{name: p.name for name, p in model.named_parameters()}`` makes. By default
            the parameters have Paddle's own names.
        count: The number of updates so far. By default ``last_epoch`` of the scheduler
            in the file, or 0 without one: only a schedule depends on it.

    Returns:
        ``(tx, opt_state)`` with `rmsprop_jax.dialects.paddle`. The state is like that
        of ``tx.init(params)``. It shares no memory with ``state_dict``.

    Raises:
        ValueError: Where the dictionary is not one of ``paddle.optimizer.RMSProp``,
            lacks something, or was made with other settings; where ``names`` or
            ``to_params`` do not fit it.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import from_paddle
        >>> state_dict = {
        ...     "linear_0.b_0_mean_square_0": np.array([4.0, 1.0], np.float32),
        ...     "linear_0.b_0_momentum_0": np.array([0.5, 0.0], np.float32),
        ...     "linear_0.b_0_mean_grad_0": np.zeros(2, np.float32),
        ... }
        >>> tx, state = from_paddle(
        ...     state_dict,
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
    saved = opened(state_dict, "paddle")
    moments = _moments(saved)
    _check_centered(moments, centered=centered)
    found = _names(names, [*moments])
    if count is None:
        count = int(as_float(saved.get(_SCHEDULER, {}).get("last_epoch", 0)))
    settings = {
        "learning_rate": learning_rate,
        "rho": rho,
        "epsilon": epsilon,
        "momentum": momentum,
        "centered": centered,
        "weight_decay": weight_decay,
    }
    records = [
        Record(name, 0, count, **arrays)
        for name, arrays in zip(found, moments.values(), strict=True)
    ]
    return from_records(
        records, [Group(dialects.paddle, settings)], to_params, _WORDING
    )


def weights(path: File) -> dict[str, np.ndarray]:
    """The weights in a ``.pdparams`` file."""
    found = {k: v for k, v in read(path).items() if k != _NAMES}
    odd = [key for key, value in found.items() if not isinstance(value, np.ndarray)]
    if odd or not found or any(_KEY.fullmatch(key) for key in found):
        raise ValueError(
            f"{os.fspath(path)!r} must hold weights by name, as "
            f"paddle.save(model.state_dict(), ...) writes them, but it holds "
            f"{(odd or [*found])[:8]}."
        )
    return {name: _exact(array) for name, array in found.items()}


def _exact(value: npt.ArrayLike) -> np.ndarray:
    """An array of Paddle's: its bfloat16, which NumPy does not have, are 16 bits."""
    array = np.asarray(value)
    return array.view(jnp.bfloat16) if array.dtype == np.uint16 else array


def _moments(state_dict: StateDict) -> dict[str, dict[str, np.ndarray]]:
    """The moments of each parameter, by our names, of those by Paddle's."""
    fields = {key: field for field, key in _KEYS.items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state_dict.items():
        if key in (_NAMES, _SCHEDULER, "master_weights"):
            continue
        match = _KEY.fullmatch(key)
        if not match:
            raise ValueError(
                "state_dict must be that of paddle.optimizer.RMSProp, with keys like "
                f"'linear_0.w_0_mean_square_0', but it has {key!r}. Of a whole "
                "checkpoint give the optimizer's part; another optimizer's state can't "
                "be carried over."
            )
        found.setdefault(match[1], {})[fields[match[2]]] = as_array(_exact(value))
    for name, arrays in found.items():
        missing = [key for field, key in _KEYS.items() if field not in arrays]
        shapes = {array.shape for array in arrays.values()}
        if missing or len(shapes) > 1:
            raise ValueError(
                f"state_dict must have all moments of {name!r}, and of one shape, but "
                + (f"{missing[0]!r} is missing." if missing else f"it has {shapes}.")
            )
    if not found:
        raise ValueError(
            "state_dict must be that of a paddle.optimizer.RMSProp that has stepped, "
            f"but it has only {[*state_dict]}."
        )
    return found


def _check_centered(
    moments: Mapping[str, Mapping[str, np.ndarray]], *, centered: bool
) -> None:
    """Raises where the means of the gradients belie it."""
    was = any(arrays["grad_mean"].any() for arrays in moments.values())
    stepped = any(arrays["nu"].any() for arrays in moments.values())
    if was != bool(centered) and stepped:
        raise ValueError(
            f"centered must be {was}, as the optimizer was made with, but it was "
            f"{centered}: the 'mean_grad' in state_dict are "
            f"{'not' if was else 'all'} 0."
        )


def _names(names: Mapping[str, str] | File | None, own: list[str]) -> list[str]:
    """The names of the weights that Paddle calls `own`."""
    if names is None:
        return own
    given = opened(names, "paddle")
    name_of = {theirs: name for name, theirs in given.get(_NAMES, given).items()}
    lost = [name for name in own if name not in name_of]
    if lost:
        raise ValueError(
            f"names must have all parameters of the optimizer, but {lost[0]!r} is not "
            f"among {[*name_of][:8]}. Paddle numbers the layers of a process as it "
            "makes them: take the names from the run that wrote the file."
        )
    return [name_of[name] for name in own]
