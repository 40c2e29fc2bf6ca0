"""Preference pairs for the trainer benchmark: UltraFeedback-like lengths, divided by four.

UltraFeedback's answers are log-normal in length with a heavy tail, and its two answers differ in length. A quarter of
that fits two processor cores. The words are common ones, each a single token of GPT-2-like vocabularies with its
leading space, so that lengths in words are lengths in tokens.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_TEXT = (
    "the of and to in is that for it was on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know"
)
WORDS = tuple(_TEXT.split())
MEAN_SIDE = 150.0
"""Mean tokens of prompt + one answer: UltraFeedback's about 600, divided by four."""
SIGMA = 0.55
"""Spread of the log of an answer's length."""
MAX_PAIR = 384
"""Longest pair in tokens: prompt + chosen + rejected + the template's own tokens."""
PROMPT_TEMPLATE_TOKENS = 9
"""What `CHAT_TEMPLATE` adds to a prompt: markers, role names and newlines up to the answer's first token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without a default system message, so that the prompt's share is what was asked for."""


def preference_pairs(count: int, *, prompt_share: float, seed: int) -> list[dict[str, Any]]:
    """Make preference_chat rows.

    Args:
        count: how many pairs.
        prompt_share: the prompt's share of prompt + one answer, in tokens, on average.
        seed: equal seeds give equal pairs.
    """
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        prompt = _length(generator, MEAN_SIDE * prompt_share) - PROMPT_TEMPLATE_TOKENS
        sides = [_length(generator, MEAN_SIDE * (1 - prompt_share)) for _ in range(2)]
        if min(prompt, *sides) < 4 or prompt + PROMPT_TEMPLATE_TOKENS + sum(sides) + 2 > MAX_PAIR:
            continue
        question = {"role": "user", "content": _text(generator, prompt)}
        chosen, rejected = ({"role": "assistant", "content": _text(generator, length)} for length in sides)
        rows.append({"chosen": [question, chosen], "rejected": [question, rejected]})
    return rows


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _length(generator: random.Random, mean: float) -> int:
    return round(mean * generator.lognormvariate(-(SIGMA**2) / 2, SIGMA))


def _text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))
