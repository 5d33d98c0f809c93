"""Every checkpoint that a framework wrote for the tests, and how a test resumes it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from recorded import runs
from recorded.keras_runs import FRAMEWORKS
from recorded.record_fsdp import RUNS
from recorded.record_keras_runs import FILE
from recorded.record_runs import FILES, PADDLE
from support import keras_files

from rmsprop_jax import checkpoints

# A group of the matrices, and one of the others.
LEGACY_NAMES = sorted(runs.SHAPES, key=lambda name: len(runs.SHAPES[name]) < 2)


class Recorded(NamedTuple):
    """A file that a framework wrote.

    Attributes:
        folder: In a zip file of several, or "fsdp"; empty for the files beside it.
        file: The file's name.
        resume: From the folder where it is to ``(tx, opt_state)``.
        missing: What the file lacks, and a user would put into the printed lines: from
            what is printed to what was used.
    """

    folder: str
    file: str
    resume: Callable[[Path], Any]
    missing: dict[str, str]

    def path(self, folders: Path) -> Path:
        """Return where it is, or what the names of its files begin with."""
        folder = folders / self.folder if self.folder else FILES
        return folder / self.file


def _plain(file: str, function: str, **arguments: Any) -> Recorded:
    def resume(folder: Path) -> Any:
        return getattr(checkpoints, function)(folder / file, **arguments)

    return Recorded("", file, resume, {})


def _resume_fsdp(name: str) -> Callable[[Path], Any]:
    return lambda folder: checkpoints.from_torch(folder / name)


def _keras() -> dict[str, Recorded]:
    found: dict[str, Recorded] = {}
    with zipfile.ZipFile(FILE) as archive:
        infos = {
            framework: json.loads(archive.read(f"{framework}/info.json"))["runs"]
            for framework in FRAMEWORKS
        }
    for framework, of_framework in infos.items():
        for run, info in of_framework.items():
            for ending in FRAMEWORKS[framework].endings:

                def resume(
                    folder: Path,
                    framework: str = framework,
                    run: str = run,
                    info: Any = info,
                    ending: str = ending,
                ) -> Any:
                    return keras_files.read(framework, folder, run, info, ending)

                file = run if ending == ".index" else f"{run}{ending}"
                missing: dict[str, str] = {}
                arguments = info["arguments"]
                is_bare = ending in (".weights.h5", ".index")
                if "gradient_accumulation_steps" in arguments and is_bare:
                    key, every = "gradient_accumulation_steps", 4
                    missing[f"{key}=2"] = f"{key}={every}"
                if "momentum" not in arguments and framework == "tensorflow":
                    missing["momentum=0.9"] = "momentum=0.0"
                found[f"{framework}/{run}{ending}"] = Recorded(
                    framework, file, resume, missing
                )
    return found


# One of each format. The others are for the slow tests.
KINDS = (
    *("torch", "torch before 1.6", "timm", "stable_baselines3", "paddle", "fsdp/two"),
    *(
        "keras_jax/all.keras",
        "keras_jax/bfloat16.weights.h5",
        "tf_keras/mixed_float16.h5",
    ),
    *("keras_tensorflow/all.index", "tensorflow/plain.index"),
)


def every_file() -> list[Any]:
    """Return a parameter of a test for every file, most of them marked slow."""
    return [
        pytest.param(name, marks=[] if name in KINDS else [pytest.mark.slow])
        for name in RECORDED
    ]


RECORDED: dict[str, Recorded] = {
    "torch": _plain("torch.pt", "from_torch"),
    "torch before 1.6": _plain("torch_legacy.pt", "from_torch", names=LEGACY_NAMES),
    "timm": _plain("timm.pth.tar", "from_timm"),
    "stable_baselines3": _plain("stable_baselines3.zip", "from_stable_baselines3"),
    "paddle": _plain(
        "paddle.pdopt",
        "from_paddle",
        learning_rate=0.1,
        names=FILES / "paddle.pdparams",
        **PADDLE,
    ),
    **{f"fsdp/{name}": Recorded("fsdp", name, _resume_fsdp(name), {}) for name in RUNS},
    **_keras(),
}
