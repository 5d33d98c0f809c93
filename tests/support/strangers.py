"""Reads changed files in a process of its own, within limits of memory and time."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from recorded import record_fsdp, runs
from recorded.record_keras_runs import FILE
from recorded.record_runs import FILES, PADDLE
from support import keras_files
from support.mutations import mutate

from rmsprop_jax import checkpoints
from rmsprop_jax.checkpoints._readers.distributed import METADATA
from rmsprop_jax.checkpoints._readers.source import UnforeseenError

TESTS = Path(__file__).parents[1]
SECONDS = 20
# What the reading of a small file may take; the promise is 300 MB.
MEMORY = 300 * 2**20


class Format(NamedTuple):
    """A format of checkpoints.

    Attributes:
        file: The name of a recorded file.
        resume: From its folder to ``(tx, opt_state)``.
        load: From its folder to the weights.
        beside: The files that belong to it.
        folder: In the zip file of the recordings.
        archive: That zip file.
    """

    file: str
    resume: Callable[[Path], Any]
    load: Callable[[Path], Any]
    beside: tuple[str, ...] = ()
    folder: str = ""
    archive: Path = FILE


def _torch(file: str, function: str, **arguments: Any) -> Format:
    return Format(
        file,
        lambda folder: getattr(checkpoints, function)(folder / file, **arguments),
        lambda folder: checkpoints.load_weights(folder / file),
    )


def _paddle(folder: Path) -> Any:
    return checkpoints.from_paddle(
        folder / "paddle.pdopt",
        learning_rate=0.1,
        names=folder / "paddle.pdparams",
        **PADDLE,
    )


def _keras(framework: str, run: str, ending: str) -> Format:
    with zipfile.ZipFile(FILE) as archive:
        info = json.loads(archive.read(f"{framework}/info.json"))["runs"][run]
    path = run if ending == ".index" else f"{run}{ending}"
    has_names = ending not in (".keras", ".weights.h5")
    names = {} if has_names else {"names": info["weights"]}
    return Format(
        f"{run}{ending}",
        lambda folder: keras_files.read(framework, folder, run, info, ending),
        lambda folder: checkpoints.load_weights(folder / path, **names),
        (f"{run}.data-00000-of-00001",) if ending == ".index" else (),
        framework,
    )


def _distributed(run: str, *files: str) -> Format:
    return Format(
        METADATA,
        checkpoints.from_torch,
        checkpoints.load_weights,
        files,
        run,
        record_fsdp.FILE,
    )


FORMATS = {
    "torch": _torch("torch.pt", "from_torch"),
    "torch before 1.6": _torch(
        "torch_legacy.pt",
        "from_torch",
        # A group of the matrices, and one of the others.
        names=sorted(runs.SHAPES, key=lambda name: len(runs.SHAPES[name]) < 2),
    ),
    "torch.distributed": _distributed("two", "__0_0.distcp", "__1_0.distcp"),
    "torch.distributed, flat": _distributed(
        "four", *(f"__{rank}_0.distcp" for rank in range(4))
    ),
    "timm": _torch("timm.pth.tar", "from_timm"),
    "stable_baselines3": _torch("stable_baselines3.zip", "from_stable_baselines3"),
    "paddle": Format(
        "paddle.pdopt",
        _paddle,
        lambda folder: checkpoints.load_weights(folder / "paddle.pdparams"),
        ("paddle.pdparams",),
    ),
    ".keras": _keras("keras_jax", "all", ".keras"),
    ".weights.h5": _keras("keras_jax", "momentum-centered", ".weights.h5"),
    ".h5": _keras("keras_jax", "momentum-centered", ".h5"),
    ".h5 of tf_keras": _keras("tf_keras", "mixed_float16", ".h5"),
    "tf.train.Saver": _keras("tensorflow", "momentum-centered", ".index"),
    "tf.train.Checkpoint": _keras("keras_tensorflow", "all", ".index"),
}


class Outcome(NamedTuple):
    """What reading a file came to.

    Attributes:
        kind: "read", "refused", "foreign" (the exception of somebody else) or "dead".
        detail: A digest of what was read, or the error.
    """

    kind: str
    detail: str


def unpack(name: str, folder: Path) -> Path:
    """Write the files of a format into a folder, and return the one to read."""
    form = FORMATS[name]
    for file in (form.file, *form.beside):
        if form.folder:
            with zipfile.ZipFile(form.archive) as archive:
                content = archive.read(f"{form.folder}/{file}")
            (folder / file).write_bytes(content)
        else:
            shutil.copy(FILES / file, folder / file)
    return folder / form.file


def attempt(name: str, folder: Path) -> list[Outcome]:
    """Return what `read`, `load_weights` and the ``from_…`` of a format come to."""
    form = FORMATS[name]
    path = folder / form.file
    calls: list[Callable[[], Any]] = [
        lambda: checkpoints.read(path),
        lambda: form.load(folder),
        lambda: form.resume(folder)[1],
    ]
    return [_attempt(call, str(folder)) for call in calls]


def _attempt(call: Callable[[], Any], path: str) -> Outcome:
    try:
        return Outcome("read", _digest(call()))
    except UnforeseenError as error:
        return Outcome("foreign", repr(error.__cause__))
    except ValueError as error:
        return Outcome("refused" if path in str(error) else "unnamed", str(error))
    except Exception as error:
        return Outcome("foreign", repr(error))


def _digest(content: Any) -> str:
    made = hashlib.sha256()
    todo, seen = [content], set()
    while todo:
        part = todo.pop()
        if isinstance(part, dict | list | tuple):
            if id(part) in seen:
                continue
            seen.add(id(part))
        if isinstance(part, np.ndarray | jax.Array):
            made.update(np.asarray(part).tobytes())
        elif isinstance(part, dict):
            made.update(repr([*part]).encode())
            todo += part.values()
        elif isinstance(part, list | tuple):
            made.update(str(len(part)).encode())
            todo += part
        else:
            made.update(repr(part).encode())
    return made.hexdigest()


# --- The process that reads.


def serve() -> None:
    """Answer each line of the standard input: a format and a seed, or a path.

    The limit of memory begins after the first line, which is of a whole file.
    """
    with tempfile.TemporaryDirectory() as made:
        for n, line in enumerate(sys.stdin):
            request = json.loads(line)
            if "path" in request:
                outcomes = [_call(**request)]
            elif "folder" in request:
                outcomes = attempt(request["name"], Path(request["folder"]))
            else:
                folder = Path(made)
                path = unpack(request["name"], folder)
                beside = [folder / file for file in FORMATS[request["name"]].beside]
                if n:
                    pick = random.Random(request["seed"])
                    mutate(pick.choice([path, path, path, *beside]), pick)
                outcomes = attempt(request["name"], folder)
            print(json.dumps(outcomes), flush=True)
            if not n:
                limit = _memory() + MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _call(path: str, function: str, arguments: dict[str, Any]) -> Outcome:
    call = getattr(checkpoints, function)
    return _attempt(lambda: call(path, **arguments), path)


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


# --- The process that asks.


class Reader:
    """Reads files in another process, which it starts again if it dies.

    Attributes:
        whole: What reading the first file came to, which is whole.
    """

    def __init__(self, name: str = "torch") -> None:
        self.name = name
        self._process: Any = None
        self.whole: list[Outcome] = []
        self._start()

    def read_changed(self, seed: int) -> list[Outcome]:
        """Read the recorded file of the format, changed by the seed."""
        return self._ask({"name": self.name, "seed": seed})

    def read(self, path: Path, function: str = "read", **arguments: Any) -> Outcome:
        """Call a function of `rmsprop_jax.checkpoints` with a file."""
        request = {"path": str(path), "function": function, "arguments": arguments}
        return self._ask(request)[0]

    def read_folder(self, folder: Path) -> list[Outcome]:
        """Read a file of the format in a folder."""
        return self._ask({"name": self.name, "folder": str(folder)})

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate()

    def _start(self) -> None:
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import support.strangers as s; s.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Each arena of malloc takes 64 MiB of addresses, which the limit counts.
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONWARNINGS": "ignore",
                "MALLOC_ARENA_MAX": "1",
            },
        )
        self.whole = self._ask({"name": self.name, "seed": 0}, seconds=120)
        assert [outcome.kind for outcome in self.whole[1:]] == ["read", "read"]

    def _ask(self, request: dict[str, Any], seconds: int = SECONDS) -> list[Outcome]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return [Outcome(*outcome) for outcome in json.loads(line)]
        self._process.kill()
        self._process.wait()
        why = f"exit status {self._process.returncode}" if ready else "it took too long"
        self._start()
        return [Outcome("dead", why)]


def main() -> None:
    """Print what happened: ``PYTHONPATH=tests python -m support.strangers COUNT``."""
    count = int(sys.argv[1])
    for name in sys.argv[2:] or FORMATS:
        reader = Reader(name)
        kinds: dict[str, int] = {}
        for seed in range(count):
            outcomes = reader.read_changed(seed)
            kind = describe(outcomes, reader.whole)
            kinds[kind] = kinds.get(kind, 0) + 1
            for outcome in outcomes:
                if outcome.kind not in ("read", "refused"):
                    print("   ", name, seed, *outcome)
        reader.close()
        print(name, kinds, flush=True)


def describe(outcomes: list[Outcome], whole: list[Outcome]) -> str:
    """Return what happened to a changed file, in a word."""
    kinds = {outcome.kind for outcome in outcomes}
    for kind in ("dead", "foreign", "unnamed"):
        if kind in kinds:
            return kind
    # `read` refuses the whole files of Keras and TensorFlow too.
    pairs = zip(outcomes, whole, strict=True)
    changed = {now.kind for now, before in pairs if now != before}
    if not changed - {"refused"}:
        return "refused" if changed else "the same"
    return "another"


if __name__ == "__main__":
    main()
