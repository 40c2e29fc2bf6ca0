import datetime
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ldj import demo, follow, install
from ldj.errors import DemoError, FollowTimeoutError
from lora_dpo_api import yaml12
from lora_dpo_api.config_models import MAX_LEARNING_RATE
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.protocol import CurvePoint, Metrics
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus, PhaseTime
from lora_dpo_localcluster import locks, state

ROOT = Path(__file__).resolve().parents[2]


def status(phase: JobPhase = JobPhase.RUNNING, **values: Any) -> LoraDpoJobStatus:
    return LoraDpoJobStatus(phase=phase, **values)


def run(readings: list[LoraDpoJobStatus], timeout: float = 60) -> tuple[LoraDpoJobStatus, list[str]]:
    waiting = iter(readings)
    screen = Console(file=io.StringIO(), width=200)
    final = follow.follow(lambda: next(waiting), screen, timeout=timeout, interval=0)
    assert isinstance(screen.file, io.StringIO)
    return final, screen.file.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_change_and_none_for_a_repetition() -> None:
    running = status(progress="3/46", metrics=Metrics(loss=0.51234, reward_margin=0.4, accuracy=0.875), eta="2m")
    final, lines = run([status(JobPhase.PENDING), running, running, status(JobPhase.SUCCEEDED)])
    assert final.phase is JobPhase.SUCCEEDED
    assert [line.split()[1] for line in lines] == ["phase", "Pending", "Running", "Succeeded"]
    assert lines[2].split()[1:] == ["Running", "3/46", "0.5123", "0.4", "0.875", "2m"]


def test_a_failed_job_ends_the_following() -> None:
    final, _ = run([status(), status(JobPhase.FAILED)])
    assert final.phase is JobPhase.FAILED


def test_a_job_that_does_not_finish_in_time_is_given_up_with_its_last_state() -> None:
    with pytest.raises(FollowTimeoutError, match="Running 3/46 after 0 s: waiting for the slice"):
        run([status(progress="3/46", message="waiting for the slice")], timeout=0)


def test_the_timeline_shows_how_long_each_phase_took() -> None:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    phases = [
        PhaseTime(phase=JobPhase.PREPARING, started=start, ended=start + datetime.timedelta(seconds=42)),
        PhaseTime(phase=JobPhase.RUNNING, started=start + datetime.timedelta(seconds=42)),
    ]
    screen = Console(file=io.StringIO(), width=120)
    screen.print(follow.timeline(phases))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert "Preparing" in shown
    assert " 42 " in shown


def test_the_step_0_loss_is_the_first_point_of_the_curve() -> None:
    points = [CurvePoint(step=20, loss=0.3), CurvePoint(step=0, loss=0.6931)]
    assert demo.step_0_loss(status(curve=points)) == 0.6931
    assert demo.step_0_loss(status(curve=points[:1])) is None
    assert demo.step_0_loss(status()) is None


@pytest.mark.parametrize(
    ("loss", "accuracy", "complaint"),
    [(0.7, 0.95, "step-0 loss is 0.7, not ln 2"), (math.log(2), 0.85, "held-out accuracy is 0.85, below 0.9")],
)
def test_numbers_that_cannot_be_right_fail_the_demo(loss: float, accuracy: float, complaint: str) -> None:
    wrong = status(curve=[CurvePoint(step=1, loss=loss)], metrics=Metrics(eval_accuracy=accuracy))
    with pytest.raises(DemoError, match=complaint):
        demo.verify(wrong)


def test_a_second_demo_leaves_the_first_ones_cluster_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDJ_STATE", str(tmp_path))
    with (
        locks.claimed(state.clusters_folder() / "demo.demo.lock"),
        pytest.raises(DemoError, match="Another demo runs on the cluster demo"),
    ):
        demo.demo(name="demo", checkout=ROOT)


def test_the_installed_operator_gets_the_images_and_the_address_of_the_bucket() -> None:
    manifest = (ROOT / install.MANIFEST).read_text()
    deployment = next(found for found in yaml12.loads_all(manifest) if found["kind"] == "Deployment")
    settings = {"LORADPO_TRAINER_IMAGE": "trainer:1", "LORADPO_TRAINER_ENV": "A=b"}
    made = install.with_settings(deployment, image="operator:1", settings=settings)
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "operator:1"
    assert settings.items() <= {entry["name"]: entry["value"] for entry in container["env"]}.items()
    assert len(container["env"]) == len({entry["name"] for entry in container["env"]})
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] != "operator:1"


def test_the_quickstart_keeps_to_the_guide() -> None:
    job = LoraDpoJob.from_body(yaml12.loads((ROOT / "examples" / "quickstart" / "job.yaml").read_text()))
    assert job.metadata.name == demo.JOB
    assert job.spec.optimizer.learning_rate <= MAX_LEARNING_RATE
    assert job.spec.trainer.num_epochs is None or job.spec.trainer.num_epochs <= 2
    assert job.spec.guidance == "enforce"
    assert 16 <= job.spec.lora.r <= 64
