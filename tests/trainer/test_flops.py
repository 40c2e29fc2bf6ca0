from __future__ import annotations

import jax
import numpy as np
import pytest

from lora_dpo_api.config_file import LoraConfig
from lora_dpo_trainer import flops, lora, model, packing
from lora_dpo_trainer.flops import Work

LLAMA_8B = Work(weights=6_979_321_856, head=525_336_576, adapter=167_772_160, head_adapter=0, attention=32 * 4096)
"""Llama 3.1 8B with rank 64 on all linear layers but the output projection."""


def sides(length: int, shared: int, targets: int) -> packing.PairLengths:
    """One pair of two sides of this length."""
    return packing.PairLengths.make(np.array([[length, length]]), np.array([shared]), np.array([[targets, targets]]))


@pytest.mark.parametrize(
    ("length", "reference", "gigaflops"),
    [(1024, False, 31.8), (1024, True, 47.1), (4096, False, 34.3), (4096, True, 50.3)],
)
def test_llama_8b_costs_what_arithmetic_says(length: int, reference: bool, gigaflops: float) -> None:
    # Without a common prompt, and predicting every token: the case with a closed form a token.
    work = LLAMA_8B.step(sides(length, 0, length), reference=reference)
    assert work / (2 * length) / 1e9 == pytest.approx(gigaflops, abs=0.06)


def test_a_common_prompt_counts_once_and_the_vocabulary_only_where_a_token_is_predicted() -> None:
    apart, shared = (LLAMA_8B.step(sides(1000, prefix, 200), reference=False) for prefix in (0, 800))
    assert shared < 0.65 * apart
    less = LLAMA_8B.step(sides(1000, 800, 100), reference=False)
    assert shared - less == 2 * 100 * 4 * LLAMA_8B.head


def test_a_model_is_measured_in_its_own_layers(base_model: str) -> None:
    base = model.load_base(str(base_model))
    adapted = lora.resolve(base.linears, LoraConfig(r=8))
    with_head = lora.resolve(base.linears, LoraConfig(r=8, exclude_modules=[]))
    work = Work.of(base.linears, adapted)
    embeddings_and_norms = base.parameter_count - work.weights - work.head
    assert 0 < embeddings_and_norms < 1.1 * work.head
    assert work.adapter == lora.parameter_count(adapted)
    assert Work.of(base.linears, with_head).head_adapter == lora.parameter_count(with_head) - work.adapter
    q_proj = next(spec for spec in base.linears if spec.leaf == "q_proj")
    assert work.attention == len(q_proj.names) * np.prod([axis.size for axis in q_proj.Out])
    assert adapted.head is None


def test_no_peak_is_invented_for_a_cpu() -> None:
    assert flops.peak(jax.devices("cpu")) is None
