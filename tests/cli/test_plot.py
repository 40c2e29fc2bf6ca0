from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldj import plot, png_plot, terminal_plot
from lora_dpo_api.protocol import CurvePoint
from lora_dpo_operator import curves

from . import jobs

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)


def test_the_curves_in_a_terminal_are_as_committed(told: Callable[[str, str], None]) -> None:
    told("plot", plot.in_terminal(jobs.job(**jobs.RUNNING), width=80) + "\n")


def test_the_untrained_policys_loss_is_always_in_the_picture() -> None:
    loss, *_ = curves.panels([CurvePoint(step=1, loss=0.1), CurvePoint(step=2, loss=0.09)])
    assert loss.low < 0.09
    assert loss.high > math.log(2)


def test_accuracy_always_spans_its_whole_range() -> None:
    (panel,) = curves.panels([CurvePoint(step=5, accuracy=0.6)])
    assert (panel.title, panel.low, panel.high) == ("accuracy", 0.0, 1.0)


def test_metrics_that_nobody_told_have_no_panel() -> None:
    assert curves.panels([CurvePoint(step=1)]) == ()


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 5, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (1, 2000, 5, (500.0, 1000.0, 1500.0, 2000.0)),
        (-0.03, 0.7, 4, (0.0, 0.2, 0.4, 0.6)),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, most: int, expected: tuple[float, ...]) -> None:
    assert curves.ticks(low, high, most) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 10**6), NUMBERS), min_size=1, max_size=32), st.integers(24, 200))
def test_any_curve_fits_the_width_it_is_given(points: list[tuple[int, float]], width: int) -> None:
    for panel in curves.panels([CurvePoint(step=step, loss=value) for step, value in points]):
        lines = terminal_plot.draw(panel, width=width, height=8).splitlines()
        assert len(lines) == 11
        assert all(len(line) <= max(width, len(lines[0])) for line in lines)


def test_a_picture_is_a_png_of_all_panels() -> None:
    picture = Image.open(io.BytesIO(png_plot.draw(curves.panels(jobs.job(**jobs.RUNNING).status.curve), "team-a/tiny")))
    assert (picture.format, picture.size) == ("PNG", (3 * 560, 376))
    # Every metric's line is there, in its own colour.
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1_000_000) or []}
    assert {(0x25, 0x63, 0xEB), (0x05, 0x96, 0x69), (0xC2, 0x41, 0x0C)} <= colours


def test_a_single_point_is_drawn_too() -> None:
    panels = curves.panels([CurvePoint(step=3, loss=0.6931, reward_margin=0.0, accuracy=0.0)])
    assert len(png_plot.draw(panels, "one")) > 0
    assert "step 3" in terminal_plot.draw(panels[0], width=60, height=6)


def test_points_are_data_for_programs() -> None:
    points: list[dict[str, Any]] = plot.points_of(jobs.job(**jobs.RUNNING))
    assert json.loads(json.dumps(points))[0] == {"step": 1, "loss": 0.6931, "rewardMargin": 0.0, "accuracy": 0.0}


def test_a_png_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "curve.png"
    file.write_bytes(png_plot.draw(curves.panels(jobs.job(**jobs.SUCCEEDED).status.curve), "team-a/tiny"))
    assert file.stat().st_size < 100_000
