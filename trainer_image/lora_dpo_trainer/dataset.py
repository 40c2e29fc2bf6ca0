"""From raw rows to the prepared store: one streaming pass over every component."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lora_dpo_api.config_file import Component, SliceStrategy, TrainerConfig
from lora_dpo_trainer import chat, errors, prepared, pretrained, rows, seen, slicing, sources, splits

_log = logging.getLogger(__name__)
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Part:
    """A component of the mixture, with everything that decides its tokens."""

    name: str
    index: int
    component: Component
    tokenizer: chat.ChatTokenizer
    files: tuple[sources.DataFile, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be prepared; its digest is known before a row is read.

    Attributes:
        parts: The components, in the configuration's order.
        sequence_length: Longest side, in tokens.
        split: Which prompts are held out.
    """

    parts: tuple[Part, ...]
    sequence_length: int
    split: splits.PromptSplit

    @property
    def digest(self) -> str:
        """Content key of the prepared pairs."""
        return prepared.content_key(
            {
                "format": prepared.FORMAT,
                "length": self.sequence_length,
                "validation": self.split.fraction,
                "parts": [
                    {
                        "files": [[file.split, file.identity] for file in part.files],
                        "tokenizer": part.tokenizer.digest,
                        "format": part.component.format.model_dump(mode="json"),
                    }
                    for part in self.parts
                ],
            }
        )


@dataclasses.dataclass
class _Counts:
    """What one pass found; becomes the manifest's report."""

    train_pairs: int = 0
    validation_pairs: int = 0
    too_long: int = 0
    leaked: int = 0
    tokens: int = 0
    longest_pair: int = 0
    repeated: int = 0


def plan(config: TrainerConfig) -> Plan:
    """Find the files and tokenizers that the configuration names.

    A component of weight 0 is held out whole.

    Raises:
        DataNotFound: a URL matches no file.
        ConfigError: a tokenizer is missing or has no chat template.
    """
    data = config.data
    source = pretrained.Pretrained(
        data.tokenizer or config.initialize_from_hf, None if data.tokenizer else config.revision
    )
    parts = []
    for index, (name, component) in enumerate(data.components.items()):
        layout = component.format
        tokenizer = pretrained.load_tokenizer(
            source, template=layout.chat_template, mask_user_turns=layout.mask_user_turns
        )
        files = sources.list_files(name, component.source)
        if data.train_weights is not None and data.train_weights.get(name, 0.0) == 0:
            files = tuple(dataclasses.replace(file, split=sources.VALIDATION) for file in files)
        parts.append(Part(name, index, component, tokenizer, files))
    return Plan(tuple(parts), config.train_seq_len, splits.PromptSplit(config.validation_split_fraction))


def build(plan: Plan, cache_path: str, *, shard_tokens: int = prepared.SHARD_TOKENS) -> prepared.Manifest:
    """Read, check, tokenise and write every pair.

    Args:
        plan: What to prepare.
        cache_path: URL of the cache.
        shard_tokens: About how many tokens are held in memory.

    Raises:
        InvalidRow: rows that are no pairs; the message counts them and names the first.
        PairTooLong: pairs longer than `train_seq_len` under `slice_strategy: raise`.
    """
    builder = _Builder(plan, prepared.Writer(cache_path, plan.digest, shard_tokens=shard_tokens))
    # Training rows first: a held-out prompt must not be among them, whichever file it comes from.
    for split in prepared.SPLITS:
        for part in plan.parts:
            for file in part.files:
                if file.split == split:
                    builder.read(part, file)
    return builder.finish()


