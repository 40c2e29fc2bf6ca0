"""What a LoRA-DPO step must compute, so that a machine's limit can be stated: arithmetic on the model's shapes.

Work is counted in two ways. The usual one, `whole`, is that of published figures: so many FLOPs for each token of
either side, with the vocabulary at each, the reference cached, no rematerialisation, no padding. A trainer that shares
prompts and predicts only answers does less, and may pass that limit; what it makes of the machine is said by the other
one, the work that cannot be left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class PairTokens:
    """A pair in tokens: its prompt, and each answer as far as the loss counts it."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def encoded(self) -> int:
        """Tokens with the prompt counted once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def longest_side(self) -> int:
        """Tokens of the longer side, prompt included."""
        return self.prompt + max(self.chosen, self.rejected)


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A Llama-like model; sizes in elements."""

    layers: int
    hidden: int
    attention: int
    key_value: int
    inner: int
    vocab: int

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """From `config.json`."""
        given: dict[str, Any] = json.loads((folder / "config.json").read_text())
        head = given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
        return cls(
            given["num_hidden_layers"],
            given["hidden_size"],
            head * given["num_attention_heads"],
            head * given["num_key_value_heads"],
            given["intermediate_size"],
            given["vocab_size"],
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        return [
            *((self.hidden, size) for size in (self.attention, self.key_value, self.key_value)),
            (self.attention, self.hidden),
            (self.hidden, self.inner),
            (self.hidden, self.inner),
            (self.inner, self.hidden),
        ]

    def products(self, tokens: int, targets: int) -> list[tuple[int, int, int, int]]:
        """Rows, inner size, columns and number of the products in a forward."""
        layers = [(tokens, inputs, outputs, self.layers) for inputs, outputs in self.linears]
        return [*layers, (targets, self.hidden, self.vocab, 1)]

    def step_flops(self, pairs: Sequence[PairTokens], rank: int, *, whole: bool) -> float:
        """FLOPs of forward and backward, the reference cached, nothing computed again, no padding.

        A forward takes 2 for each weight and token, plus causal attention; the backward through activations as much,
        with twice the attention; the adapter 6 for each of its weights.

        Args:
            pairs: What is trained on.
            rank: Of the adapter, on every linear map of the layers.
            whole: Count both sides of each pair in full, and the vocabulary at every token; else what has to be done:
                a prompt once, and the vocabulary where an answer is predicted.
        """
        weights = self.layers * sum(inputs * outputs for inputs, outputs in self.linears)
        adapter = self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)
        head = self.hidden * self.vocab
        total = 0.0
        for pair in pairs:
            sides = [pair.prompt + pair.chosen, pair.prompt + pair.rejected]
            squares = sum(side**2 for side in sides) - (0 if whole else pair.prompt**2)
            tokens = sum(sides) if whole else pair.encoded
            targets = sum(sides) if whole else pair.chosen + pair.rejected
            attention = 2.0 * self.layers * self.attention * squares
            total += 4.0 * weights * tokens + 4.0 * head * targets + 6.0 * adapter * tokens + 3 * attention
        return total
