"""Read the pickled files of torch, Stable-Baselines3 and Paddle.

- torch 1.6 and later: a zip file of one folder, in which ``data.pkl`` is the pickle and
  ``data/0``, ``data/1`` and so on are the bytes of the tensors.
- torch before 1.6: five pickles one after the other (a magic number, a protocol number,
  a description of the machine, the content, the keys of the storages), and then for
  each key the number of elements and the bytes.
- Stable-Baselines3: a zip file in which every ``.pth`` is a file of torch, and ``data``
  has the agent's settings in JSON.
- Paddle: a pickle that contains the bytes of the arrays.
"""

from __future__ import annotations

import functools
from typing import Any

from rmsprop_jax.checkpoints._readers.pickles import PickleMachine
from rmsprop_jax.checkpoints._readers.source import (
    DamagedError,
    Source,
    Storage,
    UnsupportedError,
)

# What a file of torch before 1.6 begins with, as a pickled integer.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


def is_torch(source: Source) -> bool:
    """Whether torch 1.6 or later wrote the file."""
    return _find_pickle(source) is not None


def is_torch_legacy(source: Source) -> bool:
    """Whether a torch before 1.6 wrote the file."""
    try:
        return PickleMachine(source, source.head).load() == _MAGIC_NUMBER
    except (DamagedError, UnsupportedError):
        return False


def is_stable_baselines3(source: Source) -> bool:
    """Whether Stable-Baselines3 wrote the file."""
    return any(name.endswith(".pth") for name in source.members)


def is_paddle(source: Source) -> bool:
    """Whether the file is a pickle, like those of Paddle."""
    return source.head.startswith(b"\x80")


def read_torch(source: Source) -> object:
    """Read a file of torch 1.6 or later."""
    pickled = _find_pickle(source)
    assert pickled is not None
    folder = pickled.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in source.members and source.read_member(order) != b"little":
        raise UnsupportedError("its bytes are in the order of another machine")
    storages: dict[str, Storage] = {}
    data = source.read_member(pickled)
    content = PickleMachine(source, data, storages=storages).load()
    for key, storage in storages.items():
        member = f"{folder}data/{key}"
        storage.read_bytes = functools.partial(source.read_within_member, member)
        storage.verify = functools.partial(source.verify_member, member)
    return content


def read_torch_legacy(source: Source) -> object:
    """Read a file of a torch before 1.6."""
    data = source.map()
    storages: dict[str, Storage] = {}
    position = 0
    values: list[object] = []
    for _ in range(5):
        machine = PickleMachine(source, data, position, storages)
        values.append(machine.load())
        position = machine.position
    *_, content, keys = values
    order = [key for key in keys if isinstance(key, str)] if type(keys) is list else []
    if set(order) != set(storages):
        raise DamagedError("its list of storages is not what its tensors need")
    for key in order:
        storage = storages[key]
        position += 8  # the number of elements
        if position + storage.size > source.size:
            raise DamagedError("the last tensors are missing")
        storage.read_bytes = functools.partial(
            source.read_within, position, storage.size
        )
        position += storage.size
    return content


def read_stable_baselines3(source: Source) -> dict[str, Any]:
    """Read a file of Stable-Baselines3: its settings and each of its ``.pth`` files."""
    found: dict[str, Any] = {}
    if "data" in source.members:
        found["data"] = source.read_member("data").decode(errors="replace")
    for name in source.members:
        if name.endswith(".pth"):
            inner = source.open_member(name)
            if is_torch(inner):
                found[name] = read_torch(inner)
            elif is_torch_legacy(inner):
                found[name] = read_torch_legacy(inner)
            else:
                raise DamagedError(f"its member {name!r} is not a file of torch")
    return found


def read_paddle(source: Source) -> object:
    """Read a file of Paddle."""
    return PickleMachine(source, source.map()).load()


def _find_pickle(source: Source) -> str | None:
    names = (n for n in source.members if n.rpartition("/")[2] == "data.pkl")
    return next(names, None)
