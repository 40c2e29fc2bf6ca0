"""Records what the base model answers to every question of `facts.txt`, for `make_data.py`.

    .venv/export/bin/python examples/quickstart/record_answers.py --model CHECKPOINT

Needed only when questions are added; it takes minutes. The last digits of floating-point sums differ between
machines, so another machine may record a few other answers.
"""

from __future__ import annotations

import argparse
import json

import answers
import make_data

MAX_NEW_TOKENS = 64


def main() -> None:
    """Write `data/base_answers.jsonl`."""
    parser = argparse.ArgumentParser(description="record the base model's answers to the quickstart's questions")
    parser.add_argument("--model", required=True, help="Hugging Face checkpoint: a folder or a hub id")
    options = parser.parse_args()
    questions = [fact.question for fact in make_data.parse_facts((make_data.DATA / "facts.txt").read_text())]
    tokenizer, model = answers.load(options.model, None)
    said = answers.answer(tokenizer, model, questions, max_new_tokens=MAX_NEW_TOKENS)
    rows = (
        json.dumps({"prompt": question, "answer": text}, ensure_ascii=False) + "\n"
        for question, text in zip(questions, said, strict=True)
    )
    (make_data.DATA / "base_answers.jsonl").write_text("".join(rows))


if __name__ == "__main__":
    main()
