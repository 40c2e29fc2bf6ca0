"""Transcripts become token ids with a loss mask.

The tokenizer is read from its own `tokenizer.json`, the chat template from the configuration or beside it. The loss
counts the assistant's tokens after the prompt that both answers share, and nothing before (an earlier assistant turn
would cancel in the margin, and inflate both rewards). Where a template marks its answers with {% generation %}, those
marks decide; where it doesn't, the template is rendered up to each answer and with it, and the difference counts, so
that the tokenizer's own text is never replaced by a lookalike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers  # type: ignore[import-untyped]

from lora_dpo_trainer import errors
from lora_dpo_trainer.rows import ChatMessage, ChatPair

type Span = tuple[int, int]
"""Start and end of an answer in the rendered text, in characters."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""What belongs to a tokenizer; copied next to the adapter. Only the first is required."""

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One side of a pair.

    Attributes:
        ids: int32 [length], prompt and answer.
        mask: bool [length], True where the loss counts.
    """

    ids: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template.

    Attributes:
        backend: The Hugging Face tokenizer.
        template: Jinja source of the chat template.
        variables: Special tokens that templates refer to.
        mask_user_turns: False counts every token after the shared prompt.
    """

    backend: tokenizers.Tokenizer
    template: str
    variables: Mapping[str, str]
    mask_user_turns: bool = True

    @property
    def digest(self) -> str:
        """Hex digest of everything that decides which tokens a transcript becomes."""
        parts = [self.backend.to_str(), self.template, json.dumps(dict(self.variables), sort_keys=True)]
        parts.append(str(self.mask_user_turns))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode(self, pairs: Sequence[ChatPair]) -> list[tuple[Tokens, Tokens]]:
        """Tokenise pairs, chosen and rejected; the backend uses all cores."""
        rendered = [self._render_side(pair, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
        encodings = self.backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        sides = [_tokens(encoding, spans) for encoding, (_, spans) in zip(encodings, rendered, strict=True)]
        return list(zip(sides[::2], sides[1::2], strict=True))

    def _render_side(self, pair: ChatPair, answer: Sequence[ChatMessage]) -> tuple[str, tuple[Span, ...]]:
        messages = (*pair.prompt, *answer)
        if not self.mask_user_turns:
            text, _ = self._render(pair, messages)
            return text, ((self._prefix_length(messages, len(pair.prompt), text, pair), len(text)),)
        if _MARK.search(self.template):
            return self._marked(pair, messages)
        text, _ = self._render(pair, messages)
        spans = []
        for index in range(len(pair.prompt), len(messages)):
            if messages[index]["role"] == "assistant":
                start = self._prefix_length(messages, index, text, pair)
                upto, _ = self._render(pair, messages[: index + 1])
                if not text.startswith(upto):
                    raise _not_prefix_preserving(pair)
                spans.append((start, len(upto)))
        return text, tuple(spans)

    def _marked(self, pair: ChatPair, messages: Sequence[ChatMessage]) -> tuple[str, tuple[Span, ...]]:
        text, spans = self._render(pair, messages)
        answers = sum(message["role"] == "assistant" for message in messages)
        if len(spans) != answers:
            raise errors.ConfigError(
                f"The chat template marks {len(spans)} answers with {{% generation %}} in a transcript that has "
                f"{answers} ({pair.where}).",
                hint="Give data.components.<name>.format.chat_template one {% generation %} block an assistant turn.",
            )
        earlier = sum(message["role"] == "assistant" for message in pair.prompt)
        return text, spans[earlier:]

    def _prefix_length(self, messages: Sequence[ChatMessage], count: int, text: str, pair: ChatPair) -> int:
        """Length of the text before turn `count`, with what the template puts before an answer."""
        prefix, _ = self._render(pair, messages[:count], add_generation_prompt=True)
        if not text.startswith(prefix):
            raise _not_prefix_preserving(pair)
        return len(prefix)

    def _render(
        self, pair: ChatPair, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = False
    ) -> tuple[str, tuple[Span, ...]]:
        import jinja2
        from transformers.utils import chat_template_utils

        try:
            texts, spans = chat_template_utils.render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=bool(_MARK.search(self.template)),
                add_generation_prompt=add_generation_prompt,
                **{**self.variables, **pair.template_kwargs},
            )
        # A template is code that works on a row: what it stumbles over there is no bug of ours.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise errors.ConfigError(
                f"The chat template fails at {pair.where}: {' '.join(str(error).split())}.",
                hint="Check data.components.<name>.format.chat_template, or the roles of the messages.",
            ) from error
        return texts[0], tuple((int(start), int(end)) for start, end in (spans[0] if spans else ()))


def load(
    files: Mapping[str, bytes], *, where: str, template: str | None = None, mask_user_turns: bool = True
) -> ChatTokenizer:
    """Build a tokenizer from the contents of its files.

    Args:
        files: File name → content, of `TOKENIZER_FILES`.
        where: Where they come from, for messages.
        template: Jinja source to use instead of the tokenizer's own.
        mask_user_turns: See `ChatTokenizer`.

    Raises:
        ConfigError: no `tokenizer.json`, or no chat template anywhere.
    """
    if "tokenizer.json" not in files:
        raise errors.ConfigError(
            f"There is no tokenizer.json in {where}.",
            hint="Point data.tokenizer at a folder or hub id with a fast tokenizer (tokenizer.json).",
        )
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    specials = {**json.loads(files.get("special_tokens_map.json", b"{}")), **config}
    template = template or _own_template(files, config)
    if template is None:
        raise errors.ConfigError(
            f"The tokenizer in {where} has no chat template.",
            hint="Set data.components.<name>.format.chat_template, or use the tokenizer of an instruct model.",
        )
    backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    # A saved tokenizer may carry the truncation and padding of its last use.
    backend.no_truncation()
    backend.no_padding()
    variables = {name: _text(specials[name]) for name in _SPECIAL if specials.get(name)}
    return ChatTokenizer(backend, template, variables, mask_user_turns)


def _own_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    found = config.get("chat_template")
    if isinstance(found, list):  # several named ones
        named = {str(item["name"]): str(item["template"]) for item in found}
        return named.get("default")
    return found


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _tokens(encoding: tokenizers.Encoding, spans: Sequence[Span]) -> Tokens:
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    mask = np.zeros(len(starts), dtype=np.bool_)
    for start, end in spans:
        mask |= (starts >= start) & (starts < end)
    return Tokens(np.array(encoding.ids, dtype=np.int32), mask)


def _not_prefix_preserving(pair: ChatPair) -> errors.ConfigError:
    return errors.ConfigError(
        f"The chat template rewrites earlier turns when an answer follows, so the answer cannot be told apart "
        f"({pair.where}).",
        hint="Give data.components.<name>.format.chat_template a template that marks answers with {% generation %}.",
    )
