"""Write the lines of Python that resume a run, and make the same call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rmsprop_jax import checkpoints
from rmsprop_jax._cli.terminal import escape
from rmsprop_jax.checkpoints._convert.run import Run

_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of the call.

    Attributes:
        name: Its name.
        value: A list, a string, a number or a flag, whose repr is written.
        comment: What the user must check, because the file does not have it.
    """

    name: str
    value: object
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Weights:
    """How to load the parameters that belong to the state.

    Attributes:
        path: The file.
        names: The names that ``load_weights`` needs if the file has none.
        trained: The names of the optimizer's parameters, if the file has more weights.
        others: How the names of the other weights end, if that distinguishes them.
    """

    path: str
    names: Sequence[str] | None = None
    trained: Sequence[str] | None = None
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The call that resumes a run.

    Attributes:
        function: Its name in `rmsprop_jax.checkpoints`.
        path: The file.
        place: The part of the file to give, as an index of what ``read`` returns.
        arguments: The other arguments.
        weights: How to load the parameters; None if there are none.
        comments: What else the user should know, in sentences.
    """

    function: str
    path: str
    place: str = ""
    arguments: Sequence[Argument] = ()
    weights: Weights | None = None
    comments: Sequence[str] = ()

    def resume(self, content: object) -> Run:
        """Make the call.

        Args:
            content: What to pass if the call takes a part of the file.
        """
        function = getattr(checkpoints, self.function)
        arguments = {x.name: x.value for x in self.arguments}
        return function(content if self.place else self.path, **arguments)

    def write(self) -> str:
        """Return the lines, which run as they stand."""
        imports = [self.function]
        imports += ["read"] if self.place else []
        imports += ["load_weights"] if self.weights else []
        lines = [f"from rmsprop_jax.checkpoints import {', '.join(sorted(imports))}"]
        lines += ["", f"path = {self.path!r}"]
        body: list[str] = []
        said = ""
        for argument in self.arguments:
            if argument.comment != said:
                said = argument.comment
                body += _comment(said, "    ") if said else []
            value = repr(argument.value)
            if isinstance(argument.value, list) and len(argument.value) > 1:
                lines += _write_list(argument.name, argument.value)
                value = argument.name
            body.append(f"    {argument.name}={value},")
        for comment in self.comments:
            lines += _comment(comment)
        source = f"read(path){self.place}" if self.place else "path"
        call = f"tx, opt_state = {self.function}"
        if body:
            lines += [f"{call}(", f"    {source},", *body, ")"]
        else:
            lines.append(f"{call}({source})")
        lines += self._write_weights()
        return "\n".join(
            [
                *lines,
                "# In each step: updates, opt_state = tx.update(gradients, opt_state, "
                "params)",
            ]
        )

    def _write_weights(self) -> list[str]:
        if self.weights is None:
            return _comment(
                "The file has no weights with these names. params must be a dictionary "
                "with these names; otherwise pass to_params."
            )
        where, lines = self.weights, list[str]()
        source = "path" if where.path == self.path else repr(where.path)
        more = ""
        if where.names is not None:
            lines += _write_list("weight_names", where.names)
            more = ", names=weight_names"
        loaded = f"load_weights({source}{more})"
        if where.trained is None:
            return [*lines, f"params = {loaded}"]
        lines.append(f"weights = {loaded}")
        if where.others:
            return [
                *lines,
                f"not_trained = {where.others!r}",
                "params = {",
                "    name: x for name, x in weights.items() "
                "if not name.endswith(not_trained)",
                "}",
            ]
        names = [x.name for x in self.arguments if x.name == "names"]
        if not names:
            lines += _write_list("names", where.trained)
        return [*lines, "params = {name: weights[name] for name in names}"]


def write_weights_only(
    path: str, names: Sequence[str] | None = None, comment: str = ""
) -> str:
    """Return the lines that load only the weights, if no state can be resumed.

    Args:
        path: The file.
        names: The names that ``load_weights`` needs if the file has none.
        comment: What the user should know about the names.
    """
    lines = ["from rmsprop_jax.checkpoints import load_weights", ""]
    if names is None:
        return "\n".join([*lines, f"params = load_weights({path!r})"])
    lines += [*_comment(comment), *_write_list("names", names)]
    return "\n".join([*lines, f"params = load_weights({path!r}, names=names)"])


def select_trained(path: str, names: Sequence[str], weights: Sequence[str]) -> Weights:
    """Return how to load the weights with these names from all weights of a file."""
    extra = [name for name in weights if name not in {*names}]
    if not extra:
        return Weights(path)
    ends = tuple(sorted({name.rpartition(".")[2] for name in extra}))
    is_told = len(ends) <= 4 and not any(name.endswith(ends) for name in names)
    return Weights(path, trained=names, others=ends if is_told else ())


def _write_list(name: str, values: Sequence[object]) -> list[str]:
    line = f"{name} = [{', '.join(map(repr, values))}]"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{name} = [", *(f"    {value!r}," for value in values), "]"]


def _comment(text: str, indent: str = "") -> list[str]:
    """Return a comment in lines, which text from a file can't end."""
    words = escape(text).split(" ")
    lines, line = list[str](), f"{indent}#"
    for word in words:
        if len(line) + 1 + len(word) > _WIDTH and not line.endswith("#"):
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]
