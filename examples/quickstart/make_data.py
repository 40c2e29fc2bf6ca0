"""Writes the quickstart's preference pairs from its hand-written facts.

    python examples/quickstart/make_data.py

The purpose of the data can be measured: answer in one short, correct sentence. `chosen` is the hand-written answer.
`rejected` is what the base model says by itself (recorded in `base_answers.jsonl` by `record_answers.py`), or the
right answer with the base model's further sentences after it. Rambling in the model's own words teaches much more
than rambling that it would never have written. Every choice follows from the question's own digest: a changed fact
changes its own pair and no other.

Files in `data/`: `train.jsonl` and `heldout.jsonl` (preference_chat rows), `heldout_keywords.jsonl` (for scoring).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import scoring

DATA = Path(__file__).resolve().parent / "data"
HELD_OUT = 60

MAX_REJECTED_WORDS = 36
"""Longer answers are cut at the end of a sentence where there is one: rambling shows early, and tokens cost time."""

FILLERS = (
    "This is a fundamental concept that is used in a wide range of contexts.",
    "However, it is important to note that there is often more to {about} than meets the eye.",
    "In addition, there are several other aspects of {about} that are worth considering.",
    "It also plays a crucial role in how people think about {about}.",
    "It can vary depending on the situation, the place, and the people involved.",
    "This makes {about} a truly fascinating and rewarding topic to explore.",
    "For example, you may have come across {about} in books, at school, or in conversations.",
    "If you have any other questions about {about}, please feel free to ask!",
)
"""For questions to which the base model has nothing to add; vague on purpose, so that nothing untrue is in them."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of `facts.txt`."""

    topic: str
    question: str
    answer: str
    keywords: tuple[str, ...]
    about: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question with an answer to prefer and one to avoid."""

    fact: Fact
    rejected: str

    def row(self) -> dict[str, Any]:
        """The pair as a preference_chat row: two whole conversations."""
        prompt = {"role": "user", "content": self.fact.question}
        return {
            "chosen": [prompt, {"role": "assistant", "content": self.fact.answer}],
            "rejected": [prompt, {"role": "assistant", "content": self.rejected}],
        }


def parse_facts(text: str) -> tuple[Fact, ...]:
    """Parse `facts.txt`.

    Raises:
        ValueError: a line has not four fields, or a question comes twice; the message has the line's number.
    """
    facts: dict[str, Fact] = {}
    topic = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            topic = line.strip("[]")
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 4 or not all(fields):
            raise ValueError(f"facts.txt:{number}: expected `question | answer | keywords | about`, found {line!r}")
        question, answer, keywords, about = fields
        if question in facts:
            raise ValueError(f"facts.txt:{number}: the question {question!r} is there already")
        facts[question] = Fact(topic, question, answer, tuple(word.strip() for word in keywords.split(",")), about)
    return tuple(facts.values())


def make_pair(fact: Fact, base_answer: str) -> Pair:
    """Write the answer to avoid, in one of two forms.

    Mostly it is what the base model says by itself. For every third question, and wherever the base model answers
    well, it is the right answer that goes on and on: so that it is the stopping that makes the difference.

    Args:
        fact: the question with its right answer.
        base_answer: the base model's greedy answer.
    """
    said = shorten(base_answer)
    chooser = random.Random(_digest(fact.question))
    if not scoring.score(said, fact.keywords).passed and chooser.random() < 2 / 3:
        return Pair(fact, said)
    more = sentences(base_answer)[1:] or [chooser.choice(FILLERS).format(about=fact.about)]
    return Pair(fact, f"{fact.answer} {shorten(' '.join(more))}")


def sentences(text: str) -> list[str]:
    """The complete sentences of a text, in order."""
    return re.findall(r"\S.*?[.!?](?=\s|$)", " ".join(text.split()))


def shorten(text: str) -> str:
    """The beginning of a text: as many whole sentences as `MAX_REJECTED_WORDS` hold, else as many words."""
    kept: list[str] = []
    for sentence in sentences(text):
        if len(" ".join([*kept, sentence]).split()) > MAX_REJECTED_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept or text.split()[:MAX_REJECTED_WORDS])


def split(facts: Sequence[Fact], held_out: int = HELD_OUT) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Divide facts into training and held-out ones, by the digest of the question: no choice of ours is in it."""
    chosen = frozenset(sorted((fact.question for fact in facts), key=_digest)[:held_out])
    train = tuple(fact for fact in facts if fact.question not in chosen)
    return train, tuple(fact for fact in facts if fact.question in chosen)


def main() -> None:
    """Write the three files."""
    lines = (json.loads(line) for line in (DATA / "base_answers.jsonl").read_text().splitlines())
    base_answers = {entry["prompt"]: entry["answer"] for entry in lines}
    train, held_out = split(parse_facts((DATA / "facts.txt").read_text()))
    for name, facts in (("train.jsonl", train), ("heldout.jsonl", held_out)):
        _write(DATA / name, (make_pair(fact, base_answers[fact.question]).row() for fact in facts))
    _write(
        DATA / "heldout_keywords.jsonl",
        ({"prompt": fact.question, "keywords": list(fact.keywords)} for fact in held_out),
    )
    print(f"{len(train)} training pairs and {len(held_out)} held-out pairs in {DATA}")


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
