from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import flax
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


def test_a_large_checkpoint_is_written_in_shards_with_an_index(
    make_config: Callable[..., TrainerConfig], base_model: Path, tmp_path: Path
) -> None:
    folder, limit = str(base_model.parent / "adapter_final"), 150_000
    config = make_config(output={"path": str(tmp_path), "merged_hf": {"enabled": True, "dtype": "bfloat16"}})
    settings = peft_io.load_config(folder)
    merge.write(config, settings, folder, str(tmp_path / "whole"))
    merge.write(config, settings, folder, str(tmp_path / "shards"), shard_bytes=limit)

    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    found = {}
    for file in files:
        tensors = flax.load_file(tmp_path / "shards" / file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit
        assert {name for name, place in index["weight_map"].items() if place == file} == tensors.keys()
        found |= tensors
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    expected = flax.load_file(tmp_path / "whole" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert {str(tensor.dtype) for tensor in found.values()} == {"bfloat16"}
    assert all(bool((found[name] == expected[name]).all()) for name in expected)


def test_the_chat_template_that_pairs_were_rendered_with_goes_along(
    make_config: Callable[..., TrainerConfig], base_model: Path, preference_file: Path, memory: str
) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    source = {"type": "url", "train_urls": [str(preference_file)]}
    data = {"components": {"prefs": {"source": source, "format": {"chat_template": template}}}}
    folder = str(base_model.parent / "adapter_final")
    config = make_config(data=data, output={"path": memory, "merged_hf": {"enabled": True}})
    merge.write(config, peft_io.load_config(folder), folder, f"{memory}/merged")
    assert storage.read_bytes(f"{memory}/merged/chat_template.jinja").decode() == template
