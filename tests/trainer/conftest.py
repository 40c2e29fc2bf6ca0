"""What several trainer tests build on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lora_dpo_api.config_file import TrainerConfig

with warnings.catch_warnings():
    # haliax reaches for deprecated names of JAX while it is imported; nothing that we call does.
    warnings.simplefilter("ignore", DeprecationWarning)
    import haliax  # noqa: F401

PARITY = Path(__file__).parents[1] / "data" / "parity" / "llama-r8"


@pytest.fixture
def base_model() -> Path:
    """A tiny random Llama with tokenizer and chat template."""
    return PARITY / "base"


@pytest.fixture
def preference_file() -> Path:
    """96 preference_chat rows for it."""
    return PARITY / "prefs.jsonl"


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL of an empty in-memory object store."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    store.store.clear()


def turn(role: str, content: str) -> dict[str, str]:
    """One chat message."""
    return {"role": role, "content": content}


def make_row(prompt: str = "which", chosen: str = "this", rejected: str = "that") -> dict[str, Any]:
    """One preference_chat row."""
    question = turn("user", prompt)
    return {
        "chosen": [question, turn("assistant", chosen)],
        "rejected": [question, turn("assistant", rejected)],
    }


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Builds rows."""
    return make_row


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a file and returns its path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write


@pytest.fixture
def make_config(tmp_path: Path, base_model: Path, preference_file: Path) -> Callable[..., TrainerConfig]:
    """Builds a configuration for the tiny model; keyword arguments replace whole sections."""

    def make(**changes: Any) -> TrainerConfig:
        values: dict[str, Any] = {
            "data": {"components": {"prefs": {"source": {"type": "url", "train_urls": [str(preference_file)]}}}},
            "initialize_from_hf": str(base_model),
            "train_seq_len": 128,
            "trainer": {"train_batch_size": 8, "num_train_steps": 4, "mp": "p=f32,c=f32"},
            "lora": {"r": 8},
            "validation_split_fraction": 0.1,
            "output": {"path": str(tmp_path / "out")},
        }
        return TrainerConfig.model_validate(values | changes)

    return make


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without the operator's variables, so that the machine's own do not matter."""
    for name in list(os.environ):
        if name.startswith("LORADPO_") or name == "JOB_COMPLETION_INDEX":
            monkeypatch.delenv(name)
    return monkeypatch
