"""What the webhook answers to whoever applies a job."""

from __future__ import annotations

from typing import Any

import pytest

from lora_dpo_operator import admission

from .builders import SETTINGS, a_job, merged


def asked(job: Any, before: Any = None) -> dict[str, Any]:
    operation = "UPDATE" if before else "CREATE"
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "7", "operation": operation, "object": job, "oldObject": before},
    }


def response(job: Any, before: Any = None) -> dict[str, Any]:
    answered = admission.answer(asked(job, before), SETTINGS)
    assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    found: dict[str, Any] = answered["response"]
    assert found.pop("uid") == "7"
    return found


NOWHERE = {"cpu": None, "tpu": {"machineType": "ct5p-hightpu-4t", "topology": "3x3x3"}}


def test_a_job_that_can_run_is_allowed() -> None:
    assert response(a_job()) == {"allowed": True, "warnings": []}


def test_what_the_schema_cannot_say_is_refused_with_field_value_and_reason() -> None:
    found = response(a_job(NOWHERE))
    assert (found["allowed"], found["status"]["code"], found["status"]["reason"]) == (False, 422, "Invalid")
    assert found["status"]["message"].startswith("spec.tpu.topology: 3x3x3 ")


def test_all_wrong_fields_are_told_at_once() -> None:
    message = response(a_job({"lora": {"r": 0}, "beta": -1}))["status"]["message"]
    assert "spec.lora.r: 0 must be at least 1" in message
    assert "spec.beta: -1 must be above 0" in message


def test_forced_values_and_advice_are_warnings() -> None:
    found = response(a_job({"lora": {"zeroInitB": False, "r": 128}}))
    assert found["allowed"]
    starts = [warning.split(":")[0] for warning in found["warnings"]]
    assert starts == ["spec.lora.zeroInitB", "spec.lora.rsLora"]
    assert all(len(warning) <= 256 for warning in found["warnings"])


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"annotations": {"note": "x"}}}, {"status": {"phase": "Failed"}}, {"metadata": {"finalizers": []}}],
    ids=["annotation", "status", "finalizers"],
)
def test_a_stored_job_that_this_version_would_refuse_can_still_be_annotated_and_ended(change: dict[str, Any]) -> None:
    stored = a_job(NOWHERE)
    assert response(merged(stored, change), stored) == {"allowed": True}
    assert response(merged(stored, {"spec": {"beta": 0.2}}), stored)["allowed"] is False


def test_a_job_that_is_being_deleted_is_let_go() -> None:
    stored = a_job(NOWHERE)
    leaving = merged(stored, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"beta": 0.2}})
    assert response(leaving, stored) == {"allowed": True}


def test_a_label_that_contradicts_the_spec_is_seen() -> None:
    stored = a_job({"queueName": "mine"})
    assert not response(merged(stored, {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "other"}}}), stored)[
        "allowed"
    ]


@pytest.mark.parametrize(
    "review",
    [
        None,
        [],
        {},
        {"apiVersion": "admission.k8s.io/v1beta1", "request": {}},
        {"apiVersion": "admission.k8s.io/v1"},
        {"apiVersion": "admission.k8s.io/v1", "request": {"uid": 7}},
        {"apiVersion": "admission.k8s.io/v1", "request": {"uid": "7"}},
        asked(None),
        asked({"spec": {}}),
        asked({"metadata": []}),
    ],
)
def test_a_request_that_is_no_review_is_said_to_be_none(review: Any) -> None:
    with pytest.raises(admission.MalformedReviewError):
        admission.answer(review, SETTINGS)
