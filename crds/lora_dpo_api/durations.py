"""Durations as people write them: `90s`, `2m`, `1h30m`, `7d`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

PATTERN = r"^([1-9][0-9]{0,4}d)?([1-9][0-9]{0,4}h)?([1-9][0-9]{0,5}m)?([1-9][0-9]{0,6}s)?$"
"""Days, hours, minutes and seconds, in that order; at least one of them (held by the length), none of them zero."""

Duration = Annotated[str, Field(pattern=PATTERN, min_length=2, max_length=16)]
"""The wire form; `seconds` gives its value."""

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"([0-9]+)([dhms])")


def seconds(text: str) -> int:
    """The length of a duration.

    Args:
        text: such as `2m` or `1h30m`.

    Returns:
        Whole seconds.

    Raises:
        ValueError: the text is not a duration; the message says what is.
    """
    if not text or not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 2m, 1h30m or 7d")
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def text(length: float) -> str:
    """The shortest usual form of a length in seconds, to the two largest units: `1h12m`, `45s`, `3d4h`."""
    left = max(0, round(length))
    parts: list[str] = []
    for unit, size in _UNITS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        if parts and (len(parts) == 2 or not count):
            break
    return "".join(parts) or "0s"
