from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import merge, peft_io, storage

LAYER = "model.layers.1.mlp.down_proj"


def test_a_merged_layer_is_the_base_plus_the_scaled_product(
    make_config: Callable[..., TrainerConfig], base_model: Path, memory: str
) -> None:
    folder = str(base_model.parent / "adapter_final")
    output = {"path": memory, "merged_hf": {"enabled": True, "dtype": "float32"}}
    merge.write(make_config(output=output), peft_io.load_config(folder), folder, f"{memory}/merged")

    base = load_file(base_model / "model.safetensors")
    adapter = load_file(Path(folder) / "adapter_model.safetensors")
    merged = load(storage.read_bytes(f"{memory}/merged/model.safetensors"))
    low, high = (adapter[f"base_model.model.{LAYER}.lora_{factor}.weight"] for factor in "AB")
    np.testing.assert_allclose(merged[f"{LAYER}.weight"], base[f"{LAYER}.weight"] + high @ low, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert merged.keys() == base.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_merged_folder_is_a_whole_checkpoint_of_the_asked_type(
    make_config: Callable[..., TrainerConfig], base_model: Path, memory: str, dtype: str
) -> None:
    folder = str(base_model.parent / "adapter_final")
    output = {"path": memory, "merged_hf": {"enabled": True, "dtype": dtype}}
    merge.write(make_config(output=output), peft_io.load_config(folder), folder, f"{memory}/merged")
    assert json.loads(storage.read_bytes(f"{memory}/merged/config.json"))["dtype"] == dtype
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(storage.children(f"{memory}/merged"))
