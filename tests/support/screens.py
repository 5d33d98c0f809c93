"""The screens of docs/command-line.md, which are what the commands print.

PYTHONPATH=tests python tests/support/screens.py    writes them anew
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from recorded.record_runs import FILES

from rmsprop_jax._cli import main

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
SCREEN = re.compile(r"^```console\n\$ rmsprop-jax (.*)\n((?:.*\n)*?)```$", re.M)


def run_screen(command: str) -> str:
    """Return what a command prints, in a folder with the recorded files."""
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES.iterdir():
            if file.suffix != ".npz":
                shutil.copy(file, folder)
        printed = io.StringIO()
        before = Path.cwd()
        os.chdir(folder)
        try:
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
                mock.patch.dict(os.environ, COLUMNS="88"),
            ):
                main(shlex.split(command))
        finally:
            os.chdir(before)
        # Where it is on this machine.
        return printed.getvalue().replace(f"{Path(folder).resolve()}/", "")


def write() -> None:
    """Write the screens anew, but for that of a search, which the tests compare."""

    def replace(match: re.Match[str]) -> str:
        if match[1].startswith("identify"):
            return match[0]
        return f"```console\n$ rmsprop-jax {match[1]}\n{run_screen(match[1])}```"

    PAGE.write_text(SCREEN.sub(replace, PAGE.read_text()))


if __name__ == "__main__":
    write()
