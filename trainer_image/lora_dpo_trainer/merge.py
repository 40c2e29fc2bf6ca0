"""A merged checkpoint: the base's own files with `W + scale * B A` in place of each adapted `W`.

One file of the base at a time is in memory, and what the adapter leaves alone is copied bit for bit where the type
stays. File names and configuration are the base's, so every reader of the base reads the result; but an adapted head
that the base ties to its embedding becomes a tensor of its own.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file, save_file
from safetensors.numpy import load

from lora_dpo_api.config_file import LoraConfig, TrainerConfig
from lora_dpo_trainer import chat, errors, peft_io, pretrained, storage

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
INDEX = "model.safetensors.index.json"
_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")

_log = logging.getLogger(__name__)


def write(config: TrainerConfig, settings: LoraConfig, adapter_folder: str, target: str) -> None:
    """Write the merged checkpoint; `config.json` comes last, so that its presence means that all is there.

    Args:
        config: Names the base and the type.
        settings: What the adapter says of itself.
        adapter_folder: Where the adapter is.
        target: Where the checkpoint goes.

    Raises:
        ExportMismatch: a layer of the adapter is not in the base's files.
    """
    source = pretrained.Pretrained(config.initialize_from_hf, config.revision)
    folder = source.local_folder((*pretrained.CONFIGS, *pretrained.WEIGHTS, *chat.TOKENIZER_FILES))
    dtype = jnp.dtype(config.output.merged_hf.dtype)
    left = _deltas(adapter_folder, settings)
    model = source.config()
    unties = HEAD in left and bool(model.get("tie_word_embeddings"))
    files = sorted(name for name in source.names() if fnmatch.fnmatch(name, "*.safetensors"))
    places: dict[str, str] = {}
    total = 0
    for name in files:
        tensors = load_file(folder / name)
        if unties and f"{EMBEDDING}.weight" in tensors:
            tensors[f"{HEAD}.weight"] = tensors[f"{EMBEDDING}.weight"]
        merged = {key: _merge(key, value, left, dtype) for key, value in tensors.items()}
        places |= dict.fromkeys(merged, name)
        total += sum(value.nbytes for value in merged.values())
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            save_file(merged, path, metadata={"format": "pt"})
            storage.upload(path, storage.join(target, name))
        _log.info("Merged %s", name)
    if left:
        raise errors.ExportMismatch(f"The base's files hold no weights of {sorted(left)[0]}, which the adapter adapts.")
    if len(files) > 1:
        storage.write_json(
            storage.join(target, INDEX), {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        )
    extras = source.read(("generation_config.json", *chat.TOKENIZER_FILES))
    for name, content in extras.items():
        storage.write_bytes(storage.join(target, name), content)
    changed: dict[str, Any] = {"dtype": str(dtype), "torch_dtype": str(dtype)}
    if unties:
        changed["tie_word_embeddings"] = False
    storage.write_bytes(storage.join(target, "config.json"), json.dumps(model | changed, indent=2).encode())


def _merge(key: str, value: Any, left: dict[str, np.ndarray], dtype: Any) -> Any:
    delta = left.pop(key.removesuffix(".weight"), None)
    if delta is not None:
        value = value.astype(jnp.float32) + delta
    return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _deltas(folder: str, settings: LoraConfig) -> dict[str, np.ndarray]:
    """Layer name → float32 `scale * B A`."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    for name, array in load(storage.read_bytes(storage.join(folder, peft_io.WEIGHTS))).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise errors.ExportMismatch(f"{folder} holds a tensor of unknown kind: {name}.")
        factors.setdefault(match["layer"], {})[match["factor"]] = array.astype(np.float32)
    return {layer: _scale(layer, pair["A"], settings) * (pair["B"] @ pair["A"]) for layer, pair in factors.items()}


def _scale(layer: str, low: np.ndarray, settings: LoraConfig) -> float:
    rank = low.shape[0]
    alpha = _pattern(settings.alpha_pattern, layer, settings.resolved_alpha)
    return alpha / (math.sqrt(rank) if settings.rslora else rank)


def _pattern(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """PEFT's rule: the first pattern that fits the end of a layer's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)
