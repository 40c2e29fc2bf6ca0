"""What both trainers are asked for: Llama-3.1-8B, rank 64 on every linear layer of its blocks, 64 pairs of 4,096."""

from __future__ import annotations

import dataclasses

RANK = 64
PAIRS = 64
LENGTH = 4096
SLICES = {"v5p-8": "v5p:2x2x1", "v6e-8": "v6e:2x4", "v5e-16": "v5e:4x4"}
"""Slices by the names that people use, and their topologies."""


@dataclasses.dataclass(frozen=True)
class Llama:
    """Sizes of Llama-3.1-8B; fewer layers to try things out."""

    layers: int = 32
    embed: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128256


ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
