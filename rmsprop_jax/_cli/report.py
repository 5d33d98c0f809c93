"""The contents of a checkpoint, and how they are printed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

import numpy as np

from rmsprop_jax._cli.lines import Plan
from rmsprop_jax._cli.terminal import (
    Progress,
    escape,
    find_width,
    format_table,
    shorten,
    style,
)
from rmsprop_jax.checkpoints._convert.arrays import Value, to_real_number
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._readers.source import StoredArray, Strided

Arrays: TypeAlias = Mapping[str, Value]

NOT_RMSPROP = "Its state can't be resumed here, because it is not RMSProp's."
LOADS_WEIGHTS = "You can still load the weights with load_weights."
_ROWS = 20
_CHUNK = 2**20  # elements
_READ_AT_MOST = 2**20  # bytes, to read one number


def no_arrays() -> dict[str, Arrays]:
    """Return an empty dictionary."""
    return {}


@dataclasses.dataclass
class Statistics:
    """Statistics of the elements of an array.

    Attributes:
        rms: The root mean square of the finite elements.
        nan: How many elements are NaN or infinite.
        zeros: How many elements are 0.
        size: The number of elements.
    """

    rms: float
    nan: int
    zeros: int
    size: int

    def __str__(self) -> str:
        text = f"{self.rms:.3g}"
        if self.nan:
            return f"{text}, {self.nan} NaN"
        if self.zeros == self.size > 0:
            return "all 0"
        return text


@dataclasses.dataclass
class Parameter:
    """A parameter of the optimizer, or a weight.

    Attributes:
        name: Its name in the framework.
        shape: Its shape.
        dtype: The dtype of its moments.
        group: The index of its group.
        moments: Its moments by the framework's keys, still in the file.
        statistics: The statistics of each moment, if requested.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    moments: Mapping[str, Value]
    statistics: dict[str, Statistics] = dataclasses.field(default_factory=dict)


def make_parameter(name: str, group: int, moments: Arrays) -> Parameter:
    """Return a parameter with the shape and the dtype of its first moment."""
    first = next(iter(moments.values()), None)
    shape = () if first is None else tuple(np.shape(first))
    return Parameter(name, shape, str(getattr(first, "dtype", "")), group, moments)


@dataclasses.dataclass
class Optimizer:
    """An optimizer in a checkpoint.

    Attributes:
        name: Its class.
        place: Where it is in the file, if there are several.
        dialect: Its rule in this package, as an expression; empty if there is none.
        step_count: The number of its updates.
        groups: The settings of each group.
        counts: The number of parameters in each group.
        parameters: The parameters.
        schedulers: What changed the learning rate, in words.
        plan: How to resume it; None if that is impossible.
        notes: What else to know, in sentences.
        content: What to pass to `Plan.resume`.
    """

    name: str
    place: str = ""
    dialect: str = ""
    step_count: int | None = None
    groups: list[Settings] = dataclasses.field(default_factory=list)
    counts: list[int] = dataclasses.field(default_factory=list)
    parameters: list[Parameter] = dataclasses.field(default_factory=list)
    schedulers: list[str] = dataclasses.field(default_factory=list)
    plan: Plan | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    content: object = None


@dataclasses.dataclass
class Report:
    """The contents of a checkpoint.

    Attributes:
        path: The file, as the user gave it.
        format: The format of the file.
        framework: What wrote it, with the version if the file has it.
        epoch: The epoch in the file.
        optimizers: The optimizers.
        weights: The models' weights by their places, each a dictionary of arrays.
        averages: The weights' moving averages, in the same form.
        lines: The lines of Python.
        notes: What else to know, in sentences.
    """

    path: str
    format: str
    framework: str
    epoch: int | None = None
    optimizers: list[Optimizer] = dataclasses.field(default_factory=list)
    weights: Mapping[str, Arrays] = dataclasses.field(default_factory=no_arrays)
    averages: Mapping[str, Arrays] = dataclasses.field(default_factory=no_arrays)
    lines: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes of the file, or of all files that belong to the checkpoint."""
        return sum(os.path.getsize(path) for path in find_files(self.path))


def find_files(path: str) -> list[Path]:
    """Return the files of a checkpoint."""
    if Path(path).is_dir():
        return [p for p in Path(path).iterdir() if p.is_file()]
    if Path(path).is_file() and not path.endswith(".index"):
        return [Path(path)]
    prefix = Path(path.removesuffix(".index"))
    files = [p for p in prefix.parent.iterdir() if p.name.startswith(prefix.name)]
    ends = (".index", ".data-")
    return [p for p in files if p.name[len(prefix.name) :].startswith(ends)]


def read_number(value: object) -> float:
    """Return a number, NaN if it is not one, without reading a large array for it."""
    if isinstance(value, StoredArray):
        layout = value.layout
        is_large = isinstance(layout, Strided) and layout.storage.size > _READ_AT_MOST
        if math.prod(value.shape) != 1 or is_large:
            return math.nan
    return to_real_number(value)


def read_count(value: object) -> int | None:
    """Return a whole number, or None."""
    number = read_number(value)
    return int(number) if number >= 0 and number % 1 == 0 else None


def describe_setting(value: object) -> object:
    """Return a setting as a number, a flag or text of one line."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    number = read_number(value)
    if not math.isnan(number):
        return number
    if isinstance(value, list | tuple) and len(value) <= 4:
        return [describe_setting(x) for x in value]
    return shorten(escape(repr(value)), 40)


