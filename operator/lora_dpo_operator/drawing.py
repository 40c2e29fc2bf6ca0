"""Panels of a curve as the numbers of an SVG picture."""

from __future__ import annotations

import dataclasses

from lora_dpo_operator import curves
from lora_dpo_operator.curves import Panel

WIDTH, HEIGHT = 360, 200
"""Size of the picture, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 24
"""Margins, for the labels."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A label beside an axis, and where it is."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    """One panel, drawn.

    Attributes:
        title: the metric's name.
        kind: the same as a CSS class.
        points: `x,y` pairs of a polyline.
        dots: centres of the points.
        rows: marks of the vertical axis.
        columns: marks of the horizontal axis.
        level: height of the untrained policy's line.
        last: the last value, as text.
        summary: what a reader who can't see it is told.
    """

    title: str
    kind: str
    points: str
    dots: tuple[tuple[float, float], ...]
    rows: tuple[Mark, ...]
    columns: tuple[Mark, ...]
    level: float
    last: str
    summary: str


def draw(panel: Panel) -> Drawing:
    """Lay a panel out."""
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return round(LEFT + panel.x(step) * across, 1)

    def y(value: float) -> float:
        return round(TOP + (1 - panel.y(value)) * down, 1)

    dots = tuple((x(step), y(value)) for step, value in panel.points)
    steps = curves.ticks(panel.first, panel.last, 5) if panel.last > panel.first else (panel.first,)
    first, last = (f"{panel.points[end][1]:.4g}" for end in (0, -1))
    return Drawing(
        title=panel.title,
        kind=panel.title.replace(" ", "-"),
        points=" ".join(f"{left:g},{top:g}" for left, top in dots),
        dots=dots,
        rows=tuple(Mark(y(value), curves.label(value)) for value in curves.ticks(panel.low, panel.high, 5)),
        columns=tuple(Mark(x(step), curves.label(step)) for step in steps),
        level=y(panel.level),
        last=last,
        summary=f"{panel.title}: {first} at step {panel.first}, {last} at step {panel.last}",
    )


def spark(panel: Panel, width: float = 96, height: float = 24) -> str:
    """The points of a tiny line without axes."""
    room = 2
    return " ".join(
        f"{room + panel.x(step) * (width - 2 * room):.1f},{room + (1 - panel.y(value)) * (height - 2 * room):.1f}"
        for step, value in panel.points
    )
