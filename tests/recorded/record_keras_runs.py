"""Records files that Keras and TensorFlow wrote, and where they went on from them.

    pip install keras==3.15.1 tensorflow-cpu==2.21.0 tf_keras==2.21.0
    python tests/recorded/record_keras_runs.py

writes ``files/keras.zip`` beside this file, with some of the runs of ``keras_runs.py``
in a folder for each framework. In it ``info.json`` says what their variables are
called, and which versions made them. Every framework is run in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for whoever runs this as a script

from recorded.keras_runs import FRAMEWORKS, run, runs  # noqa: E402

FILE = HERE / "files" / "keras.zip"
RECORDED = {
    "keras_jax": ["momentum-centered", "all", "bfloat16"],
    "keras_tensorflow": ["all"],
    "tf_keras": ["momentum-centered-decayed", "mixed_float16"],
    "keras_legacy": ["plain", "momentum-decayed", "mixed_float16"],
    "tensorflow": ["plain", "momentum-centered"],
}


def make(framework: str, folder: Path, only: Sequence[str]) -> None:
    """Writes the files of the runs, or of some, and ``info.json``."""
    made = {
        name: run(framework, folder / name, arguments)
        for name, arguments in runs(framework).items()
        if not only or name in only
    }
    packages = {p: metadata.version(p) for p in FRAMEWORKS[framework].packages}
    info = {"runs": made, "packages": packages, "python": platform.python_version()}
    (folder / "info.json").write_text(json.dumps(info))


def make_apart(framework: str, folder: Path, only: Sequence[str] = ()) -> None:
    """`make` in a new process, with the framework's environment."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, __file__, "--here", framework, str(folder), *only],
        env={**os.environ, **quiet, **FRAMEWORKS[framework].environment},
        check=True,
        cwd=HERE,
    )


def main() -> None:
    """Records all frameworks; with --here makes one, in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", nargs="+", help="framework, folder, and the runs")
    here = parser.parse_args().here
    if here:
        make(here[0], Path(here[1]), here[2:])
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(FILE, "w", zipfile.ZIP_LZMA) as archive,
    ):
        for framework, names in RECORDED.items():
            part = Path(folder) / framework
            part.mkdir()
            make_apart(framework, part, names)
            for file in sorted(part.iterdir()):
                archive.write(file, f"{framework}/{file.name}")
    print(f"{FILE.name}, {FILE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
