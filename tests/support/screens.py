"""What the commands print: the page's screens, and what inspect says of every file.

PYTHONPATH=tests python tests/support/screens.py    writes both anew
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

from recorded.record_keras_runs import FILE
from recorded.record_runs import FILES
from support.distributed import extract
from support.recorded_files import RECORDED

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


INSPECTED = FILES.parent / "inspected.txt"
_TITLE = "===== {}\n"


def extract_folders(folder: Path) -> Path:
    """Write what the Keras family and FSDP wrote into folders of their own."""
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(folder)
    extract(folder / "fsdp")
    return folder


def inspect_file(name: str, folders: Path) -> str:
    """Return what inspect prints of a recorded file, 88 columns wide."""
    path, printed = RECORDED[name].path(folders), io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="88")
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(printed), wide:
        main(["inspect", path.name])
    return printed.getvalue()


def read_inspected() -> dict[str, str]:
    """Return what is recorded, by the names of the files."""
    parts = re.split(r"^===== (.*)\n", INSPECTED.read_text("utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def write_inspected() -> None:
    """Record what inspect prints of every file."""
    with tempfile.TemporaryDirectory() as folder:
        folders = extract_folders(Path(folder))
        texts = (_TITLE.format(n) + inspect_file(n, folders) for n in RECORDED)
        INSPECTED.write_text("".join(texts), "utf-8")


def write() -> None:
    """Write the screens anew, but for that of a search, which the tests compare."""

    def replace(match: re.Match[str]) -> str:
        if match[1].startswith("identify"):
            return match[0]
        return f"```console\n$ rmsprop-jax {match[1]}\n{run_screen(match[1])}```"

    PAGE.write_text(SCREEN.sub(replace, PAGE.read_text()))


if __name__ == "__main__":
    write()
    write_inspected()
