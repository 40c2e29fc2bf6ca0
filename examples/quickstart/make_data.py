"""Writes the quickstart's preference pairs from its hand-written facts.

    python examples/quickstart/make_data.py

The purpose of the data can be measured: answer in one short, correct sentence. `chosen` is the hand-written answer.
`rejected` says it the way that small chat models like to: with an opening that only talks about the question, with a
trailing clause, or with one sentence after another of filler. Fillers are vague on purpose, so that nothing untrue is
in them. Every choice follows from the question's own digest: a changed fact changes its own pair and no other.

Files in `data/`: `train.jsonl` and `heldout.jsonl` (preference_chat rows), `heldout_keywords.jsonl` (for scoring).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "data"
HELD_OUT = 60

OPENINGS = (
    "The answer to this classic question lies in the fascinating world of {about}.",
    "When it comes to {about}, there are many things to take into account.",
    "The subject of {about} is a complex and multifaceted one that has been discussed for a very long time.",
    "That is a great question, and it is one that many people ask about {about}!",
    "Understanding {about} is an essential part of understanding the world around us.",
    "There are many different ways to look at {about}, and each of them has something to offer.",
    "Questions about {about} have been asked by people of all ages and backgrounds throughout history.",
    "To answer this question, it is important to first think carefully about {about}.",
    "I would be happy to help you learn more about {about}!",
    "The topic of {about} is often discussed in a wide range of contexts and settings.",
)
CLAUSES = (
    "which is something that many people find both interesting and useful to know",
    "which is a fundamental concept that comes up in a wide range of situations",
    "and this is widely known and often mentioned in many different contexts",
    "which plays an important role in the way that people understand the world",
    "as is often explained in a variety of ways, depending on the source",
    "which is a well-known fact that is often taught to people from a young age",
    "and this is often seen as a significant and meaningful part of the subject",
    "which can be described in a number of different ways, depending on the context",
)
FILLERS = (
    "This is a fundamental concept that is used in a wide range of contexts.",
    "It is an important part of our everyday life and of the world around us.",
    "However, it is important to note that there is often more to it than meets the eye.",
    "In addition, there are several other aspects of {about} that are worth considering.",
    "It also plays a crucial role in how people think about {about}.",
    "Over the years, people have described this in many different ways.",
    "It can vary depending on the situation, the place, and the people involved.",
    "This makes {about} a truly fascinating and rewarding topic to explore.",
    "They are often discussed together with a variety of other related ideas.",
    "For example, you may have come across {about} in books, at school, or in conversations.",
    "It is also worth mentioning that there is always something new to learn.",
    "In many cultures, this is seen as something meaningful and significant.",
    "Additionally, it is often used as an example to explain other ideas.",
    "The importance of this cannot be overstated, as it touches many parts of life.",
    "In conclusion, {about} can be understood in a number of ways, and each of them matters.",
    "If you have any other questions about {about}, please feel free to ask!",
)


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


def make_pair(fact: Fact) -> Pair:
    """Write the rambling answer to a fact's question, in one of three forms."""
    chooser = random.Random(_digest(fact.question))
    form = chooser.choices(("goes on", "trails off", "evades"), weights=(2, 1, 1))[0]
    if form == "goes on":
        sentences = [fact.answer, *chooser.sample(FILLERS, 3)]
    elif form == "trails off":
        sentences = [f"{fact.answer.rstrip('.')}, {chooser.choice(CLAUSES)}.", *chooser.sample(FILLERS, 2)]
    else:
        sentences = [chooser.choice(OPENINGS), *chooser.sample(FILLERS, 2)]
    return Pair(fact, " ".join(sentences).format(about=fact.about))


def split(facts: Sequence[Fact], held_out: int = HELD_OUT) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Divide facts into training and held-out ones, by the digest of the question: no choice of ours is in it."""
    chosen = frozenset(sorted((fact.question for fact in facts), key=_digest)[:held_out])
    train = tuple(fact for fact in facts if fact.question not in chosen)
    return train, tuple(fact for fact in facts if fact.question in chosen)


def main() -> None:
    """Write the three files."""
    train, held_out = split(parse_facts((DATA / "facts.txt").read_text()))
    _write(DATA / "train.jsonl", (make_pair(fact).row() for fact in train))
    _write(DATA / "heldout.jsonl", (make_pair(fact).row() for fact in held_out))
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