def compute_statistics(parameters: Sequence[Parameter]) -> None:
    """Read every moment, one at a time, and compute its statistics."""
    total = sum(math.prod(x.shape) * len(x.moments) for x in parameters)
    progress = Progress("reading", total)
    for parameter in parameters:
        for key, value in parameter.moments.items():
            parameter.statistics[key] = _compute(value, progress)
    progress.close()


def _compute(value: Value, progress: Progress) -> Statistics:
    flat = np.asarray(value).reshape(-1)
    total, bad, zeros = 0.0, 0, 0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        wide = chunk.astype(np.complex128 if np.iscomplexobj(chunk) else np.float64)
        is_finite = np.isfinite(wide)
        bad += int(np.sum(~is_finite))
        zeros += int(np.sum(wide == 0))
        with np.errstate(over="ignore"):  # a sum of squares may be infinite
            total += float(np.sum(np.square(np.abs(wide[is_finite]))))
        progress.update(chunk.size)
    finite = max(flat.size - bad, 1)
    return Statistics(math.sqrt(total / finite), bad, zeros, flat.size)


# --- As text.


def print_report(report: Report, stream: TextIO, *, is_whole: bool) -> None:
    """Print a report.

    Args:
        report: The report.
        stream: Where to print.
        is_whole: Whether to print a row for every parameter.
    """
    width = find_width(stream)
    for text, look in _write(report, width, is_whole=is_whole):
        line = escape(text)
        print(style(line, look, stream) if look else line, file=stream)


def _write(report: Report, width: int, *, is_whole: bool) -> Iterator[tuple[str, str]]:
    """Yield the lines, each with its style."""
    head = [
        ("file", f"{report.path} ({write_size(report.size)})"),
        ("format", report.format),
        ("written by", report.framework),
    ]
    if report.epoch is not None:
        head.append(("epoch", str(report.epoch)))
    yield from _write_pairs(head, width)
    for optimizer in report.optimizers:
        yield "", ""
        yield from _write_optimizer(optimizer, width, is_whole=is_whole)
    for title, found in (("weights", report.weights), ("averages", report.averages)):
        for place, arrays in found.items():
            yield "", ""
            size = sum(math.prod(np.shape(x)) for x in arrays.values())
            of = f" in {place}" if place else ""
            many = f"{len(arrays)} array{'s' * (len(arrays) != 1)}"
            yield f"{title}{of}: {many}, {size:,} elements", "heading"
            if is_whole or not report.optimizers:
                rows = [(k, *_describe_array(x)) for k, x in arrays.items()]
                yield from _cut(("name", "shape", "dtype"), rows, width, is_whole)
    for note in report.notes:
        yield "", ""
        yield from ((line, "warning") for line in wrap(note, width))
    if report.lines:
        yield "", ""
        yield "# Python", "heading"
        yield from ((line, "") for line in report.lines.splitlines())


def _write_optimizer(
    optimizer: Optimizer, width: int, *, is_whole: bool
) -> Iterator[tuple[str, str]]:
    of = f" in {optimizer.place}" if optimizer.place else ""
    yield f"optimizer{of}: {optimizer.name}", "heading"
    pairs: list[tuple[str, str]] = []
    if optimizer.dialect:
        pairs.append(("here", optimizer.dialect))
    if optimizer.step_count is not None:
        pairs.append(("step", str(optimizer.step_count)))
    for g, (settings, count) in enumerate(
        zip(optimizer.groups, optimizer.counts, strict=True)
    ):
        label = "settings" if len(optimizer.groups) == 1 else f"group {g}"
        text = ", ".join(f"{k}={write_value(v)}" for k, v in settings.items())
        many = f"{count} parameter{'s' * (count != 1)}" if count else ""
        pairs.append((label, ": ".join(part for part in (many, text) if part)))
    pairs += [("scheduler", text) for text in optimizer.schedulers]
    yield from _write_pairs(pairs, width)
    if optimizer.parameters:
        yield "", ""
        yield from _write_parameters(optimizer, width, is_whole=is_whole)
    for note in optimizer.notes:
        yield "", ""
        yield from ((line, "warning") for line in wrap(note, width))


