from __future__ import annotations

import random

import pytest

from lora_dpo_trainer.splits import PromptSplit


def hashes(count: int) -> list[int]:
    generator = random.Random(0)
    return [generator.getrandbits(64) for _ in range(count)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_about_the_asked_share_is_held_out(fraction: float) -> None:
    held = sum(PromptSplit(fraction).holds_out(value) for value in hashes(20_000))
    assert abs(held / 20_000 - fraction) < 0.01


def test_consecutive_hashes_are_spread_too() -> None:
    held = sum(PromptSplit(0.1).holds_out(value) for value in range(20_000))
    assert 0.08 < held / 20_000 < 0.12


def test_a_larger_fraction_holds_out_the_same_prompts_and_more() -> None:
    for value in hashes(1000):
        if PromptSplit(0.1).holds_out(value):
            assert PromptSplit(0.2).holds_out(value)
