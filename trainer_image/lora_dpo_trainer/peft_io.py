"""Adapters in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`.

They are written so that a reader without `rank_pattern` and `alpha_pattern`, such as vLLM, computes the same: `r` is
the highest rank, and all layers have one scale; what a layer's own scale was goes into its B.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import haliax as hax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from lora_dpo_api.config_file import AInit, LoraConfig
from lora_dpo_trainer import errors, lora, pretrained, storage
from lora_dpo_trainer.lora import Adapter, LoraPlan, LoraWeights

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer.weight"
"""PEFT keeps the frozen weights of an adapted head beside its factors."""

type Dtype = Literal["float32", "bfloat16"]


def tensors(adapter: Adapter, plan: LoraPlan) -> dict[str, np.ndarray]:
    """PEFT's name → array: A [rank, in], B [out, rank], one of each an adapted layer.

    Args:
        adapter: With arrays on this process.
        plan: Of the adapter.
    """
    found = {}
    for target in plan.targets:
        linear, (A, B) = target.linear, adapter[target.linear.path]
        stack = () if linear.Layers is None else (linear.Layers,)
        rank, inputs, outputs = target.rank_axis.size, hax.axis_size(linear.In), hax.axis_size(linear.Out)
        stacked_a = np.asarray(A.rearrange((*stack, target.rank_axis, *linear.In)).array).reshape(-1, rank, inputs)
        stacked_b = np.asarray(B.rearrange((*stack, *linear.Out, target.rank_axis)).array).reshape(-1, outputs, rank)
        for layer, (name, own) in enumerate(zip(linear.names, target.ranks, strict=True)):
            if own:
                found[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(stacked_a[layer, :own])
                found[f"{_PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(stacked_b[layer, :, :own])
    return found


def from_tensors(arrays: Mapping[str, np.ndarray], plan: LoraPlan, *, where: str = "the adapter") -> Adapter:
    """The inverse of `tensors`, float32.

    Raises:
        ConfigError: a tensor is missing, has another shape, or belongs to nothing in the plan.
    """
    left = {name: array for name, array in arrays.items() if not name.endswith(_BASE_LAYER)}
    adapter: Adapter = {}
    for target in plan.targets:
        linear, rank = target.linear, target.rank_axis.size
        inputs, outputs = hax.axis_size(linear.In), hax.axis_size(linear.Out)
        stacked_a = np.zeros((len(linear.names), rank, inputs), np.float32)
        stacked_b = np.zeros((len(linear.names), outputs, rank), np.float32)
        for layer, (name, own) in enumerate(zip(linear.names, target.ranks, strict=True)):
            if own:
                stacked_a[layer, :own] = _take(left, f"{_PREFIX}{name}.lora_A.weight", (own, inputs), where)
                stacked_b[layer, :, :own] = _take(left, f"{_PREFIX}{name}.lora_B.weight", (outputs, own), where)
        a_axes, b_axes = lora.shapes(plan)[linear.path]
        adapter[linear.path] = LoraWeights(
            hax.named(jnp.asarray(stacked_a.reshape([axis.size for axis in a_axes])), a_axes),
            hax.named(jnp.asarray(stacked_b.reshape([axis.size for axis in b_axes])), b_axes),
        )
    if left:
        raise errors.ConfigError(
            f"{where} adapts {sorted(left)[0]}, which lora.target_modules leaves out.",
            hint="Choose lora.target_modules and lora.exclude_modules as the adapter was trained with.",
        )
    return adapter


def adapter_config(plan: LoraPlan, config: LoraConfig, base: str, revision: str | None = None) -> dict[str, Any]:
    """PEFT's `adapter_config.json` for an adapter.

    Layers whose rank or alpha differs from that of the highest rank are named in `rank_pattern` and `alpha_pattern`.
    """
    layers = [
        (name, rank, scale * (math.sqrt(rank) if config.rslora else rank))
        for target in plan.targets
        for name, rank, scale in zip(target.linear.names, target.ranks, target.scales, strict=True)
        if rank
    ]
    rank = max(layer[1] for layer in layers)
    alphas = [round(layer[2], 9) for layer in layers]
    alpha = next(value for layer, value in zip(layers, alphas, strict=True) if layer[1] == rank)
    whole = all(all(target.ranks) for target in plan.targets)
    names = sorted({target.linear.leaf for target in plan.targets} if whole else {layer[0] for layer in layers})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _integral(alpha),
        "lora_dropout": plan.dropout,
        "use_rslora": config.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        # A zero A with a random B is no start that PEFT knows by name.
        "init_lora_weights": config.a_init_mode is not AInit.ZERO,
        "target_modules": names,
        "rank_pattern": {layer[0]: layer[1] for layer in layers if layer[1] != rank},
        "alpha_pattern": {
            layer[0]: _integral(value) for layer, value in zip(layers, alphas, strict=True) if value != alpha
        },
        "exclude_modules": None,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def with_one_scale(adapter: Adapter, plan: LoraPlan) -> tuple[Adapter, LoraPlan]:
    """The same function with the commonest scale in every layer: B takes up the difference."""
    scales = [scale for target in plan.targets for scale, rank in zip(target.scales, target.ranks, strict=True) if rank]
    common = collections.Counter(scales).most_common(1)[0][0]
    folded, targets = dict(adapter), []
    for target in plan.targets:
        if any(rank and scale != common for rank, scale in zip(target.ranks, target.scales, strict=True)):
            ratios = np.array([scale / common for scale in target.scales], np.float32)
            weights, layers = adapter[target.linear.path], target.linear.Layers
            ratio = hax.named(jnp.asarray(ratios), layers) if layers is not None else float(ratios[0])
            folded[target.linear.path] = LoraWeights(weights.A, (weights.B * ratio).rearrange(weights.B.axes))
        own = tuple(common if rank else 0.0 for rank in target.ranks)
        targets.append(dataclasses.replace(target, scales=own))
    return folded, dataclasses.replace(plan, targets=tuple(targets))


def save(
    folder: str,
    adapter: Adapter,
    plan: LoraPlan,
    config: LoraConfig,
    base: str,
    revision: str | None = None,
    dtype: Dtype = "float32",
) -> str:
    """Write an adapter to a folder (any fsspec URL); the weights last, so that their presence means complete.

    Returns:
        Hex digest of the weights' file.

    Raises:
        NonFinite: a weight is NaN or infinite; nothing is written.
    """
    adapter, plan = with_one_scale(adapter, plan)
    arrays = tensors(adapter, plan)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise errors.NonFinite(f"The adapter is not finite in {name}; it is not written.")
    content = save_safetensors(
        {name: array.astype(jnp.dtype(dtype)) for name, array in arrays.items()}, metadata={"format": "pt"}
    )
    storage.write_json(storage.join(folder, CONFIG), adapter_config(plan, config, base, revision))
    storage.write_bytes(storage.join(folder, WEIGHTS), content)
    return hashlib.sha256(content).hexdigest()


def load(folder: str, plan: LoraPlan) -> Adapter:
    """Read the weights of an adapter, to go on from or as the reference.

    Args:
        folder: fsspec URL, path, or hub id.
        plan: Of the adapter.

    Raises:
        ConfigError: it does not fit the plan.
        FileNotFoundError: there is none.
    """
    return from_tensors(_tensors(folder), plan, where=folder)


def digest(folder: str) -> str:
    """Hex digest of everything that an adapter computes with.

    Raises:
        FileNotFoundError: there is none.
    """
    return hashlib.sha256(_read(folder, CONFIG) + _read(folder, WEIGHTS)).hexdigest()


def shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """PEFT's name → shape of every tensor of an adapter.

    Raises:
        FileNotFoundError: there is none.
    """
    return {name: array.shape for name, array in _tensors(folder).items()}


def load_config(folder: str) -> LoraConfig:
    """The settings that an adapter was trained with.

    Args:
        folder: fsspec URL, path, or hub id.

    Raises:
        ConfigError: it is of a kind that is not supported, such as DoRA.
        FileNotFoundError: there is none.
    """
    raw = _settings(folder)
    for name in ("use_dora", "modules_to_save", "layer_replication", "lora_bias", "trainable_token_indices"):
        if raw.get(name):
            raise errors.ConfigError(f"{folder} sets {name}, which is not supported.")
    if raw.get("peft_type") != "LORA":
        raise errors.ConfigError(f"{folder} is a {raw.get('peft_type')} adapter; only LORA can be read.")
    modules = _layers(folder) if raw.get("layers_to_transform") is not None else raw["target_modules"]
    try:
        return LoraConfig(
            r=raw["r"],
            alpha=raw["lora_alpha"],
            dropout=raw.get("lora_dropout", 0.0),
            target_modules=modules,
            exclude_modules=raw.get("exclude_modules") or [],
            rslora=raw.get("use_rslora", False),
            rank_pattern=raw.get("rank_pattern") or {},
            alpha_pattern=raw.get("alpha_pattern") or {},
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise errors.ConfigError(f"{CONFIG} in {folder}: {name} is {first['input']!r}. {first['msg']}.") from error


def _settings(folder: str) -> dict[str, Any]:
    try:
        raw = json.loads(_read(folder, CONFIG))
    except ValueError as error:
        raise errors.ConfigError(f"{CONFIG} in {folder} is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise errors.ConfigError(f"{CONFIG} in {folder} is not a JSON object.")
    missing = [name for name in ("r", "lora_alpha", "target_modules") if name not in raw]
    if missing and raw.get("peft_type", "LORA") == "LORA":
        raise errors.ConfigError(f"{CONFIG} in {folder} has no {missing[0]}.")
    return raw


def _layers(folder: str) -> list[str]:
    """Full names of the layers that an adapter has factors of."""
    suffix = ".lora_A.weight"
    return sorted(name.removeprefix(_PREFIX).removesuffix(suffix) for name in _tensors(folder) if name.endswith(suffix))


def _tensors(folder: str) -> dict[str, np.ndarray]:
    try:
        return dict(load_safetensors(_read(folder, WEIGHTS)))
    except SafetensorError as error:
        raise errors.ConfigError(
            f"{WEIGHTS} in {folder} is damaged: {error}.", hint="Copy the adapter again."
        ) from error


def _read(folder: str, name: str) -> bytes:
    try:
        found = pretrained.Pretrained(folder).read((name,))
    except errors.ModelNotFound as error:
        raise FileNotFoundError(folder) from error
    if name not in found:
        raise FileNotFoundError(f"{folder}/{name}")
    return found[name]


def _take(left: dict[str, np.ndarray], name: str, shape: tuple[int, int], where: str) -> np.ndarray:
    if name not in left:
        raise errors.ConfigError(f"{where} has no tensor {name}; lora.target_modules asks for it.")
    array = left.pop(name)
    if array.shape != shape:
        raise errors.ConfigError(
            f"{name} of {where} has shape {array.shape}, not {shape}.", hint="Set lora.r as the adapter was trained."
        )
    return array.astype(np.float32)


def _integral(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
