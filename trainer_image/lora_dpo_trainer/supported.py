"""Which checkpoints can be trained, by what their `config.json` says.

A model is either computed exactly as `transformers` computes it, or refused here, before anything heavy is imported
and before a slice is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lora_dpo_trainer import errors

MODEL_TYPES = ("gemma2", "gemma3_text", "llama", "mistral", "olmo2", "qwen2", "qwen3")
"""`model_type` of config.json."""

ROPE_TYPES = ("default", "linear", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
_GEMMA = ("gemma2", "gemma3_text")


def check(model: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint that would not be computed exactly.

    Args:
        model: Its `config.json`.
        name: What the user calls it.

    Raises:
        ModelNotFound: naming what is not supported, and what is.
    """
    kind = model.get("model_type")
    if kind not in MODEL_TYPES:
        raise errors.ModelNotFound(
            f"{name} is of type {kind}, which is not supported.",
            hint=f"Use a model of one of these types: {', '.join(MODEL_TYPES)}.",
        )
    if model.get("quantization_config"):
        raise errors.ModelNotFound(
            f"{name} is quantized, which is not supported.", hint="Use the checkpoint that it was made from."
        )
    for setting, value, allowed in _settings(model):
        if value not in allowed:
            raise errors.ModelNotFound(
                f"{name} has {setting}: {value}, which is not supported for models of type {kind}.",
                hint=f"Supported for {setting}: {', '.join(map(str, allowed))}.",
            )


def _settings(model: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Setting, its value, the values that are computed exactly."""
    if model["model_type"] in _GEMMA:
        yield "hidden_activation", model.get("hidden_activation") or "gelu_pytorch_tanh", ("gelu_pytorch_tanh",)
        yield "use_bidirectional_attention", bool(model.get("use_bidirectional_attention")), (False,)
    else:
        yield "hidden_act", model.get("hidden_act", "silu"), ("silu",)
    for kind in sorted(set(model.get("layer_types") or ())):
        yield "layer_types", kind, LAYER_TYPES
    yield "partial_rotary_factor", model.get("partial_rotary_factor") or 1.0, (1.0,)
    for rope in _ropes(model):
        yield "rope_type", rope.get("rope_type") or rope.get("type") or "default", ROPE_TYPES
        yield "partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, (1.0,)


def _ropes(model: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rotary embeddings: one for all layers, or one for each type of layer."""
    for key in ("rope_scaling", "rope_parameters"):
        found = model.get(key) or {}
        nested = [found[kind] for kind in LAYER_TYPES if isinstance(found.get(kind), Mapping)]
        yield from nested or [found]
