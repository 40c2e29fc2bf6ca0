from __future__ import annotations

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import derive, events
from lora_dpo_operator.events import Event
from lora_dpo_operator.observed import Observed

from .builders import (
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    at,
    condition,
    observe,
    prepared_status,
    progress,
    train_report,
)


def told(observed: Observed) -> list[Event]:
    return events.between(observed.status, derive.status(observed, at(1000)), observed.verdict)


def test_a_job_is_accepted_once() -> None:
    first = told(observe())
    assert [(event.type, event.reason) for event in first] == [("Normal", "Accepted")]
    assert told(observe(status=derive.status(observe(), at(1)))) == []


def test_a_forced_value_is_a_warning_of_its_own() -> None:
    found = told(observe(a_job({"lora": {"zeroInitB": False}})))
    assert [(event.type, event.reason) for event in found] == [("Normal", "Accepted"), ("Warning", "ZeroInitBForced")]
    assert "spec.lora.zeroInitB" in found[1].message


def test_a_refusal_is_a_warning_with_the_whole_reason() -> None:
    found = told(observe(a_job({"cpu": None, "tpu": {"machineType": "ct5lp-hightpu-4t", "topology": "3x3"}})))
    assert [(event.type, event.reason) for event in found] == [("Warning", "InvalidSpec")]
    assert "spec.tpu.topology: 3x3" in found[0].message


def test_what_happened_unseen_is_told_in_order() -> None:
    done = observe(
        status=prepared_status(phase=JobPhase.PREPARING, timeline=derive.status(observe(), at(1)).timeline),
        prepare=a_batch_job(Phase.PREPARE, 1, condition("Complete", 20)),
        jobset=a_jobset(21, condition("Completed", 59)),
        export=a_batch_job(Phase.EXPORT, 60, condition("Complete", 70)),
        pods=(a_pod(Phase.TRAIN, 21, ended=(58, 0), message=train_report(progress=progress(step=20))),),
    )
    reasons = [event.reason for event in told(done)]
    assert reasons[-5:] == ["Preparing", "Initializing", "Running", "Exporting", "Succeeded"]


def test_a_missing_secret_is_told_once() -> None:
    waiting = observe(
        prepare=a_batch_job(Phase.PREPARE, 1),
        pods=(a_pod(Phase.PREPARE, 1, waiting=("CreateContainerConfigError", 'secret "hf" not found')),),
    )
    warnings = [event for event in told(waiting) if event.type == "Warning"]
    assert [event.reason for event in warnings] == ["MissingReference"]
    assert 'secret "hf" not found' in warnings[0].message
    again = derive.status(waiting, at(5))
    assert events.between(again, again, waiting.verdict) == []


def test_events_of_one_second_keep_their_order() -> None:
    observed = observe()
    built = [events.build(Event("Normal", "A", "a"), observed.metadata, at(1), index) for index in range(20)]
    names = [event["metadata"]["name"] for event in built]
    assert names == sorted(names)
    assert len(set(names)) == 20
    assert built[0]["involvedObject"]["uid"] == observed.metadata.uid


def test_nothing_is_told_where_nothing_changed() -> None:
    assert events.between(LoraDpoJobStatus(), LoraDpoJobStatus(), observe().verdict) == []
