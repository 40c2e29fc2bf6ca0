"""Reading the configuration file, before any heavy import: one sentence a mistake, no traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lora_dpo_api import config_file
from lora_dpo_api import errors as api_errors
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors

_log = logging.getLogger(__name__)


def load(path: str, overrides: Sequence[str], *, say_notices: bool = True) -> TrainerConfig:
    """Read and check the configuration.

    Args:
        path: The YAML file.
        overrides: Words of the command line, `--dotted.key value` or `--dotted.key=value`.
        say_notices: Log what was forced, what is unwise and which of Levanter's keys mean nothing here.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something impossible.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The configuration {path} cannot be read: {error}.") from error
    try:
        loaded = config_file.load(text, overrides)
    except api_errors.ConfigError as error:
        sentence = "; ".join(str(error).split("\n"))
        raise errors.ConfigError(f"{path}: {sentence}") from error
    if say_notices:
        for notice in loaded.warnings:
            _log.warning("%s", notice)
        if loaded.ignored:
            _log.warning("These keys mean nothing here and are ignored: %s", ", ".join(map(str, loaded.ignored)))
    return loaded.config
