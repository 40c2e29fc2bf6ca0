"""Answers the held-out questions greedily, with and without the adapter, and prints the share that passes.

Run in the virtual environment `.venv/export`:

    .venv/export/bin/python examples/quickstart/answers.py --model CHECKPOINT [--adapter ADAPTER] [--report FILE]

Without `--adapter` the base model answers. With it, the adapter is put on by `peft.PeftModel.from_pretrained`, as any
user of the adapter would: nothing of the trainer is needed to read what it wrote.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scoring
import torch
import transformers
from peft import PeftModel

KEYWORDS = Path(__file__).resolve().parent / "data" / "heldout_keywords.jsonl"
MAX_NEW_TOKENS = 40
"""More than twenty words take; an answer that is cut off here has failed already."""
BATCH = 30


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out prompt and what a right answer may contain."""

    prompt: str
    keywords: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with the model's answer and its score."""

    question: Question
    answer: str
    score: scoring.Score


def read_questions(path: Path = KEYWORDS) -> tuple[Question, ...]:
    """Read the held-out prompts with their keywords."""
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return tuple(Question(row["prompt"], tuple(row["keywords"])) for row in rows)


def load(model: str, adapter: str | None) -> tuple[Any, Any]:
    """Load the tokenizer and the model in float32, with the adapter on it where there is one."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, padding_side="left")
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy = base if adapter is None else PeftModel.from_pretrained(base, adapter).merge_and_unload()
    return tokenizer, policy.eval()


@torch.inference_mode()
def answer(tokenizer: Any, model: Any, prompts: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS) -> list[str]:
    """Answer prompts greedily, a batch of similar lengths at a time; the order of the prompts is kept."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    answers = [""] * len(texts)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        inputs = tokenizer(
            [texts[index] for index in batch], return_tensors="pt", padding=True, add_special_tokens=False
        )
        outputs = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for index, tokens in zip(batch, outputs[:, inputs.input_ids.shape[1] :], strict=True):
            answers[index] = tokenizer.decode(tokens, skip_special_tokens=True)
    return answers


def report(answered: Sequence[Answered], *, model: str, adapter: str | None, seconds: float) -> dict[str, Any]:
    """The report as JSON: shares from 0 to 1, and each answer."""
    scores = [entry.score for entry in answered]
    count = len(scores)
    return {
        "model": model,
        "adapter": adapter,
        "n": count,
        "passed": scoring.share(scores),
        "oneSentence": sum(entry.one_sentence for entry in scores) / count,
        "short": sum(entry.short for entry in scores) / count,
        "correct": sum(entry.correct for entry in scores) / count,
        "seconds": round(seconds, 1),
        "answers": [
            {"prompt": entry.question.prompt, "answer": entry.answer, "passed": entry.score.passed}
            for entry in answered
        ],
    }


def main() -> int:
    """Answer, score, print the share; write the report where asked to."""
    parser = argparse.ArgumentParser(description="answer and score the quickstart's held-out questions")
    parser.add_argument("--model", required=True, help="Hugging Face checkpoint: a folder or a hub id")
    parser.add_argument("--adapter", help="folder of a PEFT adapter; without it the base model answers")
    parser.add_argument("--report", type=Path, help="write a JSON report here")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    questions = read_questions()
    tokenizer, model = load(options.model, options.adapter)
    started = time.monotonic()
    answers = answer(tokenizer, model, [question.prompt for question in questions])
    answered = [
        Answered(question, text, scoring.score(text, question.keywords))
        for question, text in zip(questions, answers, strict=True)
    ]
    content = report(answered, model=options.model, adapter=options.adapter, seconds=time.monotonic() - started)
    if options.report is not None:
        options.report.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    who = "with the adapter" if options.adapter else "base model"
    passed = sum(entry.score.passed for entry in answered)
    print(f"{who}: {passed} of {len(answered)} answers ({content['passed']:.1%}) are one short, correct sentence")
    return 0


if __name__ == "__main__":
    sys.exit(main())
