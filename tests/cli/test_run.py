"""`ldj run`: a whole job as processes of this machine, with the real trainer."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ldj import run
from lora_dpo_api import yaml12
from lora_dpo_api.protocol import Metrics, Phase, ProgressReport, TerminationReport, TrainerState

from . import jobs
from .conftest import Ldj

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "parity" / "llama-r8"
TRAINER = ROOT / ".venv" / "trainer" / "bin" / "python"
STEPS = 60


def manifest(folder: Path) -> dict[str, Any]:
    """A job whose paths are this machine's: on a cluster, a claim is mounted there."""
    shutil.copytree(MODEL / "base", folder / "base", dirs_exist_ok=True)
    shutil.copy(MODEL / "prefs.jsonl", folder)
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": "work"}}
    mount = {"name": "work", "mountPath": str(folder)}
    spec = {
        "initializeFromHf": f"{folder}/base",
        "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": [f"{folder}/prefs.jsonl"]}}}},
        "trainSeqLen": 128,
        "validationSplitFraction": 0.1,
        "trainer": {"numTrainSteps": STEPS, "trainBatchSize": 4},
        "lora": {"r": 8},
        "output": {"path": f"{folder}/out"},
        "cpu": {},
        "podTemplate": {"volumes": [volume], "volumeMounts": [mount]},
    }
    head = {"apiVersion": "training.loradpo.dev/v1alpha1", "kind": "LoraDpoJob", "metadata": {"name": "tiny"}}
    return head | {"spec": spec}


def start(file: Path) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("ldj")
    # Who starts the tests in the background of a shell has them, and what they start, ignore SIGINT.
    heard = ["env", "--default-signal=INT", program, "run", file]
    return subprocess.Popen(heard, cwd=ROOT, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_and_ends_with_an_adapter(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml12.dumps(manifest(tmp_path)))
    first = start(file)
    assert first.stdout is not None
    heard = ""
    for line in first.stdout:
        heard += line
        if "step 1/" in line or "step 1 of" in line:
            break
    first.send_signal(signal.SIGINT)
    rest, told = first.communicate(timeout=300)
    assert first.returncode == run.INTERRUPTED, heard + rest + told
    assert "saving; Ctrl-C again stops at once" in told
    assert "stopped in train; the same command goes on from there" in told

    second = start(file)
    rest, told = second.communicate(timeout=300)
    assert second.returncode == 0, rest + told
    assert f"peft: {tmp_path}/out/adapter\n" in rest
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    history = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in history if "dpo_loss" in line]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_phase_that_fails_says_why_and_what_to_do(tmp_path: Path) -> None:
    job = manifest(tmp_path)
    job["spec"]["data"]["components"]["prefs"]["source"]["trainUrls"] = [f"{tmp_path}/none-*.jsonl"]
    file = tmp_path / "job.yaml"
    file.write_text(yaml12.dumps(job))
    process = start(file)
    _, told = process.communicate(timeout=300)
    assert process.returncode == run.WRONG
    assert told.splitlines()[-1].startswith("error: prepare failed: ")
    assert "none-*.jsonl" in told
    assert "Traceback" not in told


def test_without_the_trainer_a_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(run.TrainerMissingError, match="`make setup` installs it into"):
        run.interpreter(None, checkout=tmp_path)
    with pytest.raises(run.TrainerMissingError, match="/nowhere/python is no program"):
        run.interpreter(Path("/nowhere/python"))


def test_the_trainer_of_a_checkout_is_found() -> None:
    assert run.interpreter(None, checkout=ROOT) == TRAINER


def test_a_wrong_job_and_two_jobs_start_nothing(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["beta"] = -1
    assert ldj("run", ldj.file(job)).exit_code == run.WRONG
    two = ldj("run", ldj.file(job, job))
    assert (two.exit_code, "must hold one LoraDpoJob, and holds 2" in two.stderr) == (run.UNREADABLE, True)


def test_a_phase_that_left_no_word_is_told_by_its_code() -> None:
    assert (
        run.End(Phase.TRAIN, -9, None).sentence
        == "train was ended by signal 9 and left no word; its last lines are above."
    )
    report = TerminationReport(
        phase=Phase.PREPARE, exit_code=65, reason="InvalidRow", message="Line 3.", hint="Mend it."
    )
    assert run.End(Phase.PREPARE, 65, report).sentence == "prepare failed: InvalidRow: Line 3. Mend it."


def test_the_bar_tells_the_metrics_and_the_time_left() -> None:
    report = ProgressReport(
        run_id="x", state=TrainerState.TRAINING, state_since=jobs.at(0), updated_at=jobs.at(1), step=5, total_steps=10
    )
    full = report.model_copy(update={"metrics": Metrics(loss=0.61234, accuracy=0.75), "eta_seconds": 75.0})
    assert run.values(full) == "loss 0.6123, accuracy 0.75, 1m15s left"
    assert run.values(report) == ""
