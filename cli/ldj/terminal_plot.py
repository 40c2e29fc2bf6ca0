"""Draws a curve in a terminal, in Braille: two by four dots a character."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lora_dpo_operator import curves
from lora_dpo_operator.curves import Panel

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character, row by row."""
_BRAILLE = 0x2800
_LEVEL = "┈"


def draw(panel: Panel, *, width: int, height: int) -> str:
    """One panel as lines of text.

    Args:
        panel: what to draw.
        width: characters in a line, axis included; at least 24.
        height: lines of the picture itself, to which title and axis are added; at least 3.
    """
    marks = curves.ticks(panel.low, panel.high, max(2, height // 3))
    margin = max(len(curves.label(mark)) for mark in marks)
    columns = width - margin - 2
    rows = _picture(panel, columns, height)
    by_row = {_row(panel, mark, height): curves.label(mark) for mark in marks}
    level = _row(panel, panel.level, height) if panel.low <= panel.level <= panel.high else None
    lines = [f"{'':{margin}}  {panel.title}, last {curves.label(round(panel.points[-1][1], 4))}"]
    for index, row in enumerate(rows):
        name = by_row.get(index, "")
        shown = "".join(_LEVEL if index == level and char == " " else char for char in row)
        lines.append(f"{name:>{margin}} {'┤' if name else '│'}{shown}".rstrip())
    lines.append(f"{'':{margin}} └{'─' * columns}")
    lines.append(f"{'':{margin}}  {_steps(panel, columns)}")
    return "\n".join(lines)


def _picture(panel: Panel, columns: int, height: int) -> Iterator[str]:
    wide, high = 2 * columns, 4 * height
    cells = [[0] * columns for _ in range(height)]
    for x, y in _path(panel, wide, high):
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ("".join(chr(_BRAILLE + bits) if bits else " " for bits in row) for row in cells)


def _path(panel: Panel, wide: int, high: int) -> Iterator[tuple[int, int]]:
    """The dots of the line through all points."""
    places = [
        (round(panel.x(step) * (wide - 1)), round((1 - panel.y(value)) * (high - 1))) for step, value in panel.points
    ]
    yield places[0]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for part in range(1, length + 1):
            yield round(x0 + (x1 - x0) * part / length), round(y0 + (y1 - y0) * part / length)


def _row(panel: Panel, value: float, height: int) -> int:
    return round((1 - panel.y(value)) * (4 * height - 1)) // 4


def _steps(panel: Panel, columns: int) -> str:
    first, last = f"step {panel.first}", str(panel.last)
    return first if panel.first == panel.last else f"{first}{last:>{columns - len(first)}}"
