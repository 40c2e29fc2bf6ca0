"""Writes the model of `helm test`: `.venv/trainer/bin/python scripts/trial_model.py` (`--check` only compares).

A Llama of 11,000 random weights, which speaks the chat format and the made-up words of the recorded parity runs. It is
small enough for a ConfigMap, so that a trial needs neither hub nor bucket.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "helm" / "lora-dpo-operator" / "files" / "trial"
RECORDED = ROOT / "tests" / "data" / "parity" / "llama-r8"
PAIRS = 24
HIDDEN, INNER, HEADS, KEY_HEADS, HEAD, LAYERS = 16, 32, 2, 1, 8, 2


def config() -> dict[str, object]:
    """config.json: the recorded model's, made smaller."""
    recorded = json.loads((RECORDED / "base" / "config.json").read_text())
    return recorded | {
        "dtype": "bfloat16",
        "head_dim": HEAD,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "tie_word_embeddings": True,
    }


def weights() -> dict[str, np.ndarray]:
    """The same random numbers every time."""
    random = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KEY_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KEY_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    made = {"model.embed_tokens": random.normal(size=(config()["vocab_size"], HIDDEN)), "model.norm": np.ones(HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            made[f"model.layers.{layer}.{name}"] = random.normal(size=shape) * shape[1] ** -0.5
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{layer}.{name}"] = np.ones(HIDDEN)
    return {f"{name}.weight": value.astype(ml_dtypes.bfloat16) for name, value in sorted(made.items())}


def generated() -> dict[str, bytes]:
    """Every file and what it must hold."""
    copied = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
    pairs = (RECORDED / "prefs.jsonl").read_bytes().splitlines(keepends=True)[:PAIRS]
    return {
        "config.json": (json.dumps(config(), indent=2) + "\n").encode(),
        "model.safetensors": safetensors.numpy.save(weights(), {"format": "pt"}),
        "pairs.jsonl": b"".join(pairs),
        **{name: (RECORDED / "base" / name).read_bytes() for name in copied},
    }


def main(argv: list[str]) -> int:
    """Write the files; with `--check`, 1 where one of them is not as it must be."""
    files = {FOLDER / name: content for name, content in generated().items()}
    stale = [file for file, content in files.items() if not file.is_file() or file.read_bytes() != content]
    for file in stale:
        if argv == ["--check"]:
            print(f"{file.relative_to(ROOT)} is out of date; run scripts/trial_model.py", file=sys.stderr)
        else:
            file.write_bytes(files[file])
    return 1 if stale and argv == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
