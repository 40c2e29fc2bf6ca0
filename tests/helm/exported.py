"""What operator and trainer really serve to Prometheus, with made-up values: everything that they can say is said."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import re
import threading
import urllib.request
from collections.abc import Iterator

import prometheus_client
from aiohttp import web

from lora_dpo_api.protocol import Checkpoint, Metrics, utc_now
from lora_dpo_api.status import Condition, ConditionType, Failure, JobPhase, LoraDpoJobStatus, PhaseTime, SliceStatus
from lora_dpo_localcluster import namespace
from lora_dpo_operator import server
from lora_dpo_operator.metrics import Instruments, Key
from lora_dpo_trainer import metrics as trainer_metrics
from lora_dpo_trainer import progress


@dataclasses.dataclass
class Fleet:
    """Two jobs: `a/llama` runs on 4 chips, `a/qwen` has failed.

    Attributes:
        restarts: of the one that runs.
        step: that both have reached.
    """

    restarts: int = 0
    step: int = 1

    def statuses(self) -> dict[Key, LoraDpoJobStatus]:
        """As the operator's service gives them."""
        now = utc_now()
        values = {field: 0.5 for field, info in Metrics.model_fields.items() if "float" in str(info.annotation)}
        maintenance = Condition(
            type=ConditionType.MAINTENANCE,
            status="True",
            reason="HostMaintenance",
            message="x",
            last_transition_time=now,
        )
        begun = now - datetime.timedelta(minutes=5)
        common = LoraDpoJobStatus(
            step=self.step,
            total_steps=1000,
            metrics=Metrics(**values),
            last_checkpoint=checkpoint(),
            slice=SliceStatus(description="v5p 2x2x1", chips=4),
            conditions=[maintenance],
            timeline=[
                PhaseTime(phase=JobPhase.PENDING, started=begun, ended=begun + datetime.timedelta(minutes=1)),
                PhaseTime(phase=JobPhase.RUNNING, started=begun + datetime.timedelta(minutes=1)),
            ],
        )
        running = {"phase": JobPhase.RUNNING, "restarts": self.restarts}
        failure = Failure(class_="Data", reason="BadRow", message="row 7")
        failed = {"phase": JobPhase.FAILED, "failure": failure, "completion_time": now}
        return {("a", "llama"): common.model_copy(update=running), ("a", "qwen"): common.model_copy(update=failed)}


def checkpoint(age: int = 0) -> Checkpoint:
    """One that was complete so many seconds ago."""
    return Checkpoint(
        step=1, time=utc_now() - datetime.timedelta(seconds=age), path="gs://bucket/checkpoints/step-00000001"
    )


def operator_instruments(fleet: Fleet) -> Instruments:
    """The operator's, after some work."""
    instruments = Instruments()
    instruments.lead(fleet.statuses, utc_now)
    work(instruments)
    return instruments


def work(instruments: Instruments) -> None:
    """Something of everything that an operator does."""
    instruments.observe_call("get", "jobs", 200)
    instruments.reconciles.labels("ok").inc()
    instruments.reconciles.labels("failed").inc(0)
    instruments.progress_pulls.labels("read").inc()
    instruments.last_resync.set_to_current_time()
    with instruments.reconcile_seconds.time():
        pass


def trainer_progress() -> progress.Progress:
    """Rank 0 of `a/llama`."""
    values = dict.fromkeys(trainer_metrics.HELP, 0.5) | {"memory_device_limit_bytes": 1.0}
    state = progress.TrainerState.TRAINING
    snapshot = progress.Snapshot(
        run_id="a/llama",
        total_steps=1000,
        checkpoint_seconds=120,
        step=1,
        state=state,
        values=values,
        last_checkpoint=checkpoint(age=60),
    )
    return progress.Progress(snapshot)


@contextlib.contextmanager
def served(instruments: Instruments) -> Iterator[int]:
    """The operator's own HTTP server on 127.0.0.1, in a thread; its port."""
    loop, started, port = asyncio.new_event_loop(), threading.Event(), namespace.free_ports(1)[0]

    async def listen() -> web.AppRunner:
        health = server.Health(alive=lambda: True, ready=lambda: True)
        return await server.start(server.application(instruments.registry, health), port)

    def run() -> None:
        runner = loop.run_until_complete(listen())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, name="operator")
    thread.start()
    try:
        assert started.wait(30)
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def operator() -> set[str]:
    """Names of the operator's samples."""
    return _samples(prometheus_client.generate_latest(operator_instruments(Fleet()).registry).decode())


def trainer() -> set[str]:
    """Names of rank 0's samples."""
    listening = progress.Server(trainer_progress(), port=0, host="127.0.0.1")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{listening.port}/metrics", timeout=10) as answer:
            return _samples(answer.read().decode())
    finally:
        listening.close()


def _samples(exposition: str) -> set[str]:
    return set(re.findall(r"^(loradpo_\w+)", exposition, flags=re.MULTILINE))
