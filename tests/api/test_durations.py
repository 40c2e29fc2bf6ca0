from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo_api import durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("1h30m", 5400), ("24h", 86_400), ("7d", 604_800), ("1d1s", 86_401)]
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: int) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "5", "m", "1s1m", "-1h", "1.5h", "2 m", "1h0m"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 90s, 2m, 1h30m or 7d"):
        durations.seconds(text)


@pytest.mark.parametrize(
    ("length", "text"), [(0, "0s"), (45, "45s"), (4320, "1h12m"), (4325, "1h12m"), (273_600, "3d4h"), (86_401, "1d")]
)
def test_a_length_is_shown_in_its_two_largest_units(length: float, text: str) -> None:
    assert durations.text(length) == text


@given(st.from_regex(durations.PATTERN, fullmatch=True).filter(lambda text: len(text) > 1))
def test_every_written_duration_is_longer_than_zero(text: str) -> None:
    assert durations.seconds(text) > 0
