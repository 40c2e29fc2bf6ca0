"""A set of 64-bit hashes for millions of rows: 8 bytes each, where Python's own set takes ten times as much."""

from __future__ import annotations

import numpy as np

_FRESH = 1 << 16


class Seen:
    """Remembers hashes, 64-bit and not negative; their number is `len`."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._fresh: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._fresh)

    def __contains__(self, value: int) -> bool:
        if value in self._fresh:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(value)))
        return place < len(self._sorted) and int(self._sorted[place]) == value

    def add(self, value: int) -> bool:
        """Remember a hash.

        Returns:
            Whether it is new.
        """
        if value in self:
            return False
        self._fresh.add(value)
        if len(self._fresh) >= _FRESH:
            fresh = np.fromiter(self._fresh, np.uint64, len(self._fresh))
            self._sorted = np.sort(np.concatenate([self._sorted, fresh]))
            self._fresh = set()
        return True
