"""Format what the command line prints: escaped, aligned, and coloured on terminals."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import TextIO

# The longest line if the output is not a terminal, such as in a pipe.
WIDTH = 88
# Names are not cut to less than this.
_LEAST_NAME = 12
_GAP = "  "
_STYLES = {"heading": "1", "warning": "33", "dim": "2"}


def escape(text: object) -> str:
    """Return text in which nothing can move a terminal's cursor or reorder a line.

    Names may come from strangers' files. Control characters, and those that change the
    direction of writing, become Python's escape sequences.
    """
    return "".join(
        x if x.isprintable() else x.encode("unicode_escape").decode() for x in str(text)
    )


def find_width(stream: TextIO) -> int:
    """Return how many columns a line may have."""
    columns = max(shutil.get_terminal_size((WIDTH, 24)).columns, 40)
    return columns if stream.isatty() else min(columns, WIDTH)


def style(text: str, name: str, stream: TextIO) -> str:
    """Return text in a colour or in bold, if the stream is a terminal with colours."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if not text or is_plain or not stream.isatty():
        return text
    return f"\x1b[{_STYLES[name]}m{text}\x1b[0m"


def measure(text: str) -> int:
    """Return how many columns a text takes: Chinese letters take two, accents none."""
    wide = sum(unicodedata.east_asian_width(x) in "WF" for x in text)
    return len(text) + wide - sum(unicodedata.combining(x) > 0 for x in text)


def shorten(text: str, width: int) -> str:
    """Return a text of at most some columns, without its middle if it is longer.

    Both ends of a parameter's name are needed to recognize it.
    """
    if measure(text) <= width:
        return text
    head, tail = text[: (width - 1) // 2], text[len(text) - width // 2 :]
    while measure(head) + 1 + measure(tail) > width:
        head, tail = head[:-1], tail[1:]
    return f"{head}…{tail}"


def format_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[str]:
    """Return the lines of a table, whose first column is cut if necessary.

    Args:
        headers: The names of the columns. One that ends in ">" is aligned to the right.
        rows: The cells.
        width: How many columns a line may have.
    """
    titles = [header.removesuffix(">") for header in headers]
    cells = [titles, *([escape(cell) for cell in row] for row in rows)]
    widths = [max(measure(row[n]) for row in cells) for n in range(len(titles))]
    others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
    widths[0] = min(widths[0], max(width - others, _LEAST_NAME))
    lines: list[str] = []
    for row in cells:
        parts: list[str] = []
        for n, cell in enumerate(row):
            text = shorten(cell, widths[n])
            pad = " " * (widths[n] - measure(text))
            parts.append(pad + text if headers[n].endswith(">") else text + pad)
        lines.append(shorten(_GAP.join(parts).rstrip(), width))
    return lines


class Progress:
    """One line of progress on stderr, which is erased at the end.

    It is only shown if stderr is a terminal.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, max(total, 1), 0
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + 0.5

    def update(self, n: int) -> None:
        """Show that more is done, at most ten times a second."""
        self._done += n
        now = time.monotonic()
        if self._is_shown and now >= self._next:
            self._next = now + 0.1
            percent = 100 * self._done // self._total
            bar = "#" * (percent * 3 // 10)
            sys.stderr.write(f"\r{self._what} {percent:3}% |{bar:<30}|")
            sys.stderr.flush()

    def close(self) -> None:
        """Erase the line."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
