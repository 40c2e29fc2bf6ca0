"""Waiting for conditions, with an error that says what was waited for and where to look."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lora_dpo_localcluster import errors


def until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout: float,
    interval: float = 0.1,
    log: Path | None = None,
    alive: Callable[[], bool] | None = None,
) -> None:
    """Return when a condition holds.

    Args:
        condition: asked again and again.
        what: what is waited for, for the error.
        timeout: seconds.
        interval: seconds between two questions.
        log: the file whose end explains a failure.
        alive: whether waiting still makes sense.

    Raises:
        NotReadyError: it doesn't hold in time, or never will.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if alive is not None and not alive():
            raise errors.NotReadyError(f"Waited for {what}, but its process ended.{_tail(log)}")
        if time.monotonic() > deadline:
            raise errors.NotReadyError(f"Waited {timeout:.0f} s for {what}.{_tail(log)}")
        time.sleep(interval)


def _tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-8:]
    return f" The end of {log}:\n" + "\n".join(line[:400] for line in lines)
