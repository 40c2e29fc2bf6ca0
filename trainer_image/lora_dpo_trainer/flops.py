"""Necessary FLOPs of a LoRA-DPO step, for its model FLOPs utilisation (MFU).

The convention. Counted is what the step cannot do without: a prompt once for both answers, the vocabulary only where a
token is predicted, attention only to what came before; forward, the gradient of activations, and the adapter's own
products. The frozen weights have no gradient, so that a token costs 4 FLOPs a weight and not 6. Not counted: padding,
recomputed activations, a reference that was computed before; a sliding window counts as full causal attention. The
peak is that of dense bfloat16. Figures of trainers that count otherwise cannot be compared with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import haliax as hax
import jax
import numpy as np
from fray import device_flops

from lora_dpo_trainer.linears import HEAD, LinearSpec
from lora_dpo_trainer.lora import LoraPlan
from lora_dpo_trainer.packing import PairLengths

_ATTENTION_OUTPUT = "o_proj"
"""Its inputs are all heads together, in every supported architecture."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What FLOPs grow with, in elements.

    Attributes:
        weights: Of the linear layers but the output projection.
        head: Of the output projection.
        adapter: Trainable ones, without those of the output projection.
        head_adapter: Trainable ones of the output projection.
        attention: Width of all heads together, summed over layers.
    """

    weights: int
    head: int
    adapter: int
    head_adapter: int
    attention: int

    @classmethod
    def of(cls, linears: Sequence[LinearSpec], plan: LoraPlan) -> Work:
        """Of a model with an adapter."""
        sizes = {spec.path: hax.axis_size(spec.In) * hax.axis_size(spec.Out) * len(spec.names) for spec in linears}
        adapters = {
            target.linear.path: sum(target.ranks) * (hax.axis_size(target.linear.In) + hax.axis_size(target.linear.Out))
            for target in plan.targets
        }
        attention = sum(hax.axis_size(spec.In) * len(spec.names) for spec in linears if spec.leaf == _ATTENTION_OUTPUT)
        head, head_adapter = sizes.pop(HEAD), adapters.pop(HEAD, 0)
        return cls(sum(sizes.values()), head, sum(adapters.values()), head_adapter, attention)

    def step(self, lengths: PairLengths, *, reference: bool) -> float:
        """FLOPs of a step over these pairs; `reference`: whether it also computes the reference."""
        tokens, targets = float(lengths.encoded.sum()), float(lengths.targets.sum())
        shared = lengths.sides.sum(axis=1) - lengths.encoded
        squares = float(np.square(lengths.sides).sum() - np.square(shared).sum())
        forward = 2.0 * (self.weights * tokens + self.head * targets + self.attention * squares)
        backward = forward + 2.0 * self.attention * squares
        adapter = 6.0 * (self.adapter * tokens + self.head_adapter * targets)
        return forward + backward + adapter + (forward if reference else 0.0)


def peak(devices: Sequence[jax.Device]) -> float | None:
    """bfloat16 FLOP/s of all devices together; None where no peak is known, as of a CPU."""
    if devices[0].platform == "cpu":
        return None
    one = device_flops.device_flops_for_jax_device(devices[0].device_kind, "bf16")
    return None if one is None else one * len(devices)
