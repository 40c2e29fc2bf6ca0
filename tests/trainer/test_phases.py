"""The three phases as the operator runs them: subprocesses, exit codes, files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_dpo_api import yaml12
from lora_dpo_api.protocol import TerminationReport
from lora_dpo_trainer import metrics

GUIDE_METRICS = (
    "dpo_loss",
    "dpo_margin_policy",
    "dpo_margin_ref",
    "dpo_accuracy",
    "dpo_chosen_reward",
    "dpo_rejected_reward",
)


TRL_METRICS = {
    "dpo_chosen_reward": "rewards/chosen",
    "dpo_rejected_reward": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "dpo_accuracy": "rewards/accuracies",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration file, and how to run phases of it."""

    folder: Path
    values: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def output(self) -> Path:
        return Path(self.values["output"]["path"])

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lora_dpo_trainer", "--config_path", str(self.config), *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )

    def phase(self, name: str, *words: str) -> TerminationReport:
        """Run a phase that must succeed."""
        done = self.run("--phase", name, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.report()

    def report(self) -> TerminationReport:
        return TerminationReport.model_validate_json((self.folder / "termination").read_text())

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "metrics.jsonl").read_text().splitlines()]

    def adapter(self) -> dict[str, np.ndarray]:
        return load_file(self.output / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_job(tmp_path: Path, base_model: Path, preference_file: Path, shared_cache: Path) -> Callable[..., Job]:
    def make(name: str = "job", **changes: Any) -> Job:
        folder = tmp_path / name
        folder.mkdir()
        values: dict[str, Any] = {
            "data": {"components": {"prefs": {"source": {"type": "url", "train_urls": [str(preference_file)]}}}},
            "initialize_from_hf": str(base_model),
            "train_seq_len": 128,
            "trainer": {"train_batch_size": 8, "num_train_steps": 6, "mp": "p=f32,c=f32", "seed": 3},
            "optimizer": {"learning_rate": 1e-3, "warmup": 0},
            "lora": {"r": 8},
            "eval": {"every_steps": 4},
            "validation_split_fraction": 0.1,
            "output": {"path": str(folder / "out")},
            "cache": {"path": str(shared_cache)},
        }
        values |= changes
        (folder / "config.yaml").write_text(yaml12.dumps(values))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LORADPO_")}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "LORADPO_PROGRESS_PORT": "0",
            "LORADPO_TERMINATION_LOG": str(folder / "termination"),
            "LORADPO_RETRY_SECONDS": "1",
        }
        return Job(folder, values, environment)

    return make


