"""Levanter's configuration of each supported model, with all that its `config.json` says.

Levanter's own readers drop what decides about the numbers: head sizes, biases, sliding windows, the scale of queries,
soft caps, a second rotary embedding. Here the attention is described in full, and Levanter's models are built around
it; most of them are its Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from haliax import Axis
from levanter.layers.normalization import LayerNormConfigBase, RmsNormConfig
from levanter.layers.rotary import RotaryEmbeddingsConfig
from levanter.models.gemma import Gemma2Config, GemmaNormConfig
from levanter.models.llama import LlamaConfig
from levanter.models.olmo import Olmo2Config
from levanter.utils.activation import ActivationFunctionEnum

from lora_dpo_trainer import remat
from lora_dpo_trainer.attention import PairAttentionConfig

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Llama(LlamaConfig):  # type: ignore[misc]
    """Llama, Mistral, Qwen 2 and Qwen 3; `use_bias` is the MLP's."""

    attention: PairAttentionConfig | None = None

    def attention_config(self) -> PairAttentionConfig | None:
        """What `config.json` says, instead of what Levanter derives."""
        return self.attention

    @property
    def norm_config(self) -> LayerNormConfigBase:
        """No norm of these models has a bias."""
        return RmsNormConfig(use_weight=True, use_bias=False, eps=self.layer_norm_epsilon)


@dataclass(frozen=True)
class Gemma(Gemma2Config):  # type: ignore[misc]
    """Gemma 2, and the text models of Gemma 3."""

    attention: PairAttentionConfig | None = None

    def attention_config(self) -> PairAttentionConfig | None:
        """What `config.json` says, instead of what Levanter derives."""
        return self.attention


@dataclass(frozen=True)
class Olmo2(Olmo2Config):  # type: ignore[misc]
    """OLMo 2."""

    attention: PairAttentionConfig | None = None

    def attention_config(self) -> PairAttentionConfig | None:
        """What `config.json` says, instead of what Levanter derives."""
        return self.attention


def levanter_config(hf: Any) -> Llama | Gemma | Olmo2:
    """Levanter's configuration of a model.

    Args:
        hf: Its configuration as `transformers` reads it; `supported.check` has passed.

    Its layers keep everything for the backward pass, until `remat.apply` decides otherwise.
    """
    values: dict[str, Any] = {
        "max_seq_len": hf.max_position_embeddings,
        "hidden_dim": hf.hidden_size,
        "intermediate_dim": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_key_value_heads,
        "layer_norm_epsilon": hf.rms_norm_eps,
        "tie_word_embeddings": hf.tie_word_embeddings,
        "gradient_checkpointing": remat.Remat.NONE.policy,
    }
    norm: LayerNormConfigBase = RmsNormConfig(use_weight=True, use_bias=False, eps=hf.rms_norm_eps)
    match hf.model_type:
        case "llama":
            return Llama(**values, use_bias=hf.mlp_bias, attention=_attention(hf, bias=hf.attention_bias))
        case "mistral":
            windows = (hf.sliding_window,) * hf.num_hidden_layers
            return Llama(**values, attention=_attention(hf, windows=windows))
        case "qwen2":
            return Llama(**values, attention=_attention(hf, bias=True, output_bias=False))
        case "qwen3":
            return Llama(**values, attention=_attention(hf, bias=hf.attention_bias, qk_norm=norm))
        case "olmo2":
            return Olmo2(**values, attention=_attention(hf, bias=hf.attention_bias, qk_norm=norm))
        case kind:
            gemma_norm = GemmaNormConfig(use_weight=True, use_bias=False, eps=hf.rms_norm_eps)
            attention = _attention(
                hf,
                bias=hf.attention_bias,
                qk_norm=gemma_norm if kind == "gemma3_text" else None,
                scaling_factor=hf.query_pre_attn_scalar**-0.5,
                logits_soft_cap=hf.attn_logit_softcapping,
            )
            return Gemma(
                **values,
                activation_function=ActivationFunctionEnum.gelu_new,
                final_logit_softcapping=hf.final_logit_softcapping,
                attention=attention,
            )


def _attention(
    hf: Any,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    windows: tuple[int | None, ...] | None = None,
    **more: Any,
) -> PairAttentionConfig:
    kinds = getattr(hf, "layer_types", None) or [FULL] * hf.num_hidden_layers
    if windows is None:
        windows = tuple(hf.sliding_window if kind == SLIDING else None for kind in kinds)
    ropes = tuple(_rope(hf.rope_parameters.get(kind, hf.rope_parameters)) for kind in kinds)
    return PairAttentionConfig(
        Embed=Axis("embed", hf.hidden_size),
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        use_bias=bias,
        use_output_bias=output_bias,
        rope=ropes[0],
        windows=windows,
        ropes=ropes,
        **more,
    )


def _rope(parameters: dict[str, Any]) -> RotaryEmbeddingsConfig:
    return RotaryEmbeddingsConfig.from_hf_config(float(parameters["rope_theta"]), parameters)
