from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from lora_dpo_api.protocol import Checkpoint, Metrics
from lora_dpo_api.status import Failure, JobPhase, LoraDpoJobStatus, PhaseTime, SliceStatus
from lora_dpo_operator import server
from lora_dpo_operator.metrics import Instruments, Key

from .builders import at


class State:
    """The operator's state, as the server asks for it."""

    def __init__(self) -> None:
        self.alive = True
        self.ready = False
        self.jobs: dict[Key, LoraDpoJobStatus] = {}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def instruments(state: State) -> Instruments:
    made = Instruments()
    made.lead(lambda: state.jobs, lambda: at(100))
    return made


@pytest.fixture
async def client(state: State, instruments: Instruments) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]
    health = server.Health(alive=lambda: state.alive, ready=lambda: state.ready)
    async with TestClient(TestServer(server.application(instruments.registry, health))) as made:
        yield made


async def series(client: TestClient, prefix: str) -> dict[tuple[str, ...], float]:  # type: ignore[type-arg]
    """Every sample whose name starts so: (name, values of its labels in alphabetical order…) to value."""
    text = await (await client.get("/metrics")).text()
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


async def test_the_probes_tell_a_loop_that_stands_still(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    assert (await client.get("/healthz")).status == 200
    state.alive = False
    answer = await client.get("/healthz")
    assert (answer.status, await answer.text()) == (503, "the resync loop has stopped")


async def test_it_is_ready_once_the_jobs_have_been_read(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    assert (await client.get("/readyz")).status == 503
    state.ready = True
    assert (await client.get("/readyz")).status == 200


async def test_a_jobs_gauges_vanish_with_it(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    key = ("tiny", "team-a")
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(
        phase=JobPhase.RUNNING, step=3, metrics=Metrics(loss=0.69, accuracy=0.5)
    )
    found = await series(client, "loradpo_operator_job_")
    assert found[("loradpo_operator_job_phase", *key, "Running")] == 1
    assert found[("loradpo_operator_job_step", *key)] == 3
    assert found[("loradpo_operator_job_loss", *key)] == 0.69
    assert found[("loradpo_operator_job_accuracy", *key)] == 0.5
    assert ("loradpo_operator_job_eval_loss", *key) not in found
    del state.jobs["team-a", "tiny"]
    assert await series(client, "loradpo_operator_job_") == {}


async def test_what_a_job_cost_is_told_by_how_it_ended(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    begun = PhaseTime(phase=JobPhase.PENDING, started=at(0), ended=at(10))
    line = [begun, PhaseTime(phase=JobPhase.RUNNING, started=at(10))]
    hardware = SliceStatus(description="v5p 2x2x2", chips=8)
    running = LoraDpoJobStatus(phase=JobPhase.RUNNING, timeline=line, slice=hardware, step=5)
    state.jobs["team-a", "tiny"] = running
    key = ("tiny", "team-a")
    found = await series(client, "loradpo_operator_job_")
    assert found[("loradpo_operator_job_chip_seconds", "tiny", "team-a", "Active")] == 8 * 90
    assert found[("loradpo_operator_job_slice_held_seconds", *key)] == 90
    assert found[("loradpo_operator_job_useful_seconds", *key)] == 90
    assert found[("loradpo_operator_job_first_step_seconds", *key)] == 10
    assert found[("loradpo_operator_job_queued_seconds", *key)] == 0
    assert not [name for name, *_ in found if name == "loradpo_operator_job_failure"]

    failure = Failure(class_="Data", reason="BadRow", message="row 7 has no chosen answer")
    state.jobs["team-a", "tiny"] = running.model_copy(update={"phase": JobPhase.FAILED, "failure": failure})
    found = await series(client, "loradpo_operator_job_")
    assert found[("loradpo_operator_job_failure", "Data", "tiny", "team-a")] == 1
    assert ("loradpo_operator_job_chip_seconds", "tiny", "team-a", "Failed") in found
    assert ("loradpo_operator_job_chip_seconds", "tiny", "team-a", "Active") not in found


async def test_a_finished_job_has_results_and_no_speed(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    values = Metrics(loss=0.5, tokens_per_second=1000.0)
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(phase=JobPhase.RUNNING, metrics=values)
    speed = ("loradpo_operator_job_tokens_per_second", "tiny", "team-a")
    assert (await series(client, "loradpo_operator_job_"))[speed] == 1000
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(phase=JobPhase.SUCCEEDED, metrics=values)
    found = await series(client, "loradpo_operator_job_")
    assert speed not in found
    assert found[("loradpo_operator_job_loss", "tiny", "team-a")] == 0.5


async def test_a_failure_of_an_unknown_class_makes_no_series_of_its_own(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    failure = Failure(class_="Whatever somebody wrote", reason="X", message="x")
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(phase=JobPhase.FAILED, failure=failure)
    found = await series(client, "loradpo_operator_job_failure")
    assert list(found) == [("loradpo_operator_job_failure", "Internal", "tiny", "team-a")]


async def test_the_age_of_a_checkpoint_can_be_told_from_its_time(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    checkpoint = Checkpoint(step=7, time=at(70), path="gs://bucket/checkpoints/step-00000007")
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(phase=JobPhase.RUNNING, last_checkpoint=checkpoint)
    found = await series(client, "loradpo_operator_job_last_checkpoint")
    assert list(found.values()) == [at(70).timestamp()]


async def test_the_end_of_a_job_is_told(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    state.jobs["team-a", "tiny"] = LoraDpoJobStatus(phase=JobPhase.FAILED, completion_time=at(90))
    found = await series(client, "loradpo_operator_job_completion")
    assert list(found.values()) == [at(90).timestamp()]


async def test_the_operators_own_memory_is_told(client: TestClient) -> None:  # type: ignore[type-arg]
    found = await series(client, "loradpo_operator_process_resident_memory_bytes")
    (found_bytes,) = found.values()
    assert found_bytes > 1e6


async def test_jobs_are_counted_by_phase(client: TestClient, state: State) -> None:  # type: ignore[type-arg]
    state.jobs = {("a", str(number)): LoraDpoJobStatus(phase=JobPhase.QUEUED) for number in range(3)}
    found = await series(client, "loradpo_operator_jobs")
    assert found[("loradpo_operator_jobs", "Queued")] == 3
    assert found[("loradpo_operator_jobs", "Running")] == 0


async def test_calls_are_counted_by_verb_resource_and_code(client: TestClient, instruments: Instruments) -> None:  # type: ignore[type-arg]
    instruments.observe_call("get", "jobsets", 404)
    found = await series(client, "loradpo_operator_api_calls_total")
    assert list(found.values()) == [1]
