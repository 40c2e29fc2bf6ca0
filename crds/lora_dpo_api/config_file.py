"""Reading and writing the trainer's configuration file.

A user of Levanter runs the guide's YAML unchanged; the operator writes the same schema, fully resolved, into the job's
ConfigMap. Reading is strict and happens before any heavy import: an unknown key is an error that names the nearest
known one. Levanter's keys that have no meaning here are collected in `LoadedConfig.ignored`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lora_dpo_api import forced, guidance, levanter_keys, yaml12
from lora_dpo_api.config_models import (
    MAX_LEARNING_RATE,
    AdapterConfig,
    AInit,
    CacheConfig,
    CheckpointOutput,
    Component,
    DataConfig,
    EvalConfig,
    HubSource,
    LoraConfig,
    LossConfig,
    LossType,
    MergedOutput,
    OptimizerConfig,
    OutputConfig,
    PeftOutput,
    PreferenceChatFormat,
    ReferenceConfig,
    RunConfig,
    Section,
    SliceStrategy,
    TrackingConfig,
    TrainerConfig,
    UrlSource,
    WandbConfig,
)
from lora_dpo_api.errors import ConfigError, Problem, parse

__all__ = [
    "MAX_LEARNING_RATE",
    "AInit",
    "AdapterConfig",
    "CacheConfig",
    "CheckpointOutput",
    "Component",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "HubSource",
    "LoadedConfig",
    "LoraConfig",
    "LossConfig",
    "LossType",
    "MergedOutput",
    "OptimizerConfig",
    "OutputConfig",
    "PeftOutput",
    "PreferenceChatFormat",
    "ReferenceConfig",
    "RunConfig",
    "Section",
    "SliceStrategy",
    "TrackingConfig",
    "TrainerConfig",
    "UrlSource",
    "WandbConfig",
    "dumps",
    "load",
]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and what its user should hear about it.

    Attributes:
        warnings: forced values, the guide's advice, and keys that moved; a sentence each.
        ignored: Levanter's keys that have no meaning here, such as `trainer.tracker`.
    """

    config: TrainerConfig
    warnings: tuple[str, ...]
    ignored: tuple[str, ...]


def load(text: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a configuration.

    Args:
        text: YAML 1.2.
        overrides: command-line words, `--a.b.c=value` or `--a.b.c value`; values are YAML too.

    Raises:
        ConfigError: a problem for each wrong key or value.
    """
    raw = _mapping(text)
    for path, value in _overrides(overrides):
        _set(raw, path, value)
    work = levanter_keys.translate(raw)
    output = work.section("output")
    if "path" not in output:
        output["path"] = f"runs/{_digest(work.tree)}"
        work.notes.append(f"output.path: not set; results go to {output['path']}")
    written = parse(TrainerConfig, work.tree, ConfigError)
    lora = written.lora
    if "zero_init_b" in lora.model_fields_set and lora.zero_init_b and lora.a_init_mode is AInit.ZERO:
        reason = "and a_init_mode: zero would start both factors at zero, and nothing would ever be learned; keep one"
        raise ConfigError([Problem("lora.zero_init_b", reason, value=True)])
    start = forced.lora_start(lora.zero_init_b, lora.a_init_mode, "lora.zero_init_b")
    config = written.model_copy(
        update={
            "lora": lora.model_copy(update={"zero_init_b": start.zero_init_b, "a_init_mode": start.a_init_mode}),
        }
    )
    found = guidance.findings(guidance.of_config(config), guidance.FILE_PATHS)
    notices = [*([start.notice] if start.notice else []), *(finding.notice for finding in found)]
    return LoadedConfig(config, (*work.notes, *map(str, notices)), tuple(work.ignored))


def dumps(config: TrainerConfig) -> str:
    """The file for a configuration: every value written out, always the same bytes for the same values.

    `load` reads the same configuration from it.
    """
    return yaml12.dumps(_plain(config))


def _mapping(text: str) -> dict[str, Any]:
    try:
        raw = yaml12.loads(text)
    except yaml12.YAMLError as error:
        raise ConfigError([Problem("the file", f"is not YAML: {error}")]) from error
    if not isinstance(raw, dict):
        raise ConfigError([Problem("the file", "must hold keys and values, such as data: and initialize_from_hf:")])
    return copy.deepcopy(raw)


def _overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError([Problem(word, "is not an override; write --a.b.c=value")])
        path, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError([Problem(path, f"has no value; write --{path}=value")])
            value = rest.pop(0)
        try:
            found.append((path, yaml12.loads(value)))
        except yaml12.YAMLError as error:
            raise ConfigError([Problem(path, f"{value} is not YAML: {error}")]) from error
    return found


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    here = raw
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        child = here.get(key)
        if child is None:
            child = here[key] = {}
        if not isinstance(child, dict):
            raise ConfigError([Problem(".".join(parents[: depth + 1]), f"has no field {last}: it is one value")])
        here = child
    here[last] = value


def _digest(tree: dict[str, Any]) -> str:
    kept = {key: value for key, value in tree.items() if key not in ("output", "cache")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """Models as nested dicts; an absent value is left out only where leaving it out means the same."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        items = ((name, getattr(value, name)) for name in fields)
        return {name: _plain(item) for name, item in items if item is not None or fields[name].default is not None}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if hasattr(value, "value") else value
