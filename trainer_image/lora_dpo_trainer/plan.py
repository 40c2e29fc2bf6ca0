"""Arithmetic that needs no accelerator: how many steps, and whether the adapter fits the model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from lora_dpo_api.config_file import LoraConfig, RunConfig
from lora_dpo_trainer import errors

_FACTOR = re.compile(r"\.layers\.(?P<layer>\d+)\..*\b(?P<leaf>\w+)\.lora_(?P<factor>[AB])\.weight$")
"""A factor of an adapted layer, as PEFT names it."""


def total_steps(run: RunConfig, train_pairs: int, left_out: str = "") -> int:
    """Steps of the whole run: `num_train_steps`, or whole batches of `num_epochs` (default 1).

    Args:
        run: The trainer's settings.
        train_pairs: Pairs to train on.
        left_out: Which rows make no pair, and why, for the message.

    Raises:
        NotEnoughPairs: there is less than one batch.
    """
    why = f"; left out: {left_out}" if left_out else ""
    if train_pairs == 0:
        raise errors.NotEnoughPairs(f"No training pair is left{why}.")
    if train_pairs < run.train_batch_size:
        raise errors.NotEnoughPairs(
            f"There are {train_pairs} training pairs, fewer than trainer.train_batch_size {run.train_batch_size}{why}."
        )
    if run.num_train_steps is not None:
        return run.num_train_steps
    epochs = 1.0 if run.num_epochs is None else run.num_epochs
    return max(1, int(epochs * train_pairs / run.train_batch_size + 1e-9))


def check_rank(lora: LoraConfig, model: Mapping[str, Any]) -> None:
    """Refuse a rank above the smallest dimension of a layer that it applies to, and layers that the model has not.

    Args:
        lora: The adapter's settings.
        model: The model's `config.json`; what it does not say is not checked.

    Raises:
        ConfigError: naming the layer and its dimensions, or the nearest one that exists.
    """
    _check_names(lora, model)
    for name, (inputs, outputs) in _linear_layers(model).items():
        if not _targeted(lora, name):
            continue
        rank = lora.rank_pattern.get(name, lora.r)
        if rank > min(inputs, outputs):
            raise errors.ConfigError(
                f"lora.r is {rank}, above the smallest dimension of {name} ({inputs} x {outputs}).",
                hint=f"Set lora.r to at most {min(inputs, outputs)}, or leave {name} out of lora.target_modules.",
            )


def check_adapter(shapes: Mapping[str, tuple[int, ...]], model: Mapping[str, Any], folder: str) -> None:
    """Refuse an adapter that was made for another base.

    Args:
        shapes: PEFT's name → shape of each of its tensors.
        model: The model's `config.json`; what it does not say is not checked.
        folder: Where the adapter lies, for the message.

    Raises:
        ConfigError: naming the tensor, and what this model has there.
    """
    layers, depth = _linear_layers(model), model.get("num_hidden_layers")
    for name, shape in sorted(shapes.items()):
        found = _FACTOR.search(name)
        if found is None or found["leaf"] not in layers:
            continue
        side, own = (1, 0) if found["factor"] == "A" else (0, 1)
        size, wanted = shape[side], layers[found["leaf"]][own]
        if isinstance(depth, int) and int(found["layer"]) >= depth:
            raise _another_base(folder, f"it adapts layer {found['layer']}, and this model has {depth}")
        if size != wanted:
            raise _another_base(folder, f"{name} is {size} wide, and {found['leaf']} of this model {wanted}")


def _another_base(folder: str, why: str) -> errors.ConfigError:
    return errors.ConfigError(
        f"The adapter {folder} belongs to another base than initialize_from_hf: {why}.",
        hint="Give initialize_from_hf the base that the adapter was trained on; adapter_config.json names it.",
    )


def _check_names(lora: LoraConfig, model: Mapping[str, Any]) -> None:
    known = sorted({*_linear_layers(model), "lm_head"})
    if not isinstance(lora.target_modules, list) or len(known) == 1:
        return
    for wanted in lora.target_modules:
        if wanted.rsplit(".", 1)[-1] not in known:
            near = difflib.get_close_matches(wanted, known, 1, cutoff=0.0)[0]
            raise errors.ConfigError(
                f"lora.target_modules names {wanted}, which no linear layer of this model is called; the nearest is "
                f"{near}.",
                hint=f"The linear layers of this model: {', '.join(known)}.",
            )


def _targeted(lora: LoraConfig, name: str) -> bool:
    if name in lora.exclude_modules:
        return False
    match lora.target_modules:
        case None:
            return True
        case str() as pattern:
            # A pattern may be about the whole path; the layer's own name is all that is known here.
            return re.search(pattern, f"model.layers.0.{_parent(name)}.{name}") is not None
        case names:
            return name in names


def _parent(name: str) -> str:
    return "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"


def _linear_layers(model: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Name → (inputs, outputs), for the layers of the Llama family's naming."""
    hidden, heads, inner = (model.get(key) for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads > 0):
        return {}
    head = model.get("head_dim") or hidden // heads
    query, value = heads * head, (model.get("num_key_value_heads") or heads) * head
    layers = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, value),
        "v_proj": (hidden, value),
        "o_proj": (query, hidden),
    }
    if isinstance(inner, int):
        layers |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
    return layers
