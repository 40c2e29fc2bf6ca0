"""A GGUF file becomes a checkpoint that Hugging Face's own classes load, with the same weights and the same tokens."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

import gguf_checkpoint
import smollm2

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h i", "Ġ hi"]
TOKENS = [*SPECIAL, *BYTES, "hi", "Ġhi"]


@pytest.fixture(scope="module")
def source() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16).float().eval()


@pytest.fixture(scope="module")
def checkpoint(source: transformers.LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(source, folder / "model.gguf")
    target = folder / "checkpoint"
    target.mkdir()
    gguf_checkpoint.convert(folder / "model.gguf", target, chat_template=smollm2.CHAT_TEMPLATE)
    return target


def write_gguf(model: transformers.LlamaForCausalLM, path: Path, architecture: str = "llama") -> None:
    """As llama.cpp's converter writes it: rows of queries and keys interleaved head by head."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    names = {theirs: ours for ours, theirs in gguf_checkpoint._NAMES.items()}
    for name, value in model.model.state_dict().items():
        parts = f"model.{name}".removesuffix(".weight")
        weight = value.numpy().astype(np.float32)
        if ".layers." in parts:
            _, _, layer, part = parts.split(".", 3)
            ours = names[part]
            if ours in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                rows, columns = weight.shape
                weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight)
        else:
            writer.add_tensor(f"{names[parts]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_checkpoint_predicts_what_the_source_predicts(
    source: transformers.LlamaForCausalLM, checkpoint: Path
) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 5, 80, 40, 260, 7, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, source(ids).logits, rtol=0, atol=1e-5)


def test_the_tokenizer_splits_digits_and_gives_every_text_back(checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi hi 42").input_ids) == ["hi", "Ġhi", "Ġ", "4", "2"]
    text = "hi <|im_end|>\n  été 日本 1234"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_end|>").input_ids == [2]


def test_the_template_marks_the_answer_and_its_end(checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    chat = [{"role": "user", "content": "42"}, {"role": "assistant", "content": "hi"}]
    encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.convert_ids_to_tokens(marked) == ["hi", "<|im_end|>"]


def test_the_prompt_is_the_beginning_of_the_conversation(checkpoint: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    user, assistant = {"role": "user", "content": "42"}, {"role": "assistant", "content": "hi"}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template([user, assistant], tokenize=False).startswith(prompt + "hi<|im_end|>")


def test_another_architecture_is_refused_by_name(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf", architecture="gemma")
    with pytest.raises(gguf_checkpoint.UnsupportedGgufError, match=r"general\.architecture is 'gemma'"):
        gguf_checkpoint.convert(tmp_path / "model.gguf", tmp_path, chat_template="")


def test_rounding_to_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    ours = torch.from_numpy(gguf_checkpoint.to_bfloat16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).to(torch.bfloat16))
