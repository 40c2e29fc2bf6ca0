from __future__ import annotations

from typing import Any

import pytest

from ldj import logs
from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names
from lora_dpo_operator.pods import Pod

from . import jobs


def a_pod(phase: Phase, *, host: int = 0, part: int = 0, attempt: int = 0, uid: str = jobs.UID) -> Pod:
    name = f"tiny-{phase.value}-{part}-{host}-{attempt}"
    labels = {
        names.JOB_UID_LABEL: uid,
        names.PHASE_LABEL: phase.value,
        names.JOB_INDEX: str(part),
        names.COMPLETION_INDEX: str(host),
        names.RESTART_ATTEMPT: str(attempt),
    }
    body: dict[str, Any] = {"metadata": {"name": name, "namespace": "team-a", "uid": name, "labels": labels}}
    return Pod.model_validate(body)


def chosen(*pods: Pod, asked: Phase | None = None, **status: Any) -> list[str]:
    return [logs.prefix(pod) for pod in logs.choose(pods, jobs.job(**status), asked)]


PREPARE, EXPORT = a_pod(Phase.PREPARE), a_pod(Phase.EXPORT)
HOSTS = tuple(a_pod(Phase.TRAIN, host=host, part=part) for part in (1, 0) for host in (1, 0))


def test_the_newest_phase_is_heard_in_the_order_of_its_hosts() -> None:
    assert chosen(PREPARE) == ["prepare"]
    assert chosen(PREPARE, *HOSTS) == ["train 0/0", "train 0/1", "train 1/0", "train 1/1"]
    assert chosen(PREPARE, *HOSTS, EXPORT) == ["export"]


def test_another_phase_is_heard_when_it_is_asked_for() -> None:
    assert chosen(PREPARE, *HOSTS, EXPORT, asked=Phase.PREPARE) == ["prepare"]


def test_of_a_failed_job_the_phase_that_failed_is_heard() -> None:
    assert chosen(PREPARE, *HOSTS, **jobs.FAILED) == ["prepare"]


def test_only_the_newest_attempt_of_a_slice_is_heard() -> None:
    again = a_pod(Phase.TRAIN, attempt=2)
    assert chosen(a_pod(Phase.TRAIN), a_pod(Phase.TRAIN, attempt=1), again) == ["train 0/0 attempt 2"]


def test_the_pod_that_failed_is_heard_beside_the_newest_attempt() -> None:
    failed, again = a_pod(Phase.TRAIN, host=1), a_pod(Phase.TRAIN, attempt=1)
    failure = {"class": "Infrastructure", "reason": "Crashed", "message": "…", "pod": failed.metadata.name}
    assert chosen(failed, again, failure=failure) == ["train 0/1", "train 0/0 attempt 1"]


def followed(*pods: Pod, since: Phase, asked: Phase | None = None) -> list[str]:
    return [logs.prefix(pod) for pod in logs.to_follow(pods, jobs.job(), asked, since)]


def test_a_phase_that_ended_between_two_looks_is_still_heard_by_who_follows() -> None:
    assert followed(PREPARE, since=Phase.PREPARE) == ["prepare"]
    assert followed(PREPARE, HOSTS[-1], since=Phase.PREPARE) == ["prepare", "train 0/0"]
    assert followed(PREPARE, HOSTS[-1], EXPORT, since=Phase.PREPARE) == ["prepare", "train 0/0", "export"]


def test_who_follows_hears_nothing_of_the_phases_that_were_over_at_the_first_look() -> None:
    assert followed(PREPARE, HOSTS[-1], EXPORT, since=Phase.TRAIN) == ["train 0/0", "export"]


def test_who_follows_one_phase_hears_no_other() -> None:
    assert followed(PREPARE, HOSTS[-1], EXPORT, since=Phase.PREPARE, asked=Phase.TRAIN) == ["train 0/0"]


def test_the_pods_of_a_deleted_namesake_are_not_heard() -> None:
    assert chosen(a_pod(Phase.TRAIN, uid="another")) == []


def test_a_pod_that_is_gone_is_named_with_the_place_where_its_last_lines_are() -> None:
    failure = {"class": "Infrastructure", "reason": "Crashed", "message": "Killed.", "phase": "train", "pod": "tiny-x"}
    said = logs.missing(jobs.job(failure=failure), HOSTS)
    assert said is not None
    assert "tiny-x, is gone. It said: Killed." in said
    assert "gcloud storage cat 'gs://bucket/runs/tiny/logs/*'" in said
    present = {**failure, "pod": HOSTS[0].metadata.name}
    assert logs.missing(jobs.job(failure=present), HOSTS) is None


@pytest.mark.parametrize(("text", "line"), [("\x1b[2Jboo", r"train | \x1b[2Jboo"), ("a\tb", "train | a       b")])
def test_a_log_cannot_drive_the_terminal(text: str, line: str) -> None:
    assert str(logs.Line("train", text)) == line
