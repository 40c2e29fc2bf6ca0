"""The training curve as panels to draw: points, ranges and ticks, whatever draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lora_dpo_api.protocol import CurvePoint

LN2 = math.log(2)
"""The loss of a policy that is still its reference."""

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One metric over the steps.

    Attributes:
        title: the metric's name.
        points: steps and finite values, in the order of the steps.
        low: lower end of the vertical axis.
        high: upper end, above `low`.
        level: where the untrained policy lies: ln 2, no margin, a coin's accuracy.
    """

    title: str
    points: tuple[tuple[int, float], ...]
    low: float
    high: float
    level: float

    @property
    def first(self) -> int:
        """The first step."""
        return self.points[0][0]

    @property
    def last(self) -> int:
        """The last step."""
        return self.points[-1][0]

    def x(self, step: float) -> float:
        """Where a step lies, from 0 on the left to 1 on the right."""
        return 0.5 if self.last == self.first else (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        """Where a value lies, from 0 at the bottom to 1 at the top."""
        return (value - self.low) / (self.high - self.low)


def panels(curve: Sequence[CurvePoint]) -> tuple[Panel, ...]:
    """Loss, reward margin and accuracy; those without a single value are left out."""
    made = (
        _panel("loss", [(point.step, point.loss) for point in curve], level=LN2),
        _panel("reward margin", [(point.step, point.reward_margin) for point in curve], level=0.0),
        _panel("accuracy", [(point.step, point.accuracy) for point in curve], level=0.5, bounds=(0.0, 1.0)),
    )
    return tuple(panel for panel in made if panel is not None)


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Round numbers between two ends.

    Args:
        low: the lower end.
        high: the upper end, above `low`.
        most: how many there may be; at least 2.
    """
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * size for nice in _NICE if nice * size >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def label(value: float) -> str:
    """A tick in the shortest usual form: 0.35, 1.2k, 5M."""
    if value == 0:
        return "0"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _panel(
    title: str, values: Sequence[tuple[int, float | None]], *, level: float, bounds: tuple[float, float] | None = None
) -> Panel | None:
    points = tuple(sorted((step, value) for step, value in values if value is not None and math.isfinite(value)))
    if not points:
        return None
    if bounds is not None:
        return Panel(title, points, *bounds, level)
    lowest = min(level, *(value for _, value in points))
    highest = max(level, *(value for _, value in points))
    room = 0.08 * (highest - lowest) or max(0.05, 0.1 * abs(highest))
    return Panel(title, points, lowest - room, highest + room, level)
