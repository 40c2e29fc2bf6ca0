import json
from pathlib import Path
from typing import Any

import make_data
import pytest
import scoring

DATA = make_data.DATA


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def prompt(row: dict[str, Any]) -> str:
    return str(row["chosen"][0]["content"])


@pytest.fixture(scope="module")
def facts() -> tuple[make_data.Fact, ...]:
    return make_data.parse_facts((DATA / "facts.txt").read_text())


def test_the_committed_pairs_are_what_the_generator_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("facts.txt", "base_answers.jsonl"):
        (tmp_path / name).write_text((DATA / name).read_text())
    monkeypatch.setattr(make_data, "DATA", tmp_path)
    make_data.main()
    for name in ("train.jsonl", "heldout.jsonl", "heldout_keywords.jsonl"):
        assert (tmp_path / name).read_text() == (DATA / name).read_text(), f"{name}: run make_data.py"


def test_there_are_enough_pairs_and_no_prompt_is_in_both_files() -> None:
    train, held_out = rows("train.jsonl"), rows("heldout.jsonl")
    assert len(train) >= 300
    assert len(held_out) == 60
    prompts = [prompt(row).lower() for row in train + held_out]
    assert len(set(prompts)) == len(prompts)


def test_both_answers_of_a_pair_follow_the_same_prompt() -> None:
    for row in rows("train.jsonl") + rows("heldout.jsonl"):
        assert [turn["role"] for turn in row["chosen"]] == ["user", "assistant"]
        assert row["chosen"][0] == row["rejected"][0]


def test_every_chosen_answer_passes_the_score_and_every_rejected_one_fails(facts: tuple[make_data.Fact, ...]) -> None:
    keywords = {fact.question: fact.keywords for fact in facts}
    for row in rows("train.jsonl") + rows("heldout.jsonl"):
        question = prompt(row)
        assert scoring.score(row["chosen"][1]["content"], keywords[question]).passed, row
        assert not scoring.score(row["rejected"][1]["content"], keywords[question]).passed, row


def test_a_base_answer_that_is_right_already_becomes_one_that_goes_on() -> None:
    fact = make_data.Fact("sky", "What is wind?", "Wind is moving air.", ("air",), "the wind")
    rejected = make_data.make_pair(fact, "The wind is air.").rejected
    assert rejected.startswith("Wind is moving air. ")
    assert len(rejected) > len("Wind is moving air. ")


def test_long_answers_are_cut_after_a_whole_sentence() -> None:
    sentence = " ".join(["word"] * 20) + "."
    assert make_data.shorten(f"{sentence} {sentence}") == sentence
    assert make_data.shorten("word " * 50).split() == ["word"] * make_data.MAX_REJECTED_WORDS


def test_the_keywords_belong_to_the_held_out_prompts_in_their_order() -> None:
    keywords = rows("heldout_keywords.jsonl")
    assert [entry["prompt"] for entry in keywords] == [prompt(row) for row in rows("heldout.jsonl")]
    assert all(entry["keywords"] for entry in keywords)


@pytest.mark.parametrize("line", ["Only a question?", "A? | b. | c", "A? | | c | d"])
def test_a_malformed_fact_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ValueError, match=r"facts\.txt:2: expected"):
        make_data.parse_facts(f"[topic]\n{line}\n")


def test_a_question_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"facts\.txt:2: the question 'A\?' is there already"):
        make_data.parse_facts("A? | b. | c | d\nA? | e. | f | g\n")
