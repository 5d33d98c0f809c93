"""What was found: rules with their numbers, and sentences about them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rmsprop_jax._identify._naming import Arguments, text, written
from rmsprop_jax._identify._recording import ROUNDINGS
from rmsprop_jax._optimizer.options import Options
from rmsprop_jax._optimizer.transform import make_transformation


class Reading(NamedTuple):
    """One rule that explains a recording, among others that do so as well.

    Attributes:
        options: The rule, with numbers as short as their errors allow.
        numbers: Its numbers as they were fitted, by the names of `rmsprop`; "clip" is
            the largest global norm of a gradient.
        uncertainty: Their standard deviations; infinite where one is not seen.
        calls: The dialects that are this rule, with their arguments but for the rate.
        rates: The rate of each step, float64 [T]; NaN where nothing moved.
        tolerance: Rates that differ by less, relative to them, are the same.
        limit: "SGD" or "Adagrad" where it is that, which RMSProp can imitate.
        remarks: Sentences.
    """

    options: Options
    numbers: dict[str, float]
    uncertainty: dict[str, float]
    calls: dict[str, Arguments]
    rates: np.ndarray
    tolerance: float
    limit: str
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """The first of its calls, or else its options, and the rates."""
        return f"{self.name}, {_in_words(self.rates, self.tolerance)}"

    @property
    def name(self) -> str:
        """The first of its calls, or else its options."""
        for name, arguments in self.calls.items():
            return written(name, arguments)
        default = Options()._replace(alpha=-1.0, eps=-1.0)  # these are said always
        if self.limit:
            default = default._replace(alpha=self.options.alpha)
        if self.limit == "SGD":
            default = default._replace(eps=self.options.eps)
        words = {
            field: value
            for field, value in self.options._asdict().items()
            if field not in ("learning_rate", "names", "weight_decay_mask")
            and value != getattr(default, field)
        }
        listed = ", ".join(f"{word}={text(value)}" for word, value in words.items())
        return f"{self.limit or 'RMSProp'}({listed})"


@dataclasses.dataclass(frozen=True)
class Match:
    """A rule that `identify` found, or several that the recording can't tell apart.

    Attributes:
        readings: The rules, the simplest first: that of the fewest changes of the rate.
        residual: What is unexplained of the updates: its root mean square over theirs.
            Updates of which rounding is a large part count less.
        rounding: What the rounding of the parameters leaves unexplained, likewise.
        next_best: The next best match, if any.
        remarks: Sentences on the recording.
    """

    readings: tuple[Reading, ...]
    residual: float
    rounding: float
    next_best: Match | None = dataclasses.field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def explains(self) -> bool:
        """Whether an RMSProp made the run: no more is unexplained than by rounding."""
        return self._fits and not self.readings[0].limit

    @property
    def dialects(self) -> tuple[str, ...]:
        """The names in `rmsprop_jax.dialects` that this is, the nearest first.

        They say something only where `explains` is true.
        """
        return tuple(self._calls)

    @property
    def rates(self) -> np.ndarray:
        """The rate of each step, float64 [T]; NaN where nothing moved."""
        return self.readings[0].rates

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers as they were fitted, by the names of `rmsprop`'s arguments."""
        return self.readings[0].numbers

    @property
    def uncertainty(self) -> dict[str, float]:
        """A standard deviation of each number; infinite where it can't be seen."""
        return self.readings[0].uncertainty

    def arguments_of(self, name: str) -> dict[str, Any]:
        """The arguments of a dialect but for the rate, by its own names.

        Those that are its defaults are left out, and so is an ε that can't be seen,
        where the default explains as much. Numbers are as short as their uncertainty
        allows.

        Raises:
            ValueError: If the dialect is none of `dialects`.
        """
        if name not in self._calls:
            raise ValueError(
                f"name must be one of {self.dialects}, which this match is, but it was "
                f"{name!r}."
            )
        return dict(self._calls[name])

    def transformation(
        self, learning_rate: optax.ScalarOrSchedule | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer of the first reading, with what it decays, and with its clip.

        Args:
            learning_rate: The rate, or a schedule. If None, the rates that were found,
                and the last of them from then on.

        Raises:
            ValueError: If the run is that of a limit of RMSProp.
        """
        first = self.readings[0]
        if first.limit:
            raise ValueError(
                f"This run is {first.name}, and no RMSProp's: go on with optax's."
            )
        if learning_rate is None:
            learning_rate = _schedule(first.rates)
        tx = make_transformation(first.options._replace(learning_rate=learning_rate))
        if "clip" not in first.numbers:
            return tx
        clip = optax.clip_by_global_norm(first.numbers["clip"])
        return optax.with_extra_args_support(optax.chain(clip, tx))

    @property
    def _calls(self) -> dict[str, Arguments]:
        """Those of every reading; a dialect's own is that of the simplest."""
        every: dict[str, Arguments] = {}
        for reading in self.readings:
            every.update({n: c for n, c in reading.calls.items() if n not in every})
        return every

    @property
    def _fits(self) -> bool:
        return self.residual <= ROUNDINGS * self.rounding

    def __repr__(self) -> str:
        """One line."""
        return f"Match({self.readings[0].name}, residual={self.residual:.1e})"

    def __str__(self) -> str:
        """Sentences."""
        first, *others = self.readings
        left = f"{self.residual:.0e} of their size"
        lines = [f"{first}", f"explains the updates to {left}"]
        if self.next_best:
            other = self.next_best
            lines[1] += (
                f"; the next best, {other.readings[0].name}, to {other.residual:.0e}"
            )
        if not self._fits:
            lines.insert(
                0,
                "No RMSProp with constant numbers and one rate for all leaves made "
                f"this run: the nearest leaves {left} unexplained, and rounding would "
                f"leave {self.rounding:.0e}. Parameter groups may be tried one by one. "
                "The nearest is",
            )
        elif first.limit:
            lines.insert(0, f"This is {first.limit}, which RMSProp can imitate:")
        also = [written(name, given) for name, given in first.calls.items()][1:]
        if also:
            lines.append(f"is also {', '.join(also)}")
        for reading in others:
            lines.append(f"can't be told from {reading}")
        lines += [*first.remarks, *self.remarks]
        return "\n  ".join(lines)


def constant_pieces(rates: np.ndarray, tolerance: float) -> list[tuple[int, float]]:
    """How many steps a rate stays the same, and what it is there."""
    pieces: list[list[float]] = []
    for rate in rates[np.isfinite(rates)]:
        mean = float(np.mean(pieces[-1])) if pieces else np.inf
        if pieces and abs(rate - mean) <= tolerance * max(abs(mean), abs(rate)):
            pieces[-1].append(rate)
        else:
            pieces.append([rate])
    return [(len(piece), float(np.median(piece))) for piece in pieces]


def _in_words(rates: np.ndarray, tolerance: float) -> str:
    pieces = constant_pieces(rates, tolerance)
    if len(pieces) > 4:
        moved = rates[np.isfinite(rates)]
        return (
            f"rate from {moved[0]:.4g} to {moved[-1]:.4g}, between {moved.min():.4g} "
            f"and {moved.max():.4g}"
        )
    steps = [f"{rate:.4g} for {length} steps" for length, rate in pieces[:-1]]
    return f"rate {', then '.join([*steps, f'{pieces[-1][1]:.4g}'])}"


def _schedule(rates: np.ndarray) -> optax.Schedule:
    """The rates by their steps; the last of them from then on."""
    filled = rates[np.isfinite(rates)]

    def schedule(count: ArrayLike) -> jax.Array:
        table = jnp.asarray(filled, jnp.result_type(float))
        return table[jnp.minimum(jnp.asarray(count), len(filled) - 1)]

    return schedule
