"""What the cluster warns of, read once for all jobs of a namespace.

The API server keeps no index of events: to tell those about one object it walks over all that the namespace has, which
is tens of milliseconds where a thousand jobs have just been made. So one reading serves everything that waits there,
and one that took long serves longer.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

_MOST = 20
"""Events of one object that are kept, the last ones."""
_SHARE = 20
"""A reading serves so many times as long as it took: it takes at most a twentieth of the time."""

type _Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Reading:
    about: Mapping[str, tuple[_Manifest, ...]]
    until: float


class WarningEvents:
    """The last reading of each namespace in which something waits."""

    def __init__(
        self, read: Callable[[str], Awaitable[list[_Manifest]]], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._readings: dict[str, _Reading] = {}
        self._locks: collections.defaultdict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)

    async def about(self, namespace: str, uid: str, *, age: float) -> tuple[_Manifest, ...]:
        """The last warnings about an object.

        Args:
            namespace: where it is.
            uid: the object's.
            age: seconds for which a reading serves at least.
        """
        async with self._locks[namespace]:
            now = self._monotonic()
            if namespace not in self._readings or self._readings[namespace].until <= now:
                # Those of others that nobody has asked for since are dropped.
                self._readings = {name: one for name, one in self._readings.items() if one.until > now}
                found = _by_uid(await self._read(namespace))
                took = self._monotonic() - now
                self._readings[namespace] = _Reading(found, now + took + max(age, _SHARE * took))
            return self._readings[namespace].about.get(uid, ())


def _by_uid(events: list[_Manifest]) -> dict[str, tuple[_Manifest, ...]]:
    found: collections.defaultdict[str, collections.deque[_Manifest]] = collections.defaultdict(
        lambda: collections.deque(maxlen=_MOST)
    )
    for event in events:
        found[event.get("involvedObject", {}).get("uid", "")].append(event)
    return {uid: tuple(about) for uid, about in found.items()}