class _Builder:
    def __init__(self, plan: Plan, writer: prepared.Writer) -> None:
        self._plan = plan
        self._writer = writer
        self._tally = rows.Tally()
        self._counts = _Counts()
        self._trained_prompts = seen.Seen()
        self._pairs_seen = seen.Seen()
        self._repeated: list[str] = []
        self._lengths: collections.Counter[int] = collections.Counter()
        self._empty: list[str] = []

    def read(self, part: Part, file: sources.DataFile) -> None:
        _log.info("Reading %s", file.url)
        before = self._tally.rows
        pairs = self._pairs(part, file)
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            for pair, (chosen, rejected) in zip(chunk, part.tokenizer.encode(chunk), strict=True):
                self._add(part, file, pair, chosen, rejected)
        if self._tally.rows == before:
            self._empty.append(file.url)

    def finish(self) -> prepared.Manifest:
        tally = self._tally
        if tally.fatal:
            raise _failure(tally, self._counts.longest_pair, self._plan.sequence_length)
        report = dataclasses.asdict(self._counts)
        report["dropped_pairs"] = tally.skipped + self._counts.too_long + self._counts.leaked
        report["train_prompts"] = len(self._trained_prompts)
        report["length_percentiles"] = _percentiles(self._lengths)
        report["repeated_at"] = self._repeated
        report["notes"] = [*tally.sentences(), *self._notes()]
        return self._writer.finish(report)

    def _pairs(self, part: Part, file: sources.DataFile) -> Iterator[rows.ChatPair]:
        for raw in sources.read(file):
            self._tally.rows += 1
            parsed = rows.parse(raw, part.component.format)
            if isinstance(parsed, rows.Rejection):
                self._tally.add(parsed)
            else:
                yield parsed

    def _add(
        self, part: Part, file: sources.DataFile, pair: rows.ChatPair, chosen: chat.Tokens, rejected: chat.Tokens
    ) -> None:
        counts = self._counts
        longest = max(len(chosen.ids), len(rejected.ids))
        counts.longest_pair = max(counts.longest_pair, longest)
        self._lengths[longest] += 1
        if not self._pairs_seen.add(pair.pair_hash):
            counts.repeated += 1
            if len(self._repeated) < rows.EXAMPLES:
                self._repeated.append(pair.where)
        strategy = part.component.format.slice_strategy
        fitted = slicing.fit(chosen, rejected, self._plan.sequence_length, strategy)
        if isinstance(fitted, rows.Problem):
            if fitted is rows.Problem.TOO_LONG and strategy is SliceStrategy.DROP:
                counts.too_long += 1
            else:
                self._tally.add(rows.Rejection(pair.where, fitted, f"{longest} tokens"))
            return
        split = self._split(file, pair.prompt_hash)
        if split is None:
            counts.leaked += 1
            return
        chosen, rejected = fitted
        if split == sources.TRAIN:
            counts.train_pairs += 1
            counts.tokens += prepared.tokenized(0, chosen, rejected).encoded_length
        else:
            counts.validation_pairs += 1
        if not self._tally.fatal:
            self._writer.add(split, chosen, rejected, part.index)

    def _split(self, file: sources.DataFile, prompt_hash: int) -> str | None:
        """The split of a pair; None for a validation pair whose prompt is trained on."""
        if file.split == sources.VALIDATION:
            return None if prompt_hash in self._trained_prompts else sources.VALIDATION
        if self._plan.split.holds_out(prompt_hash):
            return sources.VALIDATION
        self._trained_prompts.add(prompt_hash)
        return sources.TRAIN

    def _notes(self) -> Iterator[str]:
        if self._empty:
            first = ", ".join(self._empty[: rows.EXAMPLES])
            yield f"{len(self._empty)} files hold no row ({first})"
        if self._counts.too_long:
            yield f"{self._counts.too_long} pairs dropped: longer than train_seq_len {self._plan.sequence_length}"
        if self._counts.leaked:
            yield f"{self._counts.leaked} validation pairs left out: their prompts are also trained on"


def _percentiles(lengths: collections.Counter[int]) -> dict[str, int]:
    """Length of the longer side, in tokens, that so many per cent of the pairs do not exceed."""
    total, found, done = lengths.total(), {}, 0
    wanted = [50, 90, 99, 100]
    for length in sorted(lengths):
        done += lengths[length]
        while wanted and done * 100 >= wanted[0] * total:
            found[str(wanted.pop(0))] = length
    return found


def _failure(tally: rows.Tally, longest: int, limit: int) -> errors.DataError:
    text = "; ".join(tally.sentences(fatal_only=True))
    fatal: Mapping[rows.Problem, Any] = {problem: n for problem, n in tally.counts.items() if not problem.skips}
    if set(fatal) == {rows.Problem.TOO_LONG}:
        return errors.PairTooLong(f"{text}. train_seq_len is {limit}, the longest side has {longest} tokens.")
    return errors.InvalidRow(f"{tally.fatal} of {tally.rows} rows cannot be used: {text}.")
