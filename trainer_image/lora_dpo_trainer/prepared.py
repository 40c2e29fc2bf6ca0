"""The store of prepared pairs: tokens in safetensors shards, known by a digest, with the manifest written last.

A folder without `manifest.json` is incomplete and is ignored. Writing holds one shard in memory; reading maps the
shards and copies a pair at a time, so neither depends on the size of the data set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_dpo_trainer import chat, errors, packing, sources, storage
from lora_dpo_trainer.pairs import TokenizedPair

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_TOKENS = 2_000_000
"""10 MB; while it is written, a shard lies in memory three times."""
_BLOCK_PAIRS = 512
SPLITS = (sources.TRAIN, sources.VALIDATION)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder says about itself.

    Attributes:
        digest: Content key: sources, tokenizer, template, length and split.
        shards: Split → names of its files, in order.
        sha256: File name → digest of its bytes.
        report: Counts that the prepare phase found.
    """

    digest: str
    shards: Mapping[str, tuple[str, ...]]
    sha256: Mapping[str, str]
    report: Mapping[str, Any]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """From a JSON value."""
        shards = {split: tuple(names) for split, names in value["shards"].items()}
        return cls(value["digest"], shards, dict(value["sha256"]), dict(value["report"]), int(value["format"]))


def folder(cache_path: str, digest: str) -> str:
    """Where the pairs with this digest lie."""
    return storage.join(cache_path, "prepared", digest)


def find(cache_path: str, digest: str) -> Manifest | None:
    """The manifest, when such pairs are there and complete."""
    try:
        value = storage.read_json(storage.join(folder(cache_path, digest), MANIFEST))
    except FileNotFoundError:
        return None
    manifest = Manifest.from_json(value)
    return manifest if manifest.format == FORMAT and manifest.digest == digest else None


