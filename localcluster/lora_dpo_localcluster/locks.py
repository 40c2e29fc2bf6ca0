"""Locks between processes: two starts of one cluster, or two builds of one tool, take turns."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits for its turn.

    The kernel frees the lock when its holder dies, so a killed process never leaves a stale one.

    Args:
        path: the lock file; made, with its folder, where missing, and never removed (removing it would let a third
            process lock a new file of the same name).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on a file if nobody else does; never waits.

    Args:
        path: the lock file, as in `locked`.

    Yields:
        Whether the lock is held here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
