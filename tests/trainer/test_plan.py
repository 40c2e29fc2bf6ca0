from __future__ import annotations

import re
from typing import Any

import pytest

from lora_dpo_api.config_file import LoraConfig, RunConfig
from lora_dpo_trainer import errors, plan

MODEL = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
}


@pytest.mark.parametrize(
    ("run", "steps"),
    [
        ({"num_train_steps": 7}, 7),
        ({}, 12),
        ({"num_epochs": 2}, 25),
        ({"num_epochs": 0.1}, 1),
        ({"num_train_steps": 7, "num_epochs": 2}, 7),
    ],
)
def test_steps_are_given_or_whole_batches_of_the_epochs(run: dict[str, Any], steps: int) -> None:
    assert plan.total_steps(RunConfig(train_batch_size=8, **run), 100) == steps


@pytest.mark.parametrize("pairs", [0, 7])
def test_less_than_one_batch_is_an_error_that_tells_what_was_left_out(pairs: int) -> None:
    with pytest.raises(errors.NotEnoughPairs, match=r"; left out: 20 rows: an empty answer \(a.jsonl:1, …\)\.$"):
        plan.total_steps(RunConfig(train_batch_size=8), pairs, "20 rows: an empty answer (a.jsonl:1, …)")


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 192},
        {"r": 512, "target_modules": ["q_proj", "o_proj"]},
        {"r": 512, "exclude_modules": ["lm_head", "k_proj", "v_proj"]},
        {"r": 512, "target_modules": r".*\.(gate|up|down)_proj"},
    ],
)
def test_a_rank_that_fits_every_adapted_layer_is_accepted(lora: dict[str, Any]) -> None:
    plan.check_rank(LoraConfig(**lora), MODEL)


@pytest.mark.parametrize("lora", [{"r": 193}, {"r": 8, "rank_pattern": {"v_proj": 200}}])
def test_a_rank_above_the_smallest_dimension_names_the_layer(lora: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=r"smallest dimension of [kv]_proj \(576 x 192\)"):
        plan.check_rank(LoraConfig(**lora), MODEL)


def test_a_model_that_does_not_say_its_sizes_is_not_judged() -> None:
    plan.check_rank(LoraConfig(r=100_000), {"model_type": "other"})


def test_a_layer_that_the_model_has_not_is_named_with_the_nearest_before_a_slice_is_held() -> None:
    with pytest.raises(errors.ConfigError, match=r"names q_projection, which no .*; the nearest is q_proj\."):
        plan.check_rank(LoraConfig(target_modules=["v_proj", "q_projection"]), MODEL)
    plan.check_rank(LoraConfig(target_modules=["self_attn.q_proj", "lm_head"]), MODEL)


def factors(layer: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    name = f"base_model.model.model.layers.{layer}"
    return {f"{name}.lora_A.weight": (8, inputs), f"{name}.lora_B.weight": (outputs, 8)}


def test_an_adapter_of_this_base_is_accepted() -> None:
    head = {"base_model.model.lm_head.lora_A.weight": (8, 9999)}
    model = MODEL | {"num_hidden_layers": 30}
    found = factors("29.self_attn.k_proj", 576, 192) | factors("0.mlp.down_proj", 1536, 576) | head
    plan.check_adapter(found, model, "gs://a/adapter")
    plan.check_adapter(factors("99.self_attn.k_proj", 1, 1), {"model_type": "other"}, "gs://a/adapter")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (factors("0.self_attn.q_proj", 64, 576), "layers.0.self_attn.q_proj.lora_A.weight is 64 wide"),
        (factors("0.self_attn.k_proj", 576, 576), "layers.0.self_attn.k_proj.lora_B.weight is 576 wide"),
        (factors("30.self_attn.k_proj", 576, 192), "it adapts layer 30, and this model has 30"),
    ],
    ids=["another width", "other heads", "more layers"],
)
def test_an_adapter_of_another_base_is_refused_with_the_tensor_that_tells(
    found: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(errors.ConfigError, match=re.escape(words)) as refused:
        plan.check_adapter(found, MODEL | {"num_hidden_layers": 30}, "gs://a/adapter")
    assert "The adapter gs://a/adapter belongs to another base" in refused.value.message
