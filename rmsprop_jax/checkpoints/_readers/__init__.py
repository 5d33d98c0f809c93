"""Read files of other frameworks without them: from bytes to dictionaries of arrays.

Nothing here knows about optimizers. Each reader recognizes its own files by their
content, not by their names. To add a format, write a module with a reader, and add a
line to `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rmsprop_jax.checkpoints._readers import (
    distributed,
    keras_h5,
    pickled,
    tensor_bundle,
)
from rmsprop_jax.checkpoints._readers.pickles import Namespace, StoredBytes
from rmsprop_jax.checkpoints._readers.source import (
    File,
    Source,
    StoredArray,
    UnsupportedError,
    explain_errors,
)

_MAX_DEPTH = 200


class Reader(NamedTuple):
    """Reads the files of one format.

    Attributes:
        framework: The framework of the format. The function ``from_…`` of this name
            takes it.
        recognizes: From a file to whether it has the format, by its content.
        read: From a file to what it holds. Its arrays may be read later.
    """

    framework: str
    recognizes: Callable[[Source], bool]
    read: Callable[[Source], object]


READERS = (
    Reader("keras", keras_h5.is_keras, keras_h5.read_keras),
    Reader("tensorflow", tensor_bundle.is_bundle, tensor_bundle.read_bundle),
    Reader("torch", pickled.is_torch, pickled.read_torch),
    Reader("torch", pickled.is_torch_legacy, pickled.read_torch_legacy),
    Reader("torch", distributed.is_distributed, distributed.read_distributed),
    Reader(
        "stable_baselines3",
        pickled.is_stable_baselines3,
        pickled.read_stable_baselines3,
    ),
    Reader("paddle", pickled.is_paddle, pickled.read_paddle),
)


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        framework: What wrote it.
        content: Dictionaries of arrays and settings, as its reader makes them.
    """

    framework: str
    content: Any


def read_file(path: File, *frameworks: str) -> Checkpoint:
    """Read a file that one of the frameworks wrote; by default any.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is damaged, or not a file of these frameworks.
    """
    with explain_errors(path):
        source = _open_source(path)
        for reader in READERS:
            if reader.recognizes(source):
                break
        else:
            raise UnsupportedError(_describe_unknown(source))
        if frameworks and reader.framework not in frameworks:
            others = " or ".join(frameworks)
            raise UnsupportedError(
                f"it must be a file of {others}, but it is one of {reader.framework}: "
                f"use {_FUNCTIONS.get(reader.framework, f'from_{reader.framework}')}"
            )
        return Checkpoint(reader.framework, reader.read(source))


_FUNCTIONS = {"torch": "from_torch or from_timm"}


def _open_source(path: File) -> Source:
    file = Path(path)
    index = tensor_bundle.INDEX.format(path)
    if not file.is_file() and Path(index).is_file():
        file = Path(index)  # the path is the common prefix of TensorFlow's files
    if (file / distributed.METADATA).exists():
        file /= distributed.METADATA
    if file.is_dir():
        raise UnsupportedError(_describe_folder(file))
    if not file.exists() and (prefixes := find_prefixes(file.parent, file.name)):
        raise FileNotFoundError(
            f"There is no file {str(file)!r}. For TensorFlow's files, give their "
            f"common prefix: {' or '.join(map(repr, prefixes))}."
        )
    if file.suffix == ".distcp":
        raise UnsupportedError(
            "it is one of the files that torch.distributed.checkpoint wrote: give "
            "their folder"
        )
    return Source(file)


def find_prefixes(folder: Path, start: str = "") -> list[str]:
    """Return the common prefixes of TensorFlow's files in a folder, at most four."""
    if not folder.is_dir():
        return []
    found = [x for x in folder.iterdir() if x.suffix == ".index"]
    return sorted(str(x.with_suffix("")) for x in found if x.name.startswith(start))[:4]


def _describe_folder(folder: Path) -> str:
    if any(folder.glob("*.distcp")):
        return (
            f"it has no {distributed.METADATA}, which torch.distributed.checkpoint "
            "writes last: saving did not finish, or the folder was not copied "
            "completely"
        )
    if any(folder.glob("*.safetensors")):
        return (
            "it is a folder of safetensors files, which hold no optimizer settings: "
            "safetensors.numpy.load_file reads each file"
        )
    if prefixes := find_prefixes(folder):
        return (
            "it is a folder. For TensorFlow's files, give their common prefix: "
            f"{' or '.join(map(repr, prefixes))}"
        )
    return (
        "it must be a file, or a folder that torch.distributed.checkpoint wrote. For "
        f"TensorFlow's SavedModel, give '{folder}/variables/variables'"
    )


def _describe_unknown(source: Source) -> str:
    must = (
        "it must be a checkpoint of torch, Stable-Baselines3, Keras, TensorFlow or "
        "Paddle, but "
    )
    if source.members:
        return f"{must}it is a zip file of {[*source.members][:8]}"
    if not source.head:
        return f"{must}it is empty"
    if source.head[8:10] == b'{"':
        return f"{must}it is a safetensors file: safetensors.numpy.load_file reads it"
    return f"{must}it begins with {source.head[:8]!r}, unlike all of their files"


def materialize(content: object) -> Any:
    """Return content of dictionaries and lists with all its arrays read."""
    made: dict[int, Any] = {}

    def visit(x: Any, depth: int) -> Any:
        if isinstance(x, StoredArray):
            return x.read()
        if isinstance(x, StoredBytes):
            return bytes(x.storage.read())
        if not isinstance(x, dict | list | tuple | Namespace):
            return x
        if id(x) in made:  # an object in two places stays one object
            return made[id(x)]
        if depth > _MAX_DEPTH:
            raise UnsupportedError(f"it nests more than {_MAX_DEPTH} levels deep")
        if isinstance(x, tuple):
            made[id(x)] = tuple(visit(child, depth + 1) for child in x)
        elif isinstance(x, list):
            made[id(x)] = copy = []
            copy += [visit(child, depth + 1) for child in x]
        else:
            made[id(x)] = copy = {} if isinstance(x, dict) else Namespace()
            target = copy if isinstance(copy, dict) else copy.__dict__
            items = x.items() if isinstance(x, dict) else x.__dict__.items()
            target.update({key: visit(child, depth + 1) for key, child in items})
        return made[id(x)]

    return visit(content, 0)
