from __future__ import annotations

import numpy as np
import pytest

from lora_dpo_api.config_file import SliceStrategy
from lora_dpo_trainer import slicing
from lora_dpo_trainer.chat import Tokens
from lora_dpo_trainer.rows import Problem


def side(prompt: int, answer: int, first: int = 0) -> Tokens:
    length = prompt + answer
    return Tokens(np.arange(first, first + length, dtype=np.int32), np.arange(length) >= prompt)


@pytest.mark.parametrize("strategy", list(SliceStrategy))
def test_a_pair_that_fits_is_left_alone(strategy: SliceStrategy) -> None:
    chosen, rejected = side(3, 2), side(3, 1)
    assert slicing.fit(chosen, rejected, 5, strategy) == (chosen, rejected)


@pytest.mark.parametrize("strategy", [SliceStrategy.RAISE, SliceStrategy.DROP])
def test_a_longer_pair_is_a_problem_when_one_side_is(strategy: SliceStrategy) -> None:
    assert slicing.fit(side(3, 3), side(3, 1), 5, strategy) is Problem.TOO_LONG


def test_left_keeps_the_beginning() -> None:
    fitted = slicing.fit(side(3, 4), side(3, 1), 5, SliceStrategy.LEFT)
    assert not isinstance(fitted, Problem)
    assert fitted[0].ids.tolist() == [0, 1, 2, 3, 4]
    assert len(fitted[1].ids) == 4


def test_right_keeps_the_end_and_the_same_prompt_on_both_sides() -> None:
    fitted = slicing.fit(side(5, 3), side(5, 1), 6, SliceStrategy.RIGHT)
    assert not isinstance(fitted, Problem)
    assert [part.ids.tolist() for part in fitted] == [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5]]


@pytest.mark.parametrize(("prompt", "strategy"), [(6, SliceStrategy.LEFT), (1, SliceStrategy.RIGHT)])
def test_a_side_without_an_answer_is_not_trained_on(prompt: int, strategy: SliceStrategy) -> None:
    assert slicing.fit(side(prompt, 9), side(prompt, 1), 5, strategy) is Problem.CUT_AWAY
