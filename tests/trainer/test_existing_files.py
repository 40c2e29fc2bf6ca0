"""Checkpoints and adapters of the user that are damaged: one sentence in prepare, before a slice is held."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors, existing_adapters, peft_io, pretrained, storage

WHOLE = save({"w": np.ones((4, 4), np.float32)})
INDEX = "model.safetensors.index.json"


def checkpoint(folder: str, **files: bytes) -> pretrained.Pretrained:
    for name, content in {"config.json": b"{}", **files}.items():
        storage.write_bytes(f"{folder}/{name}", content)
    return pretrained.Pretrained(folder)


def index(*names: str) -> bytes:
    return json.dumps({"weight_map": {f"w{number}": name for number, name in enumerate(names)}}).encode()


def test_a_whole_checkpoint_is_accepted(memory: str) -> None:
    checkpoint(memory, **{"model.safetensors": WHOLE}).require_weights()
    checkpoint(memory, **{INDEX: index("model.safetensors")}).require_weights()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"There is no \*\.safetensors file"),
        ({"model.safetensors": WHOLE[:-1]}, "model.safetensors in .* is not whole: it has 135 of 136 bytes"),
        ({"model.safetensors": WHOLE + b"x"}, "it has 137 of 136 bytes"),
        ({"model.safetensors": b""}, "is not whole: its header would be longer than the file of 0 bytes"),
        ({"model.safetensors": WHOLE[:40]}, "its header would be longer than the file of 40 bytes"),
        ({"model.safetensors": b"\2" + b"\0" * 7 + b"[]"}, "it does not begin with a header of the format"),
        ({"model.safetensors": b"\3" + b"\0" * 7 + b"{{{"}, "it does not begin with a header of the format"),
        ({"a.safetensors": WHOLE, INDEX: index("a.safetensors", "b.safetensors")}, "has no b.safetensors, which"),
        ({"a.safetensors": WHOLE, INDEX: b"[]"}, f"{INDEX} in .* has no weight_map"),
    ],
    ids=["none", "cut off", "too long", "empty", "cut in its header", "no object", "no JSON", "lost", "no index"],
)
def test_a_checkpoint_that_is_not_whole_is_refused_with_the_file(
    memory: str, files: dict[str, bytes], words: str
) -> None:
    with pytest.raises(errors.ModelNotFound, match=words):
        checkpoint(memory, **files).require_weights()


SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("settings", "weights", "words"),
    [
        (b"{", WHOLE, "adapter_config.json in .* is not JSON"),
        (b"[1]", WHOLE, "adapter_config.json in .* is not a JSON object"),
        (SETTINGS | {"r": "many"}, WHOLE, "adapter_config.json in .*: r is 'many'"),
        (SETTINGS | {"rank_pattern": {"q": 0}}, WHOLE, "adapter_config.json in .*: rank_pattern.q is 0"),
        (SETTINGS | {"layers_to_transform": [1]}, WHOLE[:-1], "adapter_model.safetensors in .* is damaged"),
    ],
    ids=["no JSON", "no object", "a word", "no rank", "cut off"],
)
def test_a_damaged_adapter_is_refused_with_the_file(
    memory: str, make_config: Callable[..., TrainerConfig], settings: bytes | dict[str, Any], weights: bytes, words: str
) -> None:
    content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    storage.write_bytes(f"{memory}/{peft_io.CONFIG}", content)
    storage.write_bytes(f"{memory}/{peft_io.WEIGHTS}", weights)
    with pytest.raises(errors.ConfigError, match=words):
        existing_adapters.settle(make_config(adapter={"init_from": memory}))


def test_an_adapter_whose_weights_are_cut_off_is_refused(memory: str) -> None:
    storage.write_bytes(f"{memory}/{peft_io.WEIGHTS}", WHOLE[:-1])
    with pytest.raises(errors.ConfigError, match=r"adapter_model\.safetensors in .* is damaged"):
        peft_io.shapes(memory)
