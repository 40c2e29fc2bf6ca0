"""Tiny random checkpoints of every supported architecture, with every setting that changes what is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Query heads of 12 make 48, not the hidden 32: a head size that must be read, not derived.
HEAD = 12
WINDOW = 7
GEMMA: dict[str, Any] = {
    "head_dim": HEAD,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 20,
    "tie_word_embeddings": True,
}

CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "llama-tied": lambda: transformers.LlamaConfig(**SHAPE | {"tie_word_embeddings": True}, head_dim=HEAD),
    "llama-biased": lambda: transformers.LlamaConfig(
        **SHAPE,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=WINDOW, head_dim=HEAD),
    "qwen2": lambda: transformers.Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=HEAD),
    "gemma2": lambda: transformers.Gemma2Config(
        **SHAPE | GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=4.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SHAPE | GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
        },
    ),
    "olmo2": lambda: transformers.Olmo2Config(**SHAPE),
}


def save(name: str, folder: Path, *, vocab_size: int = VOCAB) -> None:
    """Write the checkpoint; the same bytes every time."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.vocab_size = vocab_size
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases off their defaults, matrices so large that every part matters.
            size = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            parameter.copy_(size * torch.randn_like(parameter) + (parameter if parameter.ndim == 1 else 0))
    model.save_pretrained(folder)


def load(folder: Path) -> torch.nn.Module:
    """Read a checkpoint as transformers computes it, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()