class Writer:
    """Writes pairs as they come; `finish` makes them visible.

    Args:
        cache_path: URL of the cache.
        digest: Content key.
        shard_tokens: About how many tokens are held in memory.
    """

    def __init__(self, cache_path: str, digest: str, *, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder = folder(cache_path, digest)
        self._digest = digest
        self._limit = shard_tokens
        self._open: dict[str, list[tuple[chat.Tokens, chat.Tokens, int]]] = {split: [] for split in SPLITS}
        self._blocks: dict[str, list[dict[str, np.ndarray]]] = {split: [] for split in SPLITS}
        self._tokens = dict.fromkeys(SPLITS, 0)
        self._shards: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._sha256: dict[str, str] = {}

    def add(self, split: str, chosen: chat.Tokens, rejected: chat.Tokens, component: int) -> None:
        """Append a pair to a split; `component` is the index of the mixture's part it belongs to."""
        self._open[split].append((chosen, rejected, component))
        self._tokens[split] += len(chosen.ids) + len(rejected.ids)
        # An array of its own for each side would take several times the space of its tokens.
        if len(self._open[split]) >= _BLOCK_PAIRS:
            self._close_block(split)
        if self._tokens[split] >= self._limit:
            self._flush(split)

    def finish(self, report: Mapping[str, Any]) -> Manifest:
        """Write what is left, then the manifest."""
        for split in SPLITS:
            if self._tokens[split]:
                self._flush(split)
        shards = {split: tuple(names) for split, names in self._shards.items()}
        manifest = Manifest(self._digest, shards, dict(self._sha256), dict(report))
        storage.write_json(storage.join(self._folder, MANIFEST), manifest.to_json())
        return manifest

    def _close_block(self, split: str) -> None:
        if self._open[split]:
            self._blocks[split].append(_arrays(self._open[split]))
            self._open[split] = []

    def _flush(self, split: str) -> None:
        self._close_block(split)
        blocks, self._blocks[split] = self._blocks[split], []
        arrays = {column: np.concatenate([block[column] for block in blocks]) for column in blocks[0]}
        name = f"{split}-{len(self._shards[split]):05d}.safetensors"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            save_file(arrays, path)
            self._sha256[name] = _sha256(path)
            storage.upload(path, storage.join(self._folder, name))
        self._shards[split].append(name)
        self._tokens[split] = 0


def _arrays(pairs: Sequence[tuple[chat.Tokens, chat.Tokens, int]]) -> dict[str, np.ndarray]:
    """The columns of a shard."""
    stored = [tokenized(index, *sides) for index, (*sides, _) in enumerate(pairs)]
    columns = [(pair.chosen_ids, pair.chosen_mask, pair.rejected_ids, pair.rejected_mask) for pair in stored]
    return {
        "ids": np.concatenate([part for chosen, _, rejected, _ in columns for part in (chosen, rejected)]),
        "mask": np.concatenate([part for _, chosen, _, rejected in columns for part in (chosen, rejected)]),
        "lengths": np.array([(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in stored], np.int32),
        "shared": np.array([pair.shared for pair in stored], np.int32),
        "targets": np.array([pair.targets for pair in stored], np.int32),
        "component": np.array([component for *_, component in pairs], np.int32),
    }


class Split:
    """The pairs of one split, read on demand by index.

    Attributes:
        lengths: int32 [pairs, 2], tokens of chosen and rejected, prompt included.
        shared: int32 [pairs], leading tokens that both sides have in common.
        targets: int32 [pairs, 2], predicted tokens of chosen and rejected.
        component: int32 [pairs], index of the mixture's part.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._files: list[Any] = [cast(Any, safe_open)(path, framework="numpy") for path in paths]
        self._ids = [file.get_slice("ids") for file in self._files]
        self._masks = [file.get_slice("mask") for file in self._files]
        parts = [cast(np.ndarray, file.get_tensor("lengths")) for file in self._files]
        self.lengths = self._column("lengths", width=2)
        self.shared = self._column("shared")
        self.targets = self._column("targets", width=2)
        self.component = self._column("component")
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._offsets = [np.concatenate([[0], np.cumsum(part.reshape(-1), dtype=np.int64)]) for part in parts]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: int) -> TokenizedPair:
        if not 0 <= key < len(self):
            raise IndexError(key)
        shard = int(np.searchsorted(self._starts, key, side="right")) - 1
        row = 2 * (key - int(self._starts[shard]))
        begin, middle, end = (int(offset) for offset in self._offsets[shard][row : row + 3])
        return tokenized(int(key), self._side(shard, begin, middle), self._side(shard, middle, end))

    def pair_lengths(self, keys: np.ndarray | None = None) -> packing.PairLengths:
        """What packing must know, of all pairs or of those with `keys` in their order."""
        chosen = slice(None) if keys is None else keys
        return packing.PairLengths.make(self.lengths[chosen], self.shared[chosen], self.targets[chosen])

    def _side(self, shard: int, begin: int, end: int) -> chat.Tokens:
        return chat.Tokens(self._ids[shard][begin:end], self._masks[shard][begin:end])

    def _column(self, name: str, *, width: int | None = None) -> np.ndarray:
        empty = np.zeros((0,) if width is None else (0, width), np.int32)
        return np.concatenate([empty, *(file.get_tensor(name) for file in self._files)])


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Prepared pairs, open for reading."""

    manifest: Manifest
    train: Split
    validation: Split


def load(cache_path: str, digest: str) -> Prepared:
    """Open the pairs with this digest; remote shards are copied to this machine first.

    Raises:
        StaleData: they are not there, or a shard is not what the manifest says.
    """
    manifest = find(cache_path, digest)
    if manifest is None:
        raise errors.StaleData(f"There are no complete prepared pairs at {folder(cache_path, digest)}.")
    opened = {split: Split(_local_shards(cache_path, manifest, split)) for split in SPLITS}
    return Prepared(manifest, opened[sources.TRAIN], opened[sources.VALIDATION])


def tokenized(key: int, chosen: chat.Tokens, rejected: chat.Tokens) -> TokenizedPair:
    """A pair as the numerical core sees it."""
    return TokenizedPair(key, chosen.ids, chosen.mask, rejected.ids, rejected.mask)


def content_key(parts: Mapping[str, Any]) -> str:
    """32 hex characters that are equal for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _local_shards(cache_path: str, manifest: Manifest, split: str) -> tuple[Path, ...]:
    base = folder(cache_path, manifest.digest)
    target = Path(tempfile.gettempdir()) / "loradpo" / f"prepared-{manifest.digest}"
    paths = []
    for name in manifest.shards[split]:
        url = storage.join(base, name)
        path = storage.local_path(url) if storage.is_local(url) else target / name
        try:
            if not storage.is_local(url) and not path.exists():
                storage.download(url, path)
            intact = _sha256(path) == manifest.sha256[name]
        except FileNotFoundError:
            intact = False
        if not intact:
            raise errors.StaleData(f"{url} is missing or not what its manifest says.", hint=f"Delete {base}.")
        paths.append(path)
    return tuple(paths)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
