"""Which framework wrote a file: its content says it, whatever its name is."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TypeAlias

# Path-like, or a string.
File: TypeAlias = str | os.PathLike[str]

# How a torch file before 1.6 begins, a pickled number.
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_HDF5 = b"\x89HDF\r\n\x1a\n"
_READERS = {
    "torch": "from_torch or from_timm",
    "stable_baselines3": "from_stable_baselines3",
    "keras": "from_keras",
    "tensorflow": "from_tensorflow",
    "paddle": "from_paddle",
}


def framework_of(path: File) -> str:
    """Which of ``"torch"``, ``"keras"`` and so on wrote a file.

    Raises:
        FileNotFoundError: Where there is none.
        ValueError: Where it is damaged, or no framework's.
    """
    path = Path(path)
    if Path(f"{path}.index").is_file():
        return "tensorflow"
    if path.is_dir():
        raise ValueError(
            f"{str(path)!r} must be a file, but it is a folder. One that "
            "torch.distributed.checkpoint wrote becomes a file by its "
            "format_utils.dcp_to_torch_save. Of TensorFlow's SavedModel it is "
            f"'{path}/variables/variables'."
        )
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"PK"):
        return _zip_of(path)
    if head.startswith(_HDF5):
        return "keras"
    if head.startswith(TORCH_LEGACY):
        return "torch"
    if head.startswith(b"\x80"):
        return "paddle"
    if not head:
        why = "it is empty"
    elif head[8:10] == b'{"':
        why = "it is one of safetensors: safetensors.numpy.load_file reads it"
    else:
        why = f"it begins with {head[:8]!r}, as none of theirs does"
    raise ValueError(
        f"{str(path)!r} must be a checkpoint of torch, Stable-Baselines3, Keras, "
        f"TensorFlow or Paddle, but {why}."
    )


def check_is_of(path: File, *frameworks: str) -> None:
    """Raises where another framework wrote the file; names what reads it."""
    found = framework_of(path)
    if found not in frameworks:
        raise ValueError(
            f"{str(path)!r} must be a file of {' or '.join(frameworks)}, but it is one "
            f"of {found}: use {_READERS[found]}."
        )


def damaged(path: File, why: object) -> ValueError:
    """What to raise where a file ends too early, or holds nonsense."""
    return ValueError(
        f"{str(path)!r} must be a whole file, but it is cut off or damaged: {why}. "
        "Copy it again."
    )


def _zip_of(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            first = min((m.header_offset for m in file.infolist()), default=0)
    except zipfile.BadZipFile as error:
        raise damaged(path, error) from error
    if first:  # what was found is a zip file within one that was cut off
        raise damaged(path, "its list of members is not there")
    ends = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in ends:
        return "torch"
    if "policy.pth" in ends:
        return "stable_baselines3"
    if "config.json" in ends or "model.weights.h5" in ends:
        return "keras"
    raise ValueError(
        f"{str(path)!r} must be a checkpoint of torch, Stable-Baselines3 or Keras, but "
        f"it is a zip file of {names[:8]}."
    )
