"""A raw row becomes a preference pair: one prompt, two different answers.

Every row is looked at, so that one report names all kinds of problems with their first examples, before any
accelerator is held.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_dpo_api.config_file import PreferenceChatFormat
from lora_dpo_trainer.sources import RawRow

type ChatMessage = Mapping[str, Any]
"""One turn: `role` and `content`, and whatever else the chat template reads."""

EXAMPLES = 3
_RESERVED = frozenset(
    {
        "messages",
        "conversations",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
"""What a row must not set for its chat template, since the trainer does."""


class Problem(enum.StrEnum):
    """Why a row is no preference pair; the values are read by people."""

    NOT_JSON = "not a JSON object"
    MISSING_FIELD = "missing field"
    NOT_MESSAGES = "not a list of messages with role and content"
    NO_ANSWER = "does not end with an assistant turn"
    PROMPTS_DIFFER = "chosen and rejected have different prompts"
    EMPTY_ANSWER = "an empty answer"
    SAME_ANSWER = "chosen and rejected are the same"
    TOO_LONG = "longer than train_seq_len"
    RESERVED_VARIABLE = "a variable for the chat template that it has already"
    CUT_AWAY = "no answer left after slicing to train_seq_len"

    @property
    def skips(self) -> bool:
        """Whether such a row is left out and counted; any other problem fails the phase."""
        return self in (Problem.EMPTY_ANSWER, Problem.SAME_ANSWER, Problem.CUT_AWAY)


@dataclasses.dataclass(frozen=True)
class ChatPair:
    """A validated row.

    Attributes:
        where: Where the row is, for messages to people.
        prompt: The turns that both transcripts begin with, before the first answer that differs.
        chosen: The preferred turns after the prompt; the first and the last are the assistant's.
        rejected: The other turns, likewise.
        template_kwargs: Variables for the chat template.
    """

    where: str
    prompt: tuple[ChatMessage, ...]
    chosen: tuple[ChatMessage, ...]
    rejected: tuple[ChatMessage, ...]
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prompt_hash(self) -> int:
        """64 bits that are equal for equal prompts, on every machine."""
        return _hash(self.prompt)

    @property
    def pair_hash(self) -> int:
        """64 bits that are equal for equal rows: prompt, chosen and rejected."""
        return _hash([self.prompt, self.chosen, self.rejected])


def _hash(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A row that is no pair, and why."""

    where: str
    problem: Problem
    detail: str = ""


class _RowError(Exception):
    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem = problem
        self.detail = detail


def parse(row: RawRow, layout: PreferenceChatFormat, *, keep_equal: bool = False) -> ChatPair | Rejection:
    """Read one row in either form: prompt inside both transcripts, or (as TRL has it) in a field of its own.

    Args:
        row: The raw row.
        layout: Names of its fields.
        keep_equal: Accept a pair of equal answers; it has no gradient, but other trainers do count it in a batch.
    """
    try:
        return _parse(row, layout, keep_equal=keep_equal)
    except _RowError as bad:
        return Rejection(row.where, bad.problem, bad.detail)


def _parse(row: RawRow, layout: PreferenceChatFormat, *, keep_equal: bool) -> ChatPair:
    value = row.value
    if value is None:
        raise _RowError(Problem.NOT_JSON, row.detail)
    lead = _system(value, layout)
    explicit = value.get(layout.prompt_field)
    chosen = _side(value, layout.chosen_field)
    rejected = _side(value, layout.rejected_field)
    if explicit is not None and all(_role(side[0]) == "assistant" for side in (chosen, rejected) if side):
        lead += _messages(explicit, layout.prompt_field, role="user")
    chosen, rejected = lead + chosen, lead + rejected
    shared = _shared_turns(chosen, rejected)
    pair = ChatPair(
        where=row.where,
        prompt=chosen[:shared],
        chosen=chosen[shared:],
        rejected=rejected[shared:],
        template_kwargs=_template_kwargs(value, layout),
    )
    _check(pair, layout)
    if not keep_equal and list(map(dict, pair.chosen)) == list(map(dict, pair.rejected)):
        raise _RowError(Problem.SAME_ANSWER)
    return pair


