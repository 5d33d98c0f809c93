"""The answer of `identify`, and its description in sentences."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator

import numpy as np

from rmsprop_jax._identify.explanation import Explanation
from rmsprop_jax._identify.naming import Arguments, shorten, write_call, write_value
from rmsprop_jax._identify.thresholds import HIDING_ROUNDING, NOISE, UNRELATED

_WIDTH = 88
_MOST = 5  # rules, or calls of one rule, that are written


@dataclasses.dataclass(frozen=True)
class Match:
    """The rules that explain a run, which the recording can't distinguish.

    Attributes:
        explanations: The rules that explain as much as the best, the likeliest first.
        is_explained: Whether they leave no more unexplained than rounding may.
            Otherwise they are only the nearest rules.
        others: The next best rule, if there is one, which leaves more unexplained.
        rounding: The largest share of the updates that rounding may leave unexplained;
            compare `Explanation.residual`.
        by_leaf: What explains a leaf alone, by its path, if nothing explains all leaves
            together. It contains only the leaves that were tried.
        remarks: Further remarks about the recording, in sentences.
        causes: If nothing explains the run, causes that the recording points to, in
            sentences.
    """

    explanations: tuple[Explanation, ...]
    is_explained: bool
    others: tuple[Explanation, ...] = dataclasses.field(repr=False)
    rounding: float = dataclasses.field(repr=False)
    by_leaf: dict[str, Match] = dataclasses.field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    causes: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def best(self) -> Explanation:
        """The likeliest explanation."""
        return self.explanations[0]

    @property
    def explains(self) -> bool:
        """Whether an RMSProp may have made the run, because one of them explains it."""
        return self.is_explained and any(
            explanation.optimizer == "RMSProp" for explanation in self.explanations
        )

    @property
    def dialects(self) -> tuple[str, ...]:
        """The names in `rmsprop_jax.dialects` of all explanations, the likeliest first.

        Empty if nothing explains the run, or only other optimizers do.
        """
        return tuple(self._list_arguments())

    def arguments_for(self, dialect: str) -> Arguments:
        """Return a dialect's arguments by its own names, except the learning rate.

        Its defaults are left out wherever they explain as much as the fitted values.

        Raises:
            ValueError: If the dialect is not among `dialects`.
        """
        found = self._list_arguments()
        if not found:
            raise ValueError(
                "No RMSProp explains this run, so that no dialect has arguments for "
                "it. match.best is the nearest rule."
            )
        if dialect not in found:
            raise ValueError(
                f"dialect must be one that may have made this run, one of "
                f"{tuple(found)}, but it was {dialect!r}."
            )
        return dict(found[dialect])

    def _list_arguments(self) -> dict[str, Arguments]:
        """Return the arguments of each dialect in the likeliest rule that it is."""
        found: dict[str, Arguments] = {}
        if not self.is_explained:
            return found
        for explanation in self.explanations:
            for name, arguments in explanation.calls.items():
                if name.startswith("dialects."):
                    found.setdefault(name.removeprefix("dialects."), arguments)
        return found

    def __str__(self) -> str:
        """The call to paste, the learning rates, and what is uncertain, in lines."""
        first, *rest = self._describe()
        lines = [_wrap(first, ""), *(_wrap(line, "  ") for line in rest)]
        return "\n".join(lines)

    def _describe(self) -> Iterator[str]:
        if self.is_explained:
            yield from self._describe_best()
        else:
            yield from self._describe_nearest()
        yield from self.best.remarks
        yield from self._describe_alike()
        if self.by_leaf:
            yield from self._describe_leaves()
        yield from self.remarks

    def _describe_best(self) -> Iterator[str]:
        best = self.best
        yield best.call
        if best.optimizer != "RMSProp":
            yield self._describe_others()
        yield f"Learning rate: {_describe_rates(best)}."
        if not best.pieces and best.is_importable:
            yield (
                "match.best.schedule is the learning rate of each step. Give your own "
                "schedule in its place if you know it."
            )
        yield (
            f"It leaves {write_share(best.residual)} of the updates unexplained; "
            f"rounding may leave {write_share(self.rounding)}."
        )

    def _describe_others(self) -> str:
        """Name other optimizers that it may be, or that it is if no RMSProp fits."""
        names = dict.fromkeys(x.optimizer for x in self.explanations)
        # LAMB changes the learning rate of each leaf, so it would not be constant.
        if "optax.lamb" in self.best.calls and len(self.best.pieces) != 1:
            names["LAMB"] = None
        others = " or ".join(name for name in names if name != "RMSProp")
        if self.explains:
            return f"This may be {others}, or RMSProp, which explains it as well."
        return f"This is {others}, and not RMSProp."

    def _describe_nearest(self) -> Iterator[str]:
        residual = self.best.residual
        left = write_share(residual)
        if self.rounding <= HIDING_ROUNDING:
            yield "Nothing explains this run up to rounding."
        else:
            yield "This recording can't tell what made the run."
        yield (
            f"The nearest is {self.best.brief_call}. It leaves {left} of the updates "
            f"unexplained; rounding may leave {write_share(self.rounding)}."
        )
        if self.rounding > HIDING_ROUNDING:
            yield (
                "Rounding is so much of these updates that it hides the rule. Record "
                "steps with a larger learning rate, or in more bits."
            )
            return
        yield from self.causes
        if residual < NOISE and not self.causes:
            yield (
                f"Noise of about {left} in the recorded gradients would do that, and "
                "so would an optimizer state in few bits, or a small part of the rule "
                "that is not searched for."
            )
        elif residual > UNRELATED:
            yield (
                "These gradients may not belong to this run: they may be those of "
                "another batch, or in another order."
            )

    def _describe_alike(self) -> Iterator[str]:
        best, *alike = self.explanations
        is_hidden = self.rounding > HIDING_ROUNDING
        if not self.is_explained and (best.residual > NOISE or is_hidden):
            return
        same = list(best.calls.items())[1:]
        if same:
            yield f"The same rule: {_list([write_call(n, '…', a) for n, a in same])}."
        if alike:
            yield f"Can't be told from it: {_list([x.brief_call for x in alike])}."
        for other in self.others:
            yield (
                f"The next best, {other.brief_call}, leaves "
                f"{write_share(other.residual)} unexplained."
            )

    def _describe_leaves(self) -> Iterator[str]:
        calls: dict[str, list[str]] = {}
        for name, match in self.by_leaf.items():
            call = match.best.brief_call if match.is_explained else ""
            calls.setdefault(call, []).append(name)
        for call, names in calls.items():
            found = call or "nothing explains it"
            yield f"By itself, {', '.join(names)}: {found}."
        yield (
            "Leaves by themselves had a quick search only, without clips, caution, a "
            "floor, and a momentum or a decay that changes."
        )


def _describe_rates(explanation: Explanation) -> str:
    if explanation.pieces:
        *pieces, (_, last) = explanation.pieces
        parts = [
            f"{write_value(rate)} for {n} step{'s' * (n > 1)}" for n, rate in pieces
        ]
        return ", then ".join([*parts, write_value(last)])
    rates, stderr = explanation.learning_rates, explanation.learning_rates_stderr
    is_seen = np.isfinite(rates) & np.isfinite(stderr)
    rates, stderr = rates[is_seen], stderr[is_seen]

    def write(i: int | np.intp) -> str:
        return write_value(shorten(float(rates[i]), float(stderr[i])))

    return (
        f"{write(0)} at first, {write(-1)} at last, between {write(np.argmin(rates))} "
        f"and {write(np.argmax(rates))}"
    )


def _list(calls: list[str]) -> str:
    more = len(calls) - _MOST
    return "; ".join(calls[:_MOST]) + (f"; and {more} more" if more > 0 else "")


def write_share(share: float) -> str:
    """Return a share of the updates, in two digits."""
    return f"{100 * share:.2g}%" if share >= 1e-3 else f"{share:.1e}"


def _wrap(line: str, indent: str) -> str:
    return textwrap.fill(
        line,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
