"""Makes a real trainer fail after a step. Mounted as `sitecustomize`, which Python imports before it starts anything.

SABOTAGE           what happens: segfault, memory or hang; nothing by default
SABOTAGE_STEP      after which step
SABOTAGE_ATTEMPTS  in which attempts, such as `0`; in all of them by default
SABOTAGE_PAUSE     seconds after each step, so that a job lasts and takes little of the machine
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

STEP = int(os.environ.get("SABOTAGE_STEP", "3"))
PAUSE = float(os.environ.get("SABOTAGE_PAUSE", "0"))


def segfault() -> None:
    """Read where there is nothing: the first process of a container ignores signals that it sends itself."""
    ctypes.string_at(0)


def memory() -> None:
    """Use memory until the kernel ends it."""
    held = []
    while True:
        held.append(b"x" * (64 << 20))


def hang() -> None:
    """Make no step any more; whoever asks is answered."""
    while True:
        time.sleep(60)


KINDS: Mapping[str, Callable[[], None]] = {"segfault": segfault, "memory": memory, "hang": hang}


def install() -> None:
    """Let it happen when the trainer records the step."""
    chosen = KINDS.get(os.environ.get("SABOTAGE", ""))
    attempts = os.environ.get("SABOTAGE_ATTEMPTS", "")
    if attempts and os.environ.get("LORADPO_RESTART_ATTEMPT") not in attempts.split(","):
        chosen = None

    from lora_dpo_trainer import progress

    record = progress.Progress.record

    def sabotaged(self: progress.Progress, step: int, *arguments: Any, **named: Any) -> None:
        record(self, step, *arguments, **named)
        time.sleep(PAUSE)
        if chosen is not None and step == STEP:
            chosen()

    progress.Progress.record = sabotaged  # type: ignore[method-assign]


if os.environ.get("LORADPO_PHASE") == "train":
    install()
