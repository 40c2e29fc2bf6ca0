from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_dpo_api.config_file import PreferenceChatFormat
from lora_dpo_trainer import rows
from lora_dpo_trainer.rows import ChatPair, Problem, Rejection
from lora_dpo_trainer.sources import RawRow

LAYOUT = PreferenceChatFormat()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


QUESTION, GOOD, BAD = turn("user", "which"), turn("assistant", "this"), turn("assistant", "that")


def parse(value: Any, layout: PreferenceChatFormat = LAYOUT) -> ChatPair | Rejection:
    return rows.parse(RawRow("rows.jsonl:7", value), layout)


def accepted(value: Any, layout: PreferenceChatFormat = LAYOUT) -> ChatPair:
    pair = parse(value, layout)
    assert isinstance(pair, ChatPair), pair
    return pair


def test_the_shared_turns_become_the_prompt(row: Callable[..., dict[str, Any]]) -> None:
    pair = accepted(row())
    assert (pair.prompt, pair.chosen, pair.rejected) == ((QUESTION,), (GOOD,), (BAD,))


def test_earlier_assistant_turns_belong_to_the_prompt() -> None:
    lead = [QUESTION, turn("assistant", "hm"), turn("user", "so?")]
    assert accepted({"chosen": [*lead, GOOD], "rejected": [*lead, BAD]}).prompt == tuple(lead)


def test_an_explicit_prompt_field_is_put_before_both_answers() -> None:
    pair = accepted({"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((QUESTION,), (GOOD,), (BAD,))


def test_plain_strings_are_a_question_and_two_answers() -> None:
    pair = accepted({"prompt": "which", "chosen": "this", "rejected": "that"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((QUESTION,), (GOOD,), (BAD,))


def test_a_prompt_beside_whole_transcripts_is_not_repeated(row: Callable[..., dict[str, Any]]) -> None:
    assert accepted(row() | {"prompt": "which"}).prompt == (QUESTION,)


def test_a_system_field_leads_both_sides(row: Callable[..., dict[str, Any]]) -> None:
    layout = PreferenceChatFormat(system_prompt="system")
    assert accepted(row() | {"system": "be kind"}, layout).prompt == (turn("system", "be kind"), QUESTION)
    assert accepted(row() | {"system": {"content": "be kind"}}, layout).prompt[0] == turn("system", "be kind")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, Problem.NOT_JSON),
        ({"chosen": [QUESTION, GOOD]}, Problem.MISSING_FIELD),
        ({"chosen": [QUESTION, GOOD], "rejected": 5}, Problem.NOT_MESSAGES),
        ({"chosen": [QUESTION, GOOD], "rejected": [{"role": "user"}]}, Problem.NOT_MESSAGES),
        ({"chosen": [QUESTION, GOOD], "rejected": []}, Problem.EMPTY_ANSWER),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION, turn("assistant", " ")]}, Problem.EMPTY_ANSWER),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION]}, Problem.NO_ANSWER),
        ({"chosen": [QUESTION, GOOD], "rejected": [turn("user", "what"), BAD]}, Problem.PROMPTS_DIFFER),
        ({"chosen": [GOOD], "rejected": [BAD]}, Problem.PROMPTS_DIFFER),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION, GOOD]}, Problem.SAME_ANSWER),
    ],
)
def test_a_row_that_is_no_pair_is_named(value: Any, problem: Problem) -> None:
    rejection = parse(value)
    assert isinstance(rejection, Rejection)
    assert (rejection.where, rejection.problem) == ("rows.jsonl:7", problem)


def test_equal_prompts_have_equal_hashes(row: Callable[..., dict[str, Any]]) -> None:
    first, second, other = (accepted(row(prompt, answer)) for prompt, answer in (("a", "x"), ("a", "y"), ("b", "x")))
    assert first.prompt_hash == second.prompt_hash != other.prompt_hash


def test_a_tally_counts_all_and_shows_the_first() -> None:
    tally = rows.Tally()
    for line in range(1, 6):
        tally.add(Rejection(f"rows.jsonl:{line}", Problem.NOT_JSON))
    tally.add(Rejection("rows.jsonl:9", Problem.SAME_ANSWER))
    assert (tally.fatal, tally.skipped) == (5, 1)
    assert tally.sentences(fatal_only=True) == ("5 rows: not a JSON object (rows.jsonl:1, rows.jsonl:2, rows.jsonl:3)",)