@pytest.mark.slow
def test_a_run_starts_at_ln_2_and_ends_with_a_verified_adapter(
    make_job: Callable[..., Job], preference_file: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = [json.loads(line) for line in preference_file.read_text().splitlines()]
    source = {
        "type": "url",
        "train_urls": [str(write_jsonl(rows[:8], "train.jsonl"))],
        "validation_urls": [str(write_jsonl(rows[8:20], "validation.jsonl"))],
    }
    job = make_job(data={"components": {"prefs": {"source": source}}}, validation_split_fraction=0.0)
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr

    steps = [line for line in job.history() if "dpo_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["dpo_loss"] == pytest.approx(math.log(2), abs=5e-4)
    assert steps[-1]["dpo_loss"] < steps[0]["dpo_loss"]
    assert all(set(GUIDE_METRICS) <= set(line) for line in steps)
    evaluations = [line for line in job.history() if "eval_dpo_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 6]
    for line in (*steps, *evaluations):
        prefix = "eval_" if "eval_dpo_loss" in line else ""
        for ours, theirs in TRL_METRICS.items():
            assert line[prefix + theirs] == line[prefix + ours]
        rewards = line[f"{prefix}dpo_chosen_reward"] + line[f"{prefix}dpo_rejected_reward"]
        assert line[f"{prefix}kl"] == pytest.approx(-rewards / 0.2)
        assert line[f"{prefix}logps/chosen"] < 0 > line[f"{prefix}logps/rejected"]
    for line in steps[1:]:
        assert line["reward_margin_p10"] <= line["reward_margin_p50"] <= line["reward_margin_p90"]
        assert line["reward_margin_p10"] < line["reward_margin"] < line["reward_margin_p90"]
        assert 0 <= line["pad_fraction"] < 1
        assert min(line[name] for name in ("tokens_per_second", "pairs_per_second", "step_seconds")) > 0
        assert line["memory_rss_bytes"] > 2**20
        assert "mfu" not in line  # of a CPU no peak is known
    assert {name for line in job.history() for name in line} - {"step"} <= set(metrics.HELP)
    assert "\r" not in done.stdout  # a bar is for terminals
    assert "step 6/6" in done.stdout

    exported = json.loads((job.output / "export.json").read_text())
    assert exported["largest_difference"] <= exported["allowed_difference"] < exported["adapter_effect"]
    assert (job.output / "adapter" / "adapter_config.json").exists()
    assert (job.output / "adapter" / "tokenizer.json").exists()
    assert job.report().reason == "Exported"


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_76_and_keeps_its_last_good_checkpoint(make_job: Callable[..., Job]) -> None:
    job = make_job(optimizer={"learning_rate": 1e30, "warmup": 0}, validation_split_fraction=0.0)
    often = ("--output.checkpoint.every_seconds", "1e-9")
    job.phase("prepare", *often)
    done = job.run("--phase", "train", *often)
    assert done.returncode == 76, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    report = job.report()
    assert report.reason == "NonFinite"
    assert re.fullmatch(r"dpo_loss.* not finite at step 2\.", report.message)
    assert "Lower optimizer.learning_rate" in (report.hint or "")
    (kept,) = (job.output / "checkpoints").iterdir()
    assert (kept.name, (kept / "manifest.json").exists()) == ("step-00000001", True)
    (stored,) = kept.glob("state-*.safetensors")
    state = load_file(stored)
    assert all(np.isfinite(array).all() for name, array in state.items() if array.dtype.kind == "f")
    assert not (job.output / "adapter").exists()
    assert [line["dpo_loss"] for line in job.history()] == [pytest.approx(math.log(2), abs=5e-4), None]


def test_a_wrong_configuration_ends_with_64_without_importing_jax(make_job: Callable[..., Job]) -> None:
    job = make_job(beta="high")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *job.command()[1:]],
        env=job.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert time.monotonic() - began < 10
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "lora_dpo_trainer.settings" in imported
    assert imported.isdisjoint({"jax", "levanter", "haliax", "transformers"})
    assert "Traceback" not in done.stdout + done.stderr
    report = job.report()
    assert (report.exit_code, report.reason) == (64, "ConfigError")
    assert "beta" in report.message


def test_an_impossible_rank_ends_with_64(make_job: Callable[..., Job]) -> None:
    done = make_job(lora={"r": 64}).run("--phase", "prepare")
    assert done.returncode == 64
    assert "lora.r is 64, above the smallest dimension of k_proj (64 x 32)" in done.stdout


def test_bad_rows_end_with_65_and_their_line(make_job: Callable[..., Job], write_jsonl: Callable[..., Path]) -> None:
    rows = write_jsonl([{"chosen": [{"role": "user", "content": "a"}]}, {"chosen": 3, "rejected": 4}], "bad.jsonl")
    job = make_job(data={"components": {"prefs": {"source": {"type": "url", "train_urls": [str(rows)]}}}})
    done = job.run("--phase", "prepare")
    assert done.returncode == 65
    report = job.report()
    assert report.reason == "InvalidRow"
    assert "2 of 2 rows" in report.message
    assert "bad.jsonl:1" in report.message
    assert "bad.jsonl:2" in report.message
    assert not (job.output / "run.json").exists()


def test_missing_data_ends_with_65(make_job: Callable[..., Job], tmp_path: Path) -> None:
    url = str(tmp_path / "nothing-*.jsonl")
    job = make_job(data={"components": {"prefs": {"source": {"type": "url", "train_urls": [url]}}}})
    assert job.run("--phase", "prepare").returncode == 65
    assert job.report().reason == "DataNotFound"


def test_a_missing_model_ends_with_64(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(initialize_from_hf=str(tmp_path / "nothing"))
    assert job.run("--phase", "prepare").returncode == 64
    assert job.report().reason == "ModelNotFound"


def test_training_without_prepared_rows_ends_with_65(make_job: Callable[..., Job]) -> None:
    job = make_job()
    assert job.run("--phase", "train").returncode == 65
    assert "Run the prepare phase first" in (job.report().hint or "")


def test_another_run_in_the_same_output_ends_with_73(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.phase("prepare")
    assert job.run("--phase", "prepare", "--beta", "0.2").returncode == 73
    assert "beta is 0.2 here and 0.1 there" in job.report().message


def test_a_trainer_without_its_tpu_ends_with_78(make_job: Callable[..., Job]) -> None:
    job = make_job()
    job.phase("prepare")
    on_tpu = dataclasses.replace(job, environment={**job.environment, "LORADPO_PLATFORM": "tpu"})
    assert on_tpu.run("--phase", "train").returncode == 78
    assert "needs tpu devices, but JAX finds cpu" in on_tpu.report().message


def test_prepare_reports_what_it_found_and_repeats_nothing(make_job: Callable[..., Job]) -> None:
    job = make_job()
    first = job.phase("prepare")
    again = job.run("--phase", "prepare")
    assert first.prepared is not None
    assert first.prepared == job.report().prepared
    assert first.prepared.train_pairs + first.prepared.validation_pairs + first.prepared.dropped_pairs == 96
    assert first.prepared.total_steps == 6
    assert "prepared already" in again.stdout
