"""What one scrape of the operator's metrics costs: processor seconds and bytes, for thousands of running jobs."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time

from lora_dpo_api.protocol import Checkpoint, Metrics
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus, PhaseTime, SliceStatus
from lora_dpo_operator import exposition
from lora_dpo_operator.metrics import Instruments, Key

_BEGUN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_PATH = (JobPhase.PENDING, JobPhase.PREPARING, JobPhase.QUEUED, JobPhase.INITIALIZING, JobPhase.RUNNING)
_NAMESPACES = 50


@dataclasses.dataclass(frozen=True)
class Scrape:
    """Medians of several scrapes."""

    cpu_seconds: float
    megabytes: float


def running(count: int) -> dict[Key, LoraDpoJobStatus]:
    """Jobs that train, each with every gauge that a job can have."""
    return {
        (f"team-{number % _NAMESPACES}", f"llama-ultrafeedback-{number:05d}"): _status(number)
        for number in range(count)
    }


def measure(jobs: dict[Key, LoraDpoJobStatus], rounds: int = 5) -> Scrape:
    """Scrape several times, and once before to warm up."""
    instruments = Instruments()
    instruments.lead(lambda: jobs, lambda: _BEGUN + datetime.timedelta(hours=5))
    written = exposition.text(instruments.registry)
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        exposition.text(instruments.registry)
        seconds.append(time.process_time() - began)
    return Scrape(cpu_seconds=statistics.median(seconds), megabytes=len(written) / 1e6)


def _status(number: int) -> LoraDpoJobStatus:
    times = [_BEGUN + datetime.timedelta(seconds=number + 60 * index) for index in range(len(_PATH) + 1)]
    entries = [
        PhaseTime(phase=phase, started=began, ended=None if phase is JobPhase.RUNNING else ended)
        for phase, began, ended in zip(_PATH, times[:-1], times[1:], strict=True)
    ]
    values = {name: 1 + number for name in Metrics.model_fields} | {"loss": 0.6931 - number / 1e5}
    return LoraDpoJobStatus(
        phase=JobPhase.RUNNING,
        step=number,
        total_steps=10_000,
        metrics=Metrics.model_validate(values),
        timeline=entries,
        slice=SliceStatus(description="v5p 2x2x2", slices=1, hosts=2, chips=8),
        last_checkpoint=Checkpoint(step=1, time=times[-1], path="gs://bucket/checkpoints/step-00000001"),
    )
