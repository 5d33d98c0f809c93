"""Which RMSProp made a run: the rule and its numbers, from recorded steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import experimental

from rmsprop_jax._identify._match import Match
from rmsprop_jax._identify._reading import matches
from rmsprop_jax._identify._recording import Recording, recorded
from rmsprop_jax._identify._search import searched
from rmsprop_jax._optimizer.step_numbers import evaluate

__all__ = ["Match", "identify"]


def identify(
    params: optax.Params,
    gradients: optax.Updates,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    count: int = 0,
) -> list[Match]:
    """Find the RMSProp that made a run, and its numbers.

    For a port that does not follow its original: record a few dozen steps of the
    original, from any framework, and see which rule explains them. Every rule of
    `rmsprop_jax.dialects` is tried, and what else `rmsprop` can do: where ε stands,
    what the second moment begins with, the order of rate and momentum, Nesterov,
    centered, bias correction, coupled or decoupled decay. Of each, α, ε, μ and λ are
    fitted by least squares to the updates. The rate of each step comes with them, as
    an update is linear in it. A clip by the global norm, and a decay of some leaves
    only, are tried where nothing simpler explains the run. timm's ``caution`` and
    ``corrected_weight_decay`` are not.

    Up to 64 elements are looked at, or some more where there are many leaves: from the
    smallest gradients to the largest, and of each leaf.

    Args:
        params: The parameters before the first step and after each: a tree of arrays
            [T + 1, ...], in the precision in which they were trained.
        gradients: The gradients that the optimizer was given: a tree like it, [T, ...].
            They are compared as they are: if they were recorded before they were
            averaged over n parts, ε is n times as large (n² inside the root), λ
            n times, if coupled, and what the second moment begins with n² times.
        learning_rate: The rate, or a schedule (of the count of updates), if it is
            known. Then a factor of the rate can be told from one of the gradients.
        count: The updates before the first step. Above 0 the optimizer's state is not
            known, and is fitted as well, for fewer elements; what the second moment
            began with can't be found.

    Returns:
        The rules that explain most, best first. `print` the first. The rate is NaN at
        steps that were skipped: nothing moved, and the state neither.

    Raises:
        ValueError: Where the trees, their lengths or their shapes do not belong
            together, a number is not finite, nothing moves, or there are fewer than 4
            steps. It names the leaf.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from rmsprop_jax import dialects, identify
        >>> tx = dialects.keras(0.01, rho=0.8, momentum=0.5, epsilon=0.001)
        >>> gradients = jax.random.normal(jax.random.key(0), (20, 40)) / 10
        >>> def step(carry, g):
        ...     p, state = carry
        ...     updates, state = tx.update(g, state, p)
        ...     p = optax.apply_updates(p, updates)
        ...     return (p, state), p
        >>> start = jnp.zeros(40)
        >>> _, after = jax.lax.scan(step, (start, tx.init(start)), gradients)
        >>> match, *_ = identify(jnp.concatenate([start[None], after]), gradients)
        >>> "keras" in match.dialects, match.arguments_of("keras")
        (True, {'rho': 0.8, 'momentum': 0.5, 'epsilon': 0.001})
        >>> print(f"{match.rates[0]:.4f}")
        0.0100
    """
    if not isinstance(count, int | np.integer) or count < 0:
        raise ValueError(
            "count must be the number of updates before the first step, an integer "
            f"that is not negative, but it was {count!r}."
        )
    tries = []
    with _wide():
        # A step at which nothing moves is skipped, or has a rate of 0.
        for skips in (True, False):
            recording = recorded(params, gradients, skips=skips)
            rates = _known(learning_rate, recording, int(count))
            found = searched(recording, rates, int(count))
            tries.append((found.fits[0].cost, skips, found))
            still = found.recording.steps - len(recording.g)
            if not still or found.explains:
                break
        _, _, found = min(tries)
        return matches(found, params)


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """float64 on the CPU, where numbers promote and overflow without a word."""
    # The newest versions have it here, the oldest there.
    where: Any = jax if hasattr(jax, "enable_x64") else experimental
    with contextlib.ExitStack() as stack:
        stack.enter_context(where.enable_x64(True))  # noqa: FBT003
        with contextlib.suppress(RuntimeError):  # where JAX is told to have no CPU
            cpu, *_ = jax.local_devices(backend="cpu")
            stack.enter_context(jax.default_device(cpu))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(np.errstate(all="ignore"))
        yield


def _known(
    learning_rate: optax.ScalarOrSchedule | None, recording: Recording, count: int
) -> np.ndarray:
    """The rate of each step, NaN if it is unknown."""
    steps = len(recording.g)
    if learning_rate is None:
        return np.full(steps, np.nan)
    rates = np.array(
        [
            evaluate(
                "learning_rate",
                learning_rate if callable(learning_rate) else float(learning_rate),
                jnp.asarray(count + i, jnp.int32),
            )
            for i in recording.moved
        ],
        np.float64,
    )
    # Up the gradient is down it with a negative rate.
    goes_up = np.sum(np.square(recording.weight) * recording.u * recording.g) > 0
    return -rates if goes_up else rates
