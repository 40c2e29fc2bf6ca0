"""Training goes on from adapters that PEFT wrote, and compares with them, as PEFT and torch compute it."""

import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / ".venv" / "trainer" / "bin" / "python"
CASE = ROOT / "tests" / "data" / "parity" / "llama-r8"
PAIRS = 4
BETA = 0.1

pytestmark = [
    # PEFT reads a property that transformers renames.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

ADAPTERS: dict[str, dict[str, Any]] = {
    "whole": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    # The head, which PEFT saves with its frozen weights; single layers; a rank of its own; another scaling.
    "patterned": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj", "lm_head"],
        "layers_to_transform": [1, 2],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"up_proj": 10},
    },
}
RUNS = {"same": ("patterned", "patterned"), "start-only": ("whole", None)}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run of one step left behind, and the adapters that it was given."""

    folder: Path
    start: Path | None
    reference: Path | None

    @property
    def first(self) -> dict[str, float]:
        line = (self.folder / "out" / "metrics.jsonl").read_text().splitlines()[0]
        found: dict[str, float] = json.loads(line)
        return found

    @property
    def advice(self) -> dict[str, str]:
        report = json.loads((self.folder / "prepare.json").read_text())
        return {item["code"]: item["message"] for item in report["advice"]}


def base_model() -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(CASE / "base", dtype=torch.float32)


def write_adapter(folder: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(len(settings))
    model = peft.get_peft_model(base_model(), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    for name, settings in ADAPTERS.items():
        write_adapter(root / name, settings)
    rows = (CASE / "prefs.jsonl").read_text().splitlines()[:PAIRS]
    (root / "rows.jsonl").write_text("\n".join(rows) + "\n")
    found = {}
    for name, (start, reference) in RUNS.items():
        run = Run(root / name, *(root / adapter if adapter else None for adapter in (start, reference)))
        run.folder.mkdir()
        source = {"type": "url", "train_urls": [str(root / "rows.jsonl")]}
        config = {
            "data": {"components": {"prefs": {"source": source}}, "shuffle": False},
            "initialize_from_hf": str(CASE / "base"),
            "train_seq_len": 128,
            "trainer": {"train_batch_size": PAIRS, "num_train_steps": 1, "mp": "p=f32,c=f32"},
            "optimizer": {"learning_rate": 1e-6, "warmup": 0},
            "lora": {"r": 8},
            "beta": BETA,
            "output": {"path": str(run.folder / "out")},
            "cache": {"path": str(root / "cache")},
            "adapter": {"init_from": f"{run.start}/"} if run.start else {},
            "reference": {"adapter": str(run.reference)} if run.reference else {},
        }
        (run.folder / "config.yaml").write_text(json.dumps(config))
        found[name] = run
        for phase in ("prepare", "train"):
            words = ["-m", "lora_dpo_trainer", "--config_path", str(run.folder / "config.yaml"), "--phase", phase]
            environment = {
                "JAX_PLATFORMS": "cpu",
                "LORADPO_PROGRESS_PORT": "0",
                "LORADPO_TERMINATION_LOG": str(run.folder / f"{phase}.json"),
                "PATH": os.environ["PATH"],
            }
            subprocess.run([str(TRAINER), *words], check=True, env=environment)
    return found


def logprobs(adapter: Path | None) -> np.ndarray:
    """[pairs, 2] of transformers and PEFT."""
    model = base_model() if adapter is None else peft.PeftModel.from_pretrained(base_model(), adapter)
    model.eval()
    rows = json.loads((CASE / "tokens.json").read_text())[:PAIRS]
    return np.array([[answer_logprob(model, row[side]) for side in ("chosen", "rejected")] for row in rows])


def answer_logprob(model: torch.nn.Module, side: dict[str, list[int]]) -> float:
    ids = torch.tensor([side["input_ids"]])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
    picked = logp.gather(1, ids[0, 1:, None])[:, 0]
    return float(picked[torch.tensor(side["loss_mask"][1:], dtype=torch.bool)].sum())


@pytest.mark.parametrize("name", list(RUNS))
def test_the_first_step_is_that_of_the_two_adapters(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    policy, reference = logprobs(run.start), logprobs(run.reference)
    rewards = BETA * (policy - reference)
    losses = np.log1p(np.exp(-(rewards[:, 0] - rewards[:, 1])))
    expected = {
        "dpo_loss": losses.mean(),
        "dpo_margin_policy": (policy[:, 0] - policy[:, 1]).mean(),
        "dpo_margin_ref": (reference[:, 0] - reference[:, 1]).mean(),
        "dpo_chosen_reward": rewards[:, 0].mean(),
        "dpo_rejected_reward": rewards[:, 1].mean(),
        "logps/chosen": policy[:, 0].mean(),
    }
    found = {quantity: run.first[quantity] for quantity in expected}
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_an_sft_adapter_as_start_and_as_reference_starts_at_ln_2(runs: dict[str, Run]) -> None:
    assert runs["same"].first["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "StartIsNotReference" not in runs["same"].advice


def test_any_other_start_is_said_and_does_not_fail(runs: dict[str, Run]) -> None:
    assert abs(runs["start-only"].first["dpo_loss"] - math.log(2)) > 1e-3
    assert "the first loss is not ln 2" in runs["start-only"].advice["StartIsNotReference"]


@pytest.mark.parametrize("name", list(RUNS))
def test_the_adapter_keeps_its_layers_and_scales_whatever_the_configuration_says(
    runs: dict[str, Run], name: str
) -> None:
    run = runs[name]
    assert run.start is not None
    assert "lora.r 4 (not 8)" in run.advice["AdapterShapeKept"]
    before = load_file(run.start / "adapter_model.safetensors")
    after = load_file(run.folder / "out" / "adapter" / "adapter_model.safetensors")
    assert set(after) == {tensor for tensor in before if "lora_" in tensor}
    # One step of 1e-6 has hardly moved it.
    np.testing.assert_allclose(logprobs(run.folder / "out" / "adapter"), logprobs(run.start), atol=0.01)
