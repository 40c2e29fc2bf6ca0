"""Decides whether an answer is what the quickstart trains for: one short, correct sentence.

Pure functions, no model: the same answer always gets the same score. An answer passes when it is exactly one
complete sentence, has at most `MAX_WORDS` words, and contains one of the question's accepted keywords.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

MAX_WORDS = 20

_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "u.s", "a.m", "p.m", "e.g", "i.e"})
_ENDING = re.compile(r"[.!?]+[\"')\]]*$")
_WORD = re.compile(r"[\w'.%-]*\w[\w'%-]*")


@dataclasses.dataclass(frozen=True)
class Score:
    """What is right about one answer."""

    one_sentence: bool
    short: bool
    correct: bool

    @property
    def passed(self) -> bool:
        """Whether everything is right."""
        return self.one_sentence and self.short and self.correct


def score(answer: str, keywords: Sequence[str]) -> Score:
    """Score an answer.

    Args:
        answer: the text that the model wrote, without special tokens.
        keywords: accepted keywords, at least one; see `contains_keyword`.
    """
    return Score(
        one_sentence=count_sentences(answer) == 1 and is_complete(answer) and "\n" not in answer.strip(),
        short=0 < count_words(answer) <= MAX_WORDS,
        correct=any(contains_keyword(answer, keyword) for keyword in keywords),
    )


def share(scores: Sequence[Score]) -> float:
    """The share of answers that passed, from 0 to 1; 0 for no answers."""
    return sum(entry.passed for entry in scores) / len(scores) if scores else 0.0


def count_sentences(text: str) -> int:
    """Count sentences, an unfinished last one included.

    A full stop after a single capital (`J. K. Rowling`) or a common abbreviation (`Dr.`) ends no sentence.
    """
    words = text.split()
    ends = sum(_ends_sentence(word) for word in words[:-1])
    return ends + 1 if words else 0


def is_complete(text: str) -> bool:
    """Whether the text ends as a sentence does: it was not cut off."""
    return _ENDING.search(text.strip()) is not None


def count_words(text: str) -> int:
    """Count words and numbers."""
    return len(_WORD.findall(text))


def contains_keyword(text: str, keyword: str) -> bool:
    """Whether a keyword occurs as a whole word, in any case; `bak*` stands for every word that begins with `bak`."""
    pattern = re.escape(keyword.removesuffix("*")) + (r"\w*" if keyword.endswith("*") else "")
    return re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None


def _ends_sentence(word: str) -> bool:
    if not _ENDING.search(word):
        return False
    stem = _ENDING.sub("", word).strip("\"'([")
    if word.rstrip("\"')]").endswith(("!", "?")):
        return True
    is_initial = len(stem) == 1 and stem.isupper()
    return not is_initial and stem.lower() not in _ABBREVIATIONS