def _write_parameters(
    optimizer: Optimizer, width: int, *, is_whole: bool
) -> Iterator[tuple[str, str]]:
    parameters = optimizer.parameters
    keys = [*dict.fromkeys(key for x in parameters for key in x.moments)]
    has_groups = len(optimizer.groups) > 1
    headers = ["name", "shape", "dtype", *["group>"] * has_groups]
    headers += [f"{key}>" for key in keys]
    rows: list[list[str]] = []
    for x in parameters:
        cells = [x.name, str(x.shape), x.dtype, *[str(x.group)] * has_groups]
        for key in keys:
            has = "yes" if key in x.moments else "-"
            cells.append(str(x.statistics.get(key, has)))
        rows.append(cells)
    yield from _cut(headers, rows, width, is_whole)


def _cut(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    is_whole: bool,  # noqa: FBT001
) -> Iterator[tuple[str, str]]:
    """Yield a table, and how many rows were left out."""
    shown = rows if is_whole or len(rows) <= _ROWS + 1 else rows[:_ROWS]
    title, *lines = format_table(headers, shown, width)
    yield title, "heading"
    marked = (" NaN", "all 0")
    yield from ((x, "warning" if any(m in x for m in marked) else "") for x in lines)
    if len(shown) < len(rows):
        yield f"… and {len(rows) - len(shown)} more (--all)", "dim"


def _write_pairs(
    pairs: Iterable[tuple[str, str]], width: int
) -> Iterator[tuple[str, str]]:
    for label, text in pairs:
        first, *others = wrap(text, width - 12)
        yield f"{label:<12}{first}", ""
        yield from ((" " * 12 + line, "") for line in others)


def write_value(value: object) -> str:
    """Return a setting as text; numbers have the digits of float32."""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _describe_array(value: Value) -> tuple[str, str]:
    return str(tuple(np.shape(value))), _describe_dtype(value)


def _describe_dtype(value: Value) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def wrap(text: str, width: int) -> list[str]:
    """Return a text in lines; a word that is too long is broken."""
    lines = [""]
    for word in escape(text).split(" "):
        while word:
            room = width - len(lines[-1]) - bool(lines[-1])
            if len(word) <= room:
                lines[-1] += f" {word}" if lines[-1] else word
                break
            if not lines[-1]:
                lines[-1], word = word[:width], word[width:]
            lines.append("")
    return [line for line in lines if line] or [""]


def write_size(size: int) -> str:
    """Return a number of bytes, as in 1.2 MB."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{number:.3g} {unit}"


# --- For programs.


def to_json(report: Report) -> Settings:
    """Return a report in JSON's types: dictionaries, lists, text and numbers."""
    found = {
        "path": report.path,
        "size": report.size,
        "format": report.format,
        "written_by": report.framework,
        "epoch": report.epoch,
        "optimizers": [_optimizer_to_json(x) for x in report.optimizers],
        "weights": _arrays_to_json(report.weights),
        "averages": _arrays_to_json(report.averages),
        "notes": report.notes,
        "python": report.lines,
    }
    return {key: _to_plain(value) for key, value in found.items()}


def _to_plain(value: object) -> object:
    """Return a value without infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _to_plain(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_to_plain(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _optimizer_to_json(optimizer: Optimizer) -> Settings:
    return {
        "name": optimizer.name,
        "place": optimizer.place,
        "here": optimizer.dialect,
        "step": optimizer.step_count,
        "groups": [
            {"count": count, "settings": settings}
            for settings, count in zip(optimizer.groups, optimizer.counts, strict=True)
        ],
        "schedulers": optimizer.schedulers,
        "parameters": [
            {
                "name": x.name,
                "shape": [*x.shape],
                "dtype": x.dtype,
                "group": x.group,
                "moments": [*x.moments],
                "statistics": {
                    k: dataclasses.asdict(v) for k, v in x.statistics.items()
                },
            }
            for x in optimizer.parameters
        ],
        "notes": optimizer.notes,
    }


def _arrays_to_json(found: Mapping[str, Arrays]) -> list[Settings]:
    return [
        {
            "place": place,
            "arrays": {
                str(name): {"shape": [*np.shape(x)], "dtype": _describe_dtype(x)}
                for name, x in arrays.items()
            },
        }
        for place, arrays in found.items()
    ]
