"""A rule that explains a recording, to read and to run."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rmsprop_jax._identify.learning_rates import Piece
from rmsprop_jax._identify.naming import (
    Arguments,
    shorten,
    write_call,
    write_value,
)
from rmsprop_jax._optimizer.options import Options
from rmsprop_jax._optimizer.transform import make_transformation


class Recipe(NamedTuple):
    """How to make an optimizer.

    Attributes:
        options: The rule, if this package has it.
        before: Calls of optax that come first in the chain: from the name of each
            function to its argument.
        leaf_norm: The norm to which each leaf's gradient is clipped, if it is.
        factors: What the learning rate of each leaf is multiplied by, a pytree like the
            parameters, if the leaves have different learning rates.
    """

    options: Options | None
    before: dict[str, float]
    leaf_norm: float | None
    factors: optax.Params | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A rule that explains a recording, with its hyperparameters.

    Attributes:
        optimizer: Its name: ``"RMSProp"``, ``"Adam"``, ``"SGD"``, …
        calls: The calls that make this rule, the likeliest first: from the name of a
            function, such as ``"dialects.torch"``, to its arguments except the learning
            rate. Numbers have as few digits as their errors allow.
        hyperparameters: The fitted values, by the names of `rmsprop`; ``"clip"`` is the
            largest norm of a gradient.
        stderr: Their standard errors; infinite if a value can't be determined.
        count: The number of updates before the recording, of which nothing is known.
        learning_rates: The learning rate of each step, float64 [T]; NaN where nothing
            moved.
        learning_rates_stderr: The standard error of each step's learning rate, if it is
            fitted alone, in the same form.
        pieces: For how many steps each learning rate stays the same, if up to four
            learning rates explain as much as one for every step; otherwise empty.
        residual: The share of the updates that stays unexplained: the root mean square
            of the residuals over that of the updates. Updates that are mostly rounding
            count less.
        remarks: Further remarks, in sentences.
        recipe: What `transformation` makes.
    """

    optimizer: str
    calls: dict[str, Arguments]
    hyperparameters: dict[str, float]
    stderr: dict[str, float]
    count: int
    learning_rates: np.ndarray
    learning_rates_stderr: np.ndarray
    pieces: tuple[Piece, ...]
    residual: float
    remarks: tuple[str, ...] = dataclasses.field(repr=False)
    recipe: Recipe = dataclasses.field(repr=False)

    @property
    def call(self) -> str:
        """The first of its calls, ready to paste.

        It refers to schedules as ``match.best.…``, so it runs if the answer is called
        ``match`` and this is its best explanation.
        """
        if not self.is_importable:
            return self.brief_call
        return self._write_call(self._write_learning_rate(), "match.best.momentum")

    def _write_learning_rate(self) -> str:
        """Return the learning rate, or an expression of its schedule."""
        if not self.pieces or not all(rate for _, rate in self.pieces[:-1]):
            return "match.best.schedule"
        (_, first), *others = self.pieces
        if not others:
            return write_value(first)
        before = self.count + np.cumsum([steps for steps, _ in self.pieces])
        factors = [
            f"{count}: {write_value(shorten(rate / previous, 1e-8))}"
            for count, (_, previous), (_, rate) in zip(
                before, self.pieces, others, strict=False
            )
        ]
        return (
            f"optax.piecewise_constant_schedule({write_value(first)}, "
            f"{{{', '.join(factors)}}})"
        )

    @property
    def is_importable(self) -> bool:
        """Whether its call is of an existing function, not only a name."""
        return next(iter(self.calls)) != self.optimizer

    @property
    def brief_call(self) -> str:
        """The call with "…" for what changes from step to step."""
        is_constant = len(self.pieces) == 1
        return self._write_call(self._write_learning_rate() if is_constant else "…")

    def _write_call(self, learning_rate: str, momentum: str = "…") -> str:
        name, arguments = next(iter(self.calls.items()))
        rule = write_call(name, learning_rate, arguments, momentum)
        if not self.recipe.before:
            return rule
        before = self.recipe.before.items()
        links = [f"optax.{name}({write_value(x)})" for name, x in before]
        return f"optax.chain({', '.join([*links, rule])})"

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rates found, as a schedule of the run's step count.

        Before the recording it has the first one, and after it the last one.
        """
        rates = self.learning_rates
        return make_table(rates[np.isfinite(rates)], self.count)

    @property
    def momentum(self) -> optax.ScalarOrSchedule | None:
        """The momentum, a schedule if it changes; None without an RMSProp's rule."""
        return self.recipe.options and self.recipe.options.momentum

    def transformation(
        self, learning_rate: optax.ScalarOrSchedule | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer, with its clip and its weight decay mask.

        Args:
            learning_rate: The learning rate, or a schedule. If None, `schedule`.

        Raises:
            ValueError: If the optimizer is not an RMSProp that this package has.
        """
        options, before, leaf_norm, factors = self.recipe
        if options is None:
            raise ValueError(
                "transformation makes only rules of rmsprop_jax, but this rule is not "
                f"one of them: {self.call}."
            )
        if learning_rate is None:
            learning_rate = self.schedule
        links: list[optax.GradientTransformation] = []
        for name, number in before.items():
            if name == "add_decayed_weights":
                mask = options.weight_decay_mask
                links.append(optax.add_decayed_weights(number, mask))
            else:
                links.append(getattr(optax, name)(number))
        if leaf_norm is not None:
            links.append(_clip_leaves(leaf_norm))
        links.append(make_transformation(options._replace(learning_rate=learning_rate)))
        if factors is not None:
            links.append(_scale_leaves(factors))
        return optax.with_extra_args_support(optax.chain(*links))


def make_table(values: np.ndarray, start: int) -> optax.Schedule:
    """Return the schedule of these values, one per step from a step on.

    Before and after them, it has the nearest one.
    """

    def schedule(count: ArrayLike) -> jax.Array:
        table = jnp.asarray(values, jnp.result_type(float))
        return table[jnp.clip(jnp.asarray(count) - start, 0, len(values) - 1)]

    return schedule


def _clip_leaves(norm: float) -> optax.GradientTransformation:
    def clip(g: jax.Array) -> jax.Array:
        factor = jnp.minimum(1, norm / jnp.linalg.norm(g.ravel()))
        return g * factor.astype(g.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _scale_leaves(factors: optax.Params) -> optax.GradientTransformation:
    def scale(u: jax.Array, factor: float) -> jax.Array:
        return u * jnp.asarray(factor, u.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates, factors))
