"""The line protocol between the benchmark and a contender: one process, one step at a time, on command.

A contender loads, warms up and says `{"ready": …}`. Then it answers every line `step` with the seconds that the step
took, and waits: no two contenders ever compute at the same time. It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Runs from its making: seconds by the clock, and seconds of all of the process's threads together.

    The latter hardly depend on what else the machine does, and so compare two builds on a busy one.
    """

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, so far."""
        return {"seconds": time.perf_counter() - self._clock, "cpu_seconds": time.process_time() - self._cpu}


class Channel:
    """The contender's side: keeps standard output for the protocol, and sends what libraries print to the errors."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def ready(self, **facts: Any) -> None:
        """Say that the warm-up is over."""
        self._say({"ready": facts})

    def wait(self) -> bool:
        """Wait for the next command; False when there is none any more."""
        return sys.stdin.readline().strip() == "step"

    def took(self, watch: Stopwatch, **facts: Any) -> None:
        """Answer a command."""
        self._say({**watch.read(), **facts})

    def serve(self, step: Callable[[], dict[str, Any]]) -> None:
        """Run and time a step at every command, until there are no more."""
        while self.wait():
            watch = Stopwatch()
            facts = step()
            self.took(watch, **facts)

    def _say(self, value: dict[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
