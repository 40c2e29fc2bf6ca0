"""Turns a GGUF file of the llama architecture into a Hugging Face checkpoint, without torch.

A GGUF file holds everything a checkpoint needs: the weights (quantised), the shape of the model, the tokens with
their merges, and the chat template. Weights are dequantised to float32 and stored as bfloat16, the precision in which
SmolLM2 was published: half the bytes to move, and far finer than the 4-bit file they come from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
import tokenizers

CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of a special token (gguf.TokenType.CONTROL)."""


class UnsupportedGgufError(ValueError):
    """The file is not of the kind that this module reads; the message names the field and its value."""


@dataclasses.dataclass(frozen=True)
class LlamaShape:
    """What `config.json` says about a llama model; sizes in elements."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_theta: float
    rms_norm_eps: float


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer as GGUF stores it; ids are positions in `tokens`."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    special: tuple[str, ...]
    bos: str
    eos: str
    unknown: str
    padding: str


def convert(source: Path, target: Path, *, chat_template: str) -> None:
    """Write a Hugging Face checkpoint of a GGUF file into a folder.

    Args:
        source: the GGUF file; architecture llama, tied embeddings, GPT-2 byte-level BPE with SmolLM's pre-tokenizer.
        target: an existing folder; its files of the same names are replaced.
        chat_template: Jinja source for `tokenizer_config.json`, which takes the place of the file's own.

    Raises:
        UnsupportedGgufError: another architecture or another tokenizer.
    """
    reader = gguf.GGUFReader(source)
    shape = read_shape(reader)
    vocabulary = read_vocabulary(reader)
    build_tokenizer(vocabulary).save(str(target / "tokenizer.json"))
    _write_json(target / "tokenizer_config.json", tokenizer_config(vocabulary, shape.context, chat_template))
    _write_json(target / "config.json", model_config(shape, vocabulary))
    _write_json(target / "generation_config.json", generation_config(vocabulary))
    weights = {name: to_bfloat16(values) for name, values in llama_tensors(reader, shape)}
    # numpy has no bfloat16, hence not safetensors.numpy; the specs point into the arrays of `weights`.
    specs = {
        name: safetensors.TensorSpec(
            dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes
        )
        for name, bits in weights.items()
    }
    safetensors.serialize_file(specs, target / "model.safetensors", {"format": "pt"})


def read_shape(reader: gguf.GGUFReader) -> LlamaShape:
    """Read the model's sizes from the metadata."""
    _expect(reader, "general.architecture", "llama")
    return LlamaShape(
        layers=_field(reader, "llama.block_count"),
        hidden=_field(reader, "llama.embedding_length"),
        intermediate=_field(reader, "llama.feed_forward_length"),
        heads=_field(reader, "llama.attention.head_count"),
        kv_heads=_field(reader, "llama.attention.head_count_kv"),
        vocabulary=_field(reader, "llama.vocab_size"),
        context=_field(reader, "llama.context_length"),
        rope_theta=float(_field(reader, "llama.rope.freq_base")),
        # Stored as float32: 9.999999747e-06 was written as 1e-05.
        rms_norm_eps=float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
    )


def read_vocabulary(reader: gguf.GGUFReader) -> Vocabulary:
    """Read the tokenizer from the metadata."""
    _expect(reader, "tokenizer.ggml.model", "gpt2")
    _expect(reader, "tokenizer.ggml.pre", "smollm")
    tokens = tuple(_field(reader, "tokenizer.ggml.tokens"))
    types = _field(reader, "tokenizer.ggml.token_type")
    merges = (merge.split(" ") for merge in _field(reader, "tokenizer.ggml.merges"))
    return Vocabulary(
        tokens=tokens,
        merges=tuple((left, right) for left, right in merges),
        special=tuple(token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN),
        bos=tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        eos=tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        unknown=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        padding=tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
    )


def build_tokenizer(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Build SmolLM's tokenizer: every digit a token of its own, then GPT-2's byte-level BPE."""
    model = tokenizers.models.BPE(
        vocab={token: index for index, token in enumerate(vocabulary.tokens)}, merges=list(vocabulary.merges)
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in vocabulary.special]
    )
    return tokenizer


def llama_tensors(reader: gguf.GGUFReader, shape: LlamaShape) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each weight in float32 under its Hugging Face name; matrices are (out, in)."""
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("attn_q.weight"):
            values = unpermute(values, shape.heads)
        elif tensor.name.endswith("attn_k.weight"):
            values = unpermute(values, shape.kv_heads)
        yield hugging_face_name(tensor.name), values


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's reordering of the rows of a query or key projection.

    llama.cpp rotates neighbouring pairs of rows (0, 1), (2, 3), …; Hugging Face rotates row i with row i + half a
    head. Its converter (`LlamaModel.permute` in convert_hf_to_gguf.py) interleaves the two halves of each head.

    Args:
        weight: (heads * head size, in).
        heads: how many heads the rows belong to.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hugging_face_name(name: str) -> str:
    """Translate a tensor's name: `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        UnsupportedGgufError: no llama layer has such a tensor.
    """
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _NAMES:
            return f"model.layers.{layer}.{_NAMES[part]}.weight"
        case [part, "weight"] if part in _NAMES:
            return f"{_NAMES[part]}.weight"
    raise UnsupportedGgufError(f"tensor {name!r} has no place in a llama model with tied embeddings")


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 values to bfloat16 (to nearest, ties to even); returns their bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def model_config(shape: LlamaShape, vocabulary: Vocabulary) -> dict[str, Any]:
    """Content of `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.tokens.index(vocabulary.bos),
        "eos_token_id": vocabulary.tokens.index(vocabulary.eos),
        "pad_token_id": vocabulary.tokens.index(vocabulary.padding),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """Content of `generation_config.json`."""
    return {
        "bos_token_id": vocabulary.tokens.index(vocabulary.bos),
        "eos_token_id": vocabulary.tokens.index(vocabulary.eos),
        "pad_token_id": vocabulary.tokens.index(vocabulary.padding),
    }


def tokenizer_config(vocabulary: Vocabulary, context: int, chat_template: str) -> dict[str, Any]:
    """Content of `tokenizer_config.json`."""
    return {
        # Not GPT2Tokenizer: that class brings its own pre-tokenizer and would lose the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "pad_token": vocabulary.padding,
        "unk_token": vocabulary.unknown,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def _expect(reader: gguf.GGUFReader, key: str, wanted: str) -> None:
    found = _field(reader, key)
    if found != wanted:
        raise UnsupportedGgufError(f"GGUF field {key} is {found!r}; only {wanted!r} can be converted")


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UnsupportedGgufError(f"the GGUF file has no field {key}")
    return field.contents()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
