"""Which run owns `output.path`: `run.json`, checked before anything is written there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors, storage

RUN_FILE = "run.json"
_RESULTS = (
    "checkpoints",
    "adapter",
    "peft",
    "merged",
    "logs",
    "metrics",
    "metrics.jsonl",
    "probe.safetensors",
    "probe.json",
    "export.json",
)
_NOT_IDENTITY = {"output", "cache", "eval", "tracking", "run_id", "data", "initialize_from_hf", "revision"}
"""Sections that may change between attempts of one run; data and model count by their digests."""


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What makes two attempts the same run.

    Attributes:
        run_id: Name of the run.
        data: Content key of the prepared pairs.
        base: Digest of the base model's weights.
        settings: Dotted path → value, of every setting that changes what is computed.
        total_steps: Steps of the whole run.
    """

    run_id: str
    data: str
    base: str
    settings: Mapping[str, Any]
    total_steps: int

    @property
    def settings_digest(self) -> str:
        """Hex digest of the settings."""
        return _digest(self.settings)

    def difference(self, other: RunIdentity) -> str | None:
        """The first field that differs, as a sentence; None when they are the same run."""
        for name in sorted({*self.settings, *other.settings}):
            mine, theirs = self.settings.get(name), other.settings.get(name)
            if mine != theirs:
                return f"{name} is {mine!r} here and {theirs!r} there"
        if self.base != other.base:
            return "initialize_from_hf has other weights"
        if self.data != other.data:
            return "data (rows, tokenizer, chat template, train_seq_len or validation split) is not the same"
        if self.run_id != other.run_id:
            return f"run_id is {self.run_id!r} here and {other.run_id!r} there"
        if self.total_steps != other.total_steps:
            return f"the number of steps is {self.total_steps} here and {other.total_steps} there"
        return None

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunIdentity:
        """From a JSON value."""
        return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})


def of(
    config: TrainerConfig, *, data: str, base: str, total_steps: int, adapters: Mapping[str, str] | None = None
) -> RunIdentity:
    """The identity of a run of this configuration on these pairs and weights.

    Args:
        config: The configuration.
        data: Content key of the prepared pairs.
        base: Digest of the base's weights.
        total_steps: Of the whole run.
        adapters: Setting → digest of the adapter that it names.
    """
    sections = config.model_dump(mode="json", exclude=_NOT_IDENTITY)
    settings = dict(_flatten(sections)) | {"data.shuffle": config.data.shuffle}
    if config.data.train_weights:
        settings |= {f"data.train_weights.{name}": weight for name, weight in config.data.train_weights.items()}
    settings |= {f"the adapter of {name}": digest for name, digest in (adapters or {}).items()}
    run_id = config.run_id or f"run-{_digest([settings, data, base])[:12]}"
    return RunIdentity(run_id, data, base, settings, total_steps)


def read(output_path: str) -> RunIdentity | None:
    """The run that owns a folder, if any."""
    try:
        return RunIdentity.from_json(storage.read_json(storage.join(output_path, RUN_FILE)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise errors.OutputOccupied(f"{storage.join(output_path, RUN_FILE)} is not a run's identity.") from error


def claim(config: TrainerConfig, identity: RunIdentity) -> bool:
    """Make `output.path` this run's, following `output.on_existing`.

    Returns:
        True when the run was there before and will go on.

    Raises:
        OutputOccupied: another run is there; names the first field that differs.
    """
    path = config.output.path
    owner = read(path)
    if owner is not None:
        difference = identity.difference(owner)
        # Under `fail` and `overwrite` only a named run can tell its own earlier attempt from someone else's results.
        own_attempt = difference is None and (config.output.on_existing == "resume" or config.run_id is not None)
        if own_attempt:
            return True
        if config.output.on_existing != "overwrite":
            raise errors.OutputOccupied(f"{path} belongs to run {owner.run_id}: {difference or 'it exists already'}.")
        for name in _RESULTS:
            storage.delete(storage.join(path, name))
    storage.write_json(storage.join(path, RUN_FILE), identity.to_json())
    return False


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [pair for name, item in value.items() for pair in _flatten(item, f"{prefix}.{name}" if prefix else name)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
