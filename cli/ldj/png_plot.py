"""Draws curves as a PNG picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from lora_dpo_operator import curves
from lora_dpo_operator.curves import Panel

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 44, 40
_PAPER, _INK, _FAINT, _GRID = "#ffffff", "#1f2937", "#6b7280", "#e5e7eb"
_LINES = {"loss": "#2563eb", "reward margin": "#059669", "accuracy": "#c2410c"}
_SMOOTH = 2
"""Drawn larger by this factor and made smaller, so that lines have no steps."""


def draw(panels: Sequence[Panel], title: str) -> bytes:
    """The panels side by side.

    Args:
        panels: at least one.
        title: above all of them.

    Returns:
        A PNG file.
    """
    width, height = _WIDTH * len(panels), _HEIGHT + 36
    image = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((20 * _SMOOTH, 14 * _SMOOTH), title, fill=_INK, font=ImageFont.load_default(18 * _SMOOTH))
    for index, panel in enumerate(panels):
        _panel(pen, panel, left=index * _WIDTH, top=36)
    kept = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(kept, "PNG", optimize=True)
    return kept.getvalue()


def _panel(pen: ImageDraw.ImageDraw, panel: Panel, *, left: int, top: int) -> None:
    small = ImageFont.load_default(13 * _SMOOTH)
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(step: float, value: float) -> tuple[float, float]:
        x, y = left + _LEFT + panel.x(step) * across, top + _TOP + (1 - panel.y(value)) * down
        return x * _SMOOTH, y * _SMOOTH

    last = curves.label(round(panel.points[-1][1], 4))
    heading = (left + _LEFT) * _SMOOTH, (top + 12) * _SMOOTH
    pen.text(heading, f"{panel.title}, last {last}", fill=_INK, font=ImageFont.load_default(15 * _SMOOTH))
    for mark in curves.ticks(panel.low, panel.high, 6):
        start, end = at(panel.first, mark), at(panel.last, mark)
        pen.line([(left + _LEFT) * _SMOOTH, start[1], (left + _LEFT + across) * _SMOOTH, end[1]], fill=_GRID, width=2)
        pen.text((start[0] - 8 * _SMOOTH, start[1]), curves.label(mark), fill=_FAINT, font=small, anchor="rm")
    for step in curves.ticks(panel.first, panel.last, 5) if panel.last > panel.first else (panel.first,):
        x, y = at(step, panel.low)
        pen.text((x, y + 8 * _SMOOTH), curves.label(step), fill=_FAINT, font=small, anchor="mt")
    if panel.low < panel.level < panel.high:
        (x0, y), (x1, _) = at(panel.first, panel.level), at(panel.last, panel.level)
        for dash in range(int(x0), int(x1), 12 * _SMOOTH):
            pen.line([dash, y, min(dash + 6 * _SMOOTH, x1), y], fill=_FAINT, width=_SMOOTH)
    places = [at(step, value) for step, value in panel.points]
    color = _LINES.get(panel.title, _INK)
    if len(places) > 1:
        pen.line(places, fill=color, width=2 * _SMOOTH + 1, joint="curve")
    for x, y in places:
        pen.ellipse([x - 3 * _SMOOTH, y - 3 * _SMOOTH, x + 3 * _SMOOTH, y + 3 * _SMOOTH], fill=color)
