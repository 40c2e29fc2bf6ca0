"""A merged checkpoint: the base's weights with `W + scale * B A` in place of each adapted `W`.

One shard at a time is in memory, whatever the base's own files are, and what the adapter leaves alone is copied bit for
bit where the type stays. The configuration is the base's, so every reader of the base reads the result; but an adapted
head that the base ties to its embedding becomes a tensor of its own.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.flax import save_file
from safetensors.numpy import load

from lora_dpo_api.config_file import LoraConfig, TrainerConfig
from lora_dpo_trainer import adapter_files, chat, errors, peft_io, pretrained, storage

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""About how large a file becomes: what the hub's own tools choose."""
_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the merged checkpoint: its name, where the base has it, and how large it becomes."""

    name: str
    file: str
    source: str
    size: int


def write(
    config: TrainerConfig,
    settings: LoraConfig,
    adapter_folder: str,
    target: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the merged checkpoint; `config.json` comes last, so that its presence means that all is there.

    Args:
        config: Names the base and the type.
        settings: What the adapter says of itself.
        adapter_folder: Where the adapter is.
        target: Where the checkpoint goes.
        shard_bytes: The largest file, unless a single tensor is larger.

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
    tensors = [tensor for name in files for tensor in _tensors(folder / name, dtype, unties=unties)]
    shards = list(_shards(tensors, shard_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        merged = {item.name: _merge(item.name, _load(folder, item), left, dtype) for item in shard}
        places |= dict.fromkeys(merged, name)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            save_file(merged, path, metadata={"format": "pt"})
            storage.upload(path, storage.join(target, name))
        _log.info("Merged %s", name)
    if left:
        raise errors.ExportMismatch(f"The base's files hold no weights of {sorted(left)[0]}, which the adapter adapts.")
    if len(shards) > 1:
        total = sum(tensor.size for tensor in tensors)
        storage.write_json(
            storage.join(target, INDEX), {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        )
    extras = source.read(("generation_config.json",)) | adapter_files.tokenizer_files(config)
    for name, content in extras.items():
        storage.write_bytes(storage.join(target, name), content)
    changed: dict[str, Any] = {"dtype": str(dtype), "torch_dtype": str(dtype)}
    if unties:
        changed["tie_word_embeddings"] = False
    storage.write_bytes(storage.join(target, "config.json"), json.dumps(model | changed, indent=2).encode())


def _tensors(path: Path, dtype: Any, *, unties: bool) -> Iterator[_Tensor]:
    """What a file of the base becomes; an untied head follows its embedding."""
    with cast(Any, safe_open)(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 -- it is no mapping
            part = file.get_slice(name)
            kind = part.get_dtype()
            item = dtype.itemsize if kind in ("F64", "F32", "F16", "BF16") else _ITEM_BYTES[kind]
            size = item * math.prod(part.get_shape())
            yield _Tensor(name, path.name, name, size)
            if unties and name == f"{EMBEDDING}.weight":
                yield _Tensor(f"{HEAD}.weight", path.name, name, size)


def _shards(tensors: Sequence[_Tensor], limit: int) -> Iterator[list[_Tensor]]:
    """Tensors in their order, in as few files as the limit allows."""
    shard: list[_Tensor] = []
    for tensor in tensors:
        if shard and sum(item.size for item in shard) + tensor.size > limit:
            yield shard
            shard = []
        shard.append(tensor)
    if shard:
        yield shard


def _load(folder: Path, tensor: _Tensor) -> Any:
    with cast(Any, safe_open)(folder / tensor.file, framework="flax") as file:
        return file.get_tensor(tensor.source)


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
