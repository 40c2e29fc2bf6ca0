"""When each job is to be taken up again, and why."""

from __future__ import annotations

import enum
import math

from lora_dpo_operator.metrics import Key


class Turn(enum.Enum):
    """Why a job is to be taken up.

    Attributes:
        LIMIT: something failed and is tried again, or a limit is reached.
        HEARD: watches told of its children, soon after it was looked at.
        LOOK: something may have changed of which no watch tells.
        POLL: its progress is to be read.
    """

    LIMIT = enum.auto()
    HEARD = enum.auto()
    LOOK = enum.auto()
    POLL = enum.auto()


class Schedule:
    """One time for each job and reason, by the monotonic clock. Jobs at rest have none, and cost nothing."""

    def __init__(self) -> None:
        self._times: dict[Turn, dict[Key, float]] = {turn: {} for turn in Turn}

    def set(self, turn: Turn, key: Key, time: float | None) -> None:
        """Set a job's time, or take it away."""
        if time is None:
            self._times[turn].pop(key, None)
        else:
            self._times[turn][key] = time

    def time(self, turn: Turn, key: Key) -> float:
        """A job's time; infinity where it has none."""
        return self._times[turn].get(key, math.inf)

    def count(self, turn: Turn) -> int:
        """How many jobs have such a time."""
        return len(self._times[turn])

    def due(self, turn: Turn, now: float) -> list[Key]:
        """Jobs whose time has come, those that wait longest first."""
        times = self._times[turn]
        return sorted((key for key, time in times.items() if time <= now), key=times.__getitem__)

    def forget(self, key: Key) -> None:
        """Take all times of a job away."""
        for times in self._times.values():
            times.pop(key, None)
