"""What operator and trainer really serve to Prometheus."""

from __future__ import annotations

import re
import urllib.request

import prometheus_client

from lora_dpo_api.protocol import Checkpoint, Metrics, utc_now
from lora_dpo_api.status import Failure, JobPhase, LoraDpoJobStatus, PhaseTime, SliceStatus
from lora_dpo_operator.metrics import Instruments
from lora_dpo_trainer import metrics as trainer_metrics
from lora_dpo_trainer import progress

CHECKPOINT = Checkpoint(step=1, time=utc_now(), path="gs://bucket/checkpoints/step-00000001")


def operator() -> set[str]:
    """Names of the operator's samples."""
    values = {field: 0.5 for field, info in Metrics.model_fields.items() if "float" in str(info.annotation)}
    common = LoraDpoJobStatus(
        step=1,
        total_steps=2,
        metrics=Metrics(**values),
        last_checkpoint=CHECKPOINT,
        slice=SliceStatus(description="v5p 2x2x1", chips=4),
        timeline=[
            PhaseTime(phase=JobPhase.PENDING, started=utc_now(), ended=utc_now()),
            PhaseTime(phase=JobPhase.RUNNING, started=utc_now()),
        ],
    )
    failure = Failure(class_="Data", reason="BadRow", message="row 7")
    jobs = {
        ("a", "llama"): common.model_copy(update={"phase": JobPhase.RUNNING}),
        ("a", "qwen"): common.model_copy(
            update={"phase": JobPhase.FAILED, "failure": failure, "completion_time": utc_now()}
        ),
    }
    instruments = Instruments()
    instruments.watch(lambda: jobs, utc_now)
    instruments.observe_call("get", "jobs", 200)
    instruments.reconciles.labels("ok").inc()
    instruments.progress_pulls.labels("read").inc()
    return _samples(prometheus_client.generate_latest(instruments.registry).decode())


def trainer() -> set[str]:
    """Names of rank 0's samples."""
    values = dict.fromkeys(trainer_metrics.HELP, 1.0)
    snapshot = progress.Snapshot(run_id="a/llama", total_steps=2, values=values, last_checkpoint=CHECKPOINT)
    server = progress.Server(progress.Progress(snapshot), port=0, host="127.0.0.1")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            return _samples(answer.read().decode())
    finally:
        server.close()


def _samples(exposition: str) -> set[str]:
    return set(re.findall(r"^(loradpo_\w+)", exposition, flags=re.MULTILINE))
