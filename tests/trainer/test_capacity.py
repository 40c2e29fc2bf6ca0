"""Whether a step fits a slice, as prepare finds out: by arithmetic, and by the TPU's own compiler, without a TPU."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import aot, capacity, errors, prepare
from lora_dpo_trainer.packing import PairLengths

SLICE = "v5e:2x4"
BFLOAT16 = "p=f32,c=bfloat16"


def a_model(folder: Path, **sizes: int) -> str:
    """A Llama's `config.json`; nothing here reads weights."""
    shape = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32_000,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(shape | sizes))
    return str(folder)


def pairs(count: int, side: int) -> PairLengths:
    """Pairs with two sides of this length that share nothing."""
    sides = np.full((count, 2), side)
    return PairLengths.make(sides, np.zeros(count, np.int64), sides)


def why_not(make_config: Callable[..., TrainerConfig], model: str, lengths: PairLengths, slices: int = 1) -> str | None:
    trainer = {"train_batch_size": 8 * slices, "num_train_steps": 1, "mp": BFLOAT16}
    config = make_config(initialize_from_hf=model, trainer=trainer, train_seq_len=131_072)
    return capacity.why_not(config, lengths, 1, SLICE, slices)


def test_a_step_that_fits_needs_no_compiler(
    make_config: Callable[..., TrainerConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "compile_traced", lambda traced: pytest.fail("compiled"))
    assert why_not(make_config, a_model(tmp_path), pairs(16, 512), slices=2) is None


def test_a_model_whose_weights_alone_are_too_large_is_refused_with_the_sizes(
    make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    model = a_model(tmp_path, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64)
    found = why_not(make_config, model, pairs(8, 512))
    assert found is not None
    assert "too large for the slice (v5e 2x4, 8 chips)" in found
    assert "of which 15.8 GiB can be used" in found


def test_where_the_estimate_says_no_the_compiler_decides(
    make_config: Callable[..., TrainerConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model(tmp_path)
    found = why_not(make_config, model, pairs(8, 131_072))
    assert found is not None
    assert "does not fit the slice (v5e 2x4, 8 chips), not even a pair at a time on each chip" in found
    assert re.search(r"would need [\d.]+G of 15\.75G bytes of each", found)
    monkeypatch.setattr(aot, "compile_traced", lambda traced: None)  # as where it takes the program
    assert why_not(make_config, model, pairs(8, 131_072)) is None


@pytest.fixture
def on_a_slice(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of prepare for a TPU slice."""
    environment.setenv("LORADPO_TPU", SLICE)
    return environment


@pytest.mark.usefixtures("on_a_slice")
def test_prepare_asks_in_a_process_of_its_own(make_config: Callable[..., TrainerConfig]) -> None:
    assert prepare.run(make_config()).reason == "Prepared"


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        ({"why_not": "It is too large."}, 0, ""),
        ({"unknown": "libtpu knows no topology"}, 0, "could not be told: libtpu knows no topology"),
        ({}, 137, "could not be told: exit code 137"),
    ],
)
def test_only_an_answer_refuses_a_job(
    make_config: Callable[..., TrainerConfig],
    on_a_slice: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    answer: dict[str, Any],
    code: int,
    told: str,
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\nexit {code}\n")
    program.chmod(0o755)
    on_a_slice.setattr("sys.executable", str(program))
    caplog.set_level(logging.WARNING)
    if told:
        capacity.check(make_config(), "digest", 1)
        assert told in caplog.text
    else:
        with pytest.raises(errors.OutOfDeviceMemory, match=r"It is too large\."):
            capacity.check(make_config(), "digest", 1)


def test_a_job_without_a_slice_is_not_asked_about(
    make_config: Callable[..., TrainerConfig], environment: pytest.MonkeyPatch
) -> None:
    environment.setattr("sys.executable", "/nowhere")
    capacity.check(make_config(), "digest", 1)
