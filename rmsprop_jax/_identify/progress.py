"""A progress bar for searches that take longer."""

from __future__ import annotations

from typing import Protocol

_DELAY = 5.0  # seconds


class Bar(Protocol):
    """The part of ``tqdm.tqdm`` that is used."""

    def update(self, n: float = 1) -> bool | None: ...

    def close(self) -> None: ...


class _NoBar:
    def update(self, n: float = 1) -> None:
        del n

    def close(self) -> None:
        pass


def make_bar(total: int) -> Bar:
    """Return a bar that appears on a terminal's stderr after some seconds.

    Without tqdm, which is optional, there is no bar.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc="identify", delay=_DELAY, leave=False, disable=None)
