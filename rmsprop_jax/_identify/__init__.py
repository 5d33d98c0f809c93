"""Find which RMSProp made a run: the rule and its hyperparameters."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import experimental
from jax.typing import ArrayLike

from rmsprop_jax._identify.causes import list_causes
from rmsprop_jax._identify.explanation import Explanation
from rmsprop_jax._identify.interpreting import interpret
from rmsprop_jax._identify.match import Match
from rmsprop_jax._identify.progress import make_bar
from rmsprop_jax._identify.recording import Recording, make_recording
from rmsprop_jax._identify.run import Run, read_run
from rmsprop_jax._identify.search import Found, find_rules
from rmsprop_jax._identify.thresholds import (
    ELEMENTS,
    ELEMENTS_WITH_STATE,
    MAX_LEAVES_ALONE,
    MAX_LEAVES_UNEXPLAINED,
)
from rmsprop_jax._optimizer.step_numbers import evaluate

__all__ = ["Explanation", "Match", "identify"]


def identify(
    params: optax.Params,
    gradients: optax.Updates,
    *,
    learning_rate: optax.ScalarOrSchedule | ArrayLike | Sequence[float] | None = None,
    count: int = 0,
    gradient_norms: ArrayLike | None = None,
) -> Match:
    """Find the RMSProp that made a run, and its hyperparameters.

    Use it if a port diverges from its original: record a few dozen steps of the
    original, from any framework, and see which rule explains them. It tries every rule
    of `rmsprop_jax.dialects` with common extensions: clipped gradients, weight decay on
    some leaves, a learning rate for each leaf, a changing momentum or weight decay, and
    caution. It also tries Adam, AdamW, LAMB, Lion, Adafactor, Adagrad, SGD, and
    fastai's RMSProp, to name the optimizer if it isn't RMSProp.

    The hyperparameters are fitted to the updates by least squares. The fit includes the
    learning rate of each step, because an update is linear in it.

    The result lists all rules that explain the run equally well, because the recording
    can't distinguish them. If nothing explains the run, the largest leaves are tried
    separately: at most six, until nothing explains two of them.

    The search uses up to 64 elements: some of each leaf, with gradients from the
    smallest to the largest.

    Args:
        params: The parameters before the first step and after each, in the precision in
            which they were trained: a tree of arrays [T + 1, ...], an open ``.npz``
            file of such arrays, or a list of T + 1 trees.
        gradients: The gradients that the optimizer was given, in the same form:
            [T, ...]. They are used as they are. If they are sums over n parts but the
            optimizer was given the means, the fitted ε is n times too large (n² times
            inside the root), a coupled λ n times, and the initial second moment n²
            times.
        learning_rate: The learning rate if it is known: a number, a schedule of the
            run's step count, or the learning rate of each recorded step [T].
        count: The number of updates before the recording. If it is above 0, the
            optimizer's state is unknown and is fitted too, for fewer elements. The
            initial value of the second moment can't be found then.
        gradient_norms: The global norm of the whole gradient of each step [T], if
            ``params`` and ``gradients`` hold only some elements of a large run. It is
            needed to find a clip by the global norm.

    Returns:
        The rules that explain the run; print the result to read them.

    Raises:
        TypeError: If a leaf is not an array of numbers, or ``count`` not an integer.
        ValueError: If the trees, their lengths or their shapes do not match, if a
            number is not finite, if nothing moves, if there are fewer than 4 steps, or
            if an array ``learning_rate`` or ``gradient_norms`` does not have one number
            per step. If a leaf is wrong, the error names it.

    Examples:
        Not run here, because it takes a few seconds:

        >>> match = identify(params, gradients)  # doctest: +SKIP
        >>> print(match)  # doctest: +SKIP
        dialects.keras(0.01, rho=0.8, momentum=0.5, epsilon=0.001)
          Learning rate: 0.01.
          It leaves 4e-07 of the updates unexplained; rounding may leave 6e-07.
        >>> match.explains, match.arguments_for("keras")  # doctest: +SKIP
        (True, {'rho': 0.8, 'momentum': 0.5, 'epsilon': 0.001})
        >>> tx = match.best.transformation()  # doctest: +SKIP
    """
    error = (
        "count must be the number of updates before the recording, an integer that is "
        f"not negative, but it was {count!r}."
    )
    if not hasattr(count, "__index__"):
        raise TypeError(error)
    if operator.index(count) < 0:
        raise ValueError(error)
    count = operator.index(count)
    with _use_float64(), contextlib.closing(make_bar(3)) as bar:
        run = read_run(params, gradients)
        make = partial(
            make_recording,
            run,
            gradient_norms=gradient_norms,
            max_elements=ELEMENTS_WITH_STATE if count else ELEMENTS,
        )
        tries: list[tuple[float, bool, Found]] = []
        # If nothing moves, the step was skipped, or the learning rate was 0.
        for skips in (True, False):
            recording = make(skips=skips)
            rates = _evaluate_learning_rate(learning_rate, recording, count)
            found = find_rules(recording, rates, count, report=bar.update)
            tries.append((found.fits[0].cost, skips, found))
            if found.is_explained or len(recording.g) == recording.num_steps:
                break
        _, skips, found = min(tries, key=lambda x: x[0])
        by_leaf: dict[str, Match] = {}
        causes: list[str] = []
        if not (found.is_explained or found.is_hidden):
            without_rate = None
            if learning_rate is not None:
                recording = make(skips=skips)
                unknown = _evaluate_learning_rate(None, recording, count)
                without_rate = find_rules(
                    recording, unknown, count, report=bar.update, is_quick=True
                )
            causes = list(list_causes(found, count, without_rate))
        if not (found.is_explained or found.is_hidden) and len(run.params) > 1:
            for i in _choose_leaves(run):
                recording = make(skips=skips, leaf=i)
                rates = _evaluate_learning_rate(learning_rate, recording, count)
                alone = find_rules(
                    recording, rates, count, report=bar.update, is_quick=True
                )
                by_leaf[recording.names[i]] = _make_match(alone, {}, [])
                unexplained = [x for x in by_leaf.values() if not x.is_explained]
                if len(unexplained) == MAX_LEAVES_UNEXPLAINED:
                    break
        return _make_match(found, by_leaf, causes)


def _choose_leaves(run: Run) -> list[int]:
    """Return the largest leaves of those that move."""
    leaves = list(run.params.values())
    moving = [i for i, p in enumerate(leaves) if np.any(p[1:] != p[:-1])]
    moving.sort(key=lambda i: -leaves[i].shape[1])
    return moving[:MAX_LEAVES_ALONE]


def _make_match(found: Found, by_leaf: dict[str, Match], causes: list[str]) -> Match:
    recording = found.recording
    remarks: list[str] = []
    looked_at = recording.g.shape[1]
    if looked_at < recording.num_elements and not by_leaf:
        remarks.append(f"{looked_at} of {recording.num_elements} elements were used.")
    skipped = recording.num_steps - len(recording.g)
    if skipped:
        remarks.append(
            f"{skipped} of {recording.num_steps} steps were left out, because nothing "
            "moved."
        )
    return Match(
        explanations=tuple(interpret(found, found.fits)),
        is_explained=found.is_explained,
        others=tuple(interpret(found, found.others)),
        rounding=found.limit,
        by_leaf=by_leaf,
        remarks=tuple(remarks),
        causes=tuple(causes),
    )


@contextlib.contextmanager
def _use_float64() -> Generator[None]:
    """Use float64 on the CPU, without errors for promotion and overflow."""
    # enable_x64 moved to the top level of jax.
    where: Any = jax if hasattr(jax, "enable_x64") else experimental
    with contextlib.ExitStack() as stack:
        stack.enter_context(where.enable_x64(True))  # noqa: FBT003
        with contextlib.suppress(RuntimeError):  # if JAX is told to have no CPU
            cpu, *_ = jax.local_devices(backend="cpu")
            stack.enter_context(jax.default_device(cpu))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(np.errstate(all="ignore"))
        yield


def _evaluate_learning_rate(
    learning_rate: optax.ScalarOrSchedule | ArrayLike | Sequence[float] | None,
    recording: Recording,
    count: int,
) -> np.ndarray:
    """Return the learning rate of each step, NaN if it is unknown."""
    kept = recording.kept
    if learning_rate is None:
        return np.full(len(kept), np.nan)
    if callable(learning_rate):
        steps = jnp.asarray(count + kept, jnp.int32)
        rates = [evaluate("learning_rate", learning_rate, step) for step in steps]
    else:
        rates = _read_learning_rates(learning_rate, recording.num_steps)[kept]
    # Ascent is descent with a negative learning rate.
    goes_up = np.sum(np.square(recording.weight) * recording.u * recording.g) > 0
    return np.array(rates, np.float64) * (-1 if goes_up else 1)


def _read_learning_rates(
    learning_rate: ArrayLike | Sequence[float], steps: int
) -> np.ndarray:
    """Return the learning rates [T] that are a number, or one for each step."""
    rates = np.asarray(learning_rate)
    if not jnp.issubdtype(rates.dtype, jnp.number) or np.iscomplexobj(rates):
        raise TypeError(
            "learning_rate must be a number, a schedule, or one number per step, but "
            f"it was {learning_rate!r}."
        )
    if rates.shape not in ((), (steps,)):
        raise ValueError(
            "learning_rate must be a number, a schedule, or one number per step, so "
            f"shape {(steps,)}, but its shape was {rates.shape}."
        )
    return np.broadcast_to(rates.astype(np.float64), (steps,))
