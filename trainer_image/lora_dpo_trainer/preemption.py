"""A SIGTERM becomes a step on which every host agrees.

One process: a flag set by the handler. Several: JAX's preemption service, which installs its own handler when the
gang is joined (a handler of ours would silence it) and tells every host the same step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Protocol


class Watch(Protocol):
    """Asks whether it is time to go."""

    def reached(self) -> bool:
        """Whether to stop now; the same on every host, each of which must ask the same number of times."""
        ...


class FlagWatch:
    """For one process. Make it after JAX has started, before the first step."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def reached(self) -> bool:
        """Whether the signal has come."""
        return self._asked.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()


class SyncPointWatch:
    """For several processes under `jax.distributed`."""

    def __init__(self) -> None:
        self._asked = 0

    def reached(self) -> bool:
        """Whether this is the question, counted from the start, on which the preemption service lets all agree."""
        from jax.experimental import multihost_utils

        self._asked += 1
        return bool(multihost_utils.reached_preemption_sync_point(self._asked))


def watch(processes: int) -> Watch:
    """The way of this gang."""
    return FlagWatch() if processes == 1 else SyncPointWatch()
