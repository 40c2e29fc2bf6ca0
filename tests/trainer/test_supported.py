from typing import Any

import pytest

from lora_dpo_trainer import errors, supported

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu"}
GEMMA: dict[str, Any] = {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}


@pytest.mark.parametrize(
    "model",
    [
        LLAMA,
        LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        LLAMA | {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        GEMMA | {"rope_parameters": {"full_attention": {"rope_type": "linear"}, "sliding_attention": {}}},
        GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "gemma2", "hidden_activation": None},
    ],
)
def test_what_is_computed_exactly_is_accepted(model: dict[str, Any]) -> None:
    supported.check(model, "org/model")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"model_type": "gpt2"}, "is of type gpt2"),
        ({}, "is of type None"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "is quantized"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act: gelu"),
        (LLAMA | {"rope_scaling": {"type": "dynamic"}}, "rope_type: dynamic"),
        (LLAMA | {"rope_parameters": {"rope_type": "yarn"}}, "rope_type: yarn"),
        (LLAMA | {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: 0\.5"),
        (LLAMA | {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types: chunked_attention"),
        (GEMMA | {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type: yarn"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
    ],
)
def test_what_is_not_is_refused_by_name(model: dict[str, Any], problem: str) -> None:
    with pytest.raises(errors.ModelNotFound, match=f"org/model .*{problem}") as caught:
        supported.check(model, "org/model")
    assert caught.value.hint
