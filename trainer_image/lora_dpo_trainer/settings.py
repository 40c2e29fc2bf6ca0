"""Reading the configuration file: one sentence a mistake, no traceback, no heavy import."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pydantic

from lora_dpo_api import yaml12
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors

_log = logging.getLogger(__name__)


def load(path: str, overrides: Sequence[str]) -> TrainerConfig:
    """Read and check the configuration.

    Args:
        path: The YAML file.
        overrides: Words of the command line, `--dotted.key value` or `--dotted.key=value`.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something impossible.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The configuration {path} cannot be read: {error}.") from error
    try:
        value = yaml12.loads(text)
        for key, new in _pairs(overrides):
            _set(value, key.split("."), new)
        return TrainerConfig.model_validate(value)
    except yaml12.YAMLError as error:
        raise errors.ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    except pydantic.ValidationError as error:
        raise errors.ConfigError(_sentence(path, error)) from error


def _pairs(words: Sequence[str]) -> list[tuple[str, object]]:
    pairs = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise errors.ConfigError(f"{word!r} is no option; write --dotted.key value.")
        key, separator, value = word.removeprefix("--").partition("=")
        if not separator:
            if not rest:
                raise errors.ConfigError(f"--{key} has no value.")
            value = rest.pop(0)
        pairs.append((key, yaml12.loads(value)))
    return pairs


def _set(value: object, path: Sequence[str], new: object) -> None:
    for name in path[:-1]:
        if not isinstance(value, dict):
            raise errors.ConfigError(f"--{'.'.join(path)}: there is no section {name!r}.")
        value = value.setdefault(name, {})
    if not isinstance(value, dict):
        raise errors.ConfigError(f"--{'.'.join(path)}: its parent is not a section.")
    value[path[-1]] = new


def _sentence(path: str, error: pydantic.ValidationError) -> str:
    problems = [f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()]
    return f"{path}: {'; '.join(problems)}."