def _system(value: Mapping[str, Any], layout: PreferenceChatFormat) -> tuple[ChatMessage, ...]:
    if layout.system_prompt is None or value.get(layout.system_prompt) is None:
        return ()
    field = value[layout.system_prompt]
    content = field.get("content") if isinstance(field, Mapping) else field
    if not isinstance(content, str):
        raise _RowError(Problem.NOT_MESSAGES, f"field {layout.system_prompt!r}")
    return ({"role": "system", "content": content},)


def _template_kwargs(value: Mapping[str, Any], layout: PreferenceChatFormat) -> Mapping[str, Any]:
    found = value.get(layout.chat_template_kwargs)
    if not isinstance(found, Mapping):
        return {}
    if taken := sorted(_RESERVED & found.keys()):
        raise _RowError(Problem.RESERVED_VARIABLE, f"field {layout.chat_template_kwargs!r}: {', '.join(taken)}")
    return found


def _side(value: Mapping[str, Any], field: str) -> tuple[ChatMessage, ...]:
    if field not in value:
        raise _RowError(Problem.MISSING_FIELD, repr(field))
    return _messages(value[field], field, role="assistant")


def _messages(value: Any, field: str, *, role: str) -> tuple[ChatMessage, ...]:
    """Messages of a field; a bare string is one message of `role`."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not all(_is_message(message) for message in value):
        raise _RowError(Problem.NOT_MESSAGES, f"field {field!r}")
    if not value:
        raise _RowError(Problem.EMPTY_ANSWER if role == "assistant" else Problem.NOT_MESSAGES, f"field {field!r}")
    return tuple(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _role(message: ChatMessage) -> str:
    return str(message["role"])


def _shared_turns(chosen: Sequence[ChatMessage], rejected: Sequence[ChatMessage]) -> int:
    """How many leading turns are equal, leaving at least the last turn of each side as its answer."""
    most = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < most and dict(chosen[shared]) == dict(rejected[shared]):
        shared += 1
    return shared


def _check(pair: ChatPair, layout: PreferenceChatFormat) -> None:
    for field, side in ((layout.chosen_field, pair.chosen), (layout.rejected_field, pair.rejected)):
        if _role(side[-1]) != "assistant":
            raise _RowError(Problem.NO_ANSWER, f"field {field!r} ends with a {_role(side[-1])} turn")
    if any(_role(side[0]) != "assistant" for side in (pair.chosen, pair.rejected)):
        raise _RowError(Problem.PROMPTS_DIFFER, f"from turn {len(pair.prompt) + 1} on")
    if not any(_role(message) == "user" for message in pair.prompt):
        raise _RowError(Problem.PROMPTS_DIFFER, "no user turn that both begin with")
    if any(not str(side[-1]["content"]).strip() for side in (pair.chosen, pair.rejected)):
        raise _RowError(Problem.EMPTY_ANSWER)


@dataclasses.dataclass
class Tally:
    """Counts of problems while rows stream by, with the first examples of each kind."""

    rows: int = 0
    counts: collections.Counter[Problem] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[Problem, list[Rejection]] = dataclasses.field(default_factory=dict)

    def add(self, rejection: Rejection) -> None:
        """Count a row that is no pair."""
        self.counts[rejection.problem] += 1
        kept = self.examples.setdefault(rejection.problem, [])
        if len(kept) < EXAMPLES:
            kept.append(rejection)

    @property
    def fatal(self) -> int:
        """Rows that fail the phase."""
        return sum(count for problem, count in self.counts.items() if not problem.skips)

    @property
    def skipped(self) -> int:
        """Rows left out."""
        return sum(count for problem, count in self.counts.items() if problem.skips)

    def sentences(self, *, fatal_only: bool = False) -> tuple[str, ...]:
        """One sentence a kind of problem: how many rows, and where the first ones are."""
        return tuple(
            f"{count} {'row' if count == 1 else 'rows'}: {problem} ({_places(self.examples[problem])})"
            for problem, count in self.counts.most_common()
            if not (fatal_only and problem.skips)
        )


def _places(examples: Sequence[Rejection]) -> str:
    return ", ".join(f"{item.where} {item.detail}".strip() for item in examples)
