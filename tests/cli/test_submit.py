from __future__ import annotations

import io
import math
from typing import Any

import pytest
import rich.console

from ldj import follow, submit
from ldj.errors import RefusedError, UnreachableError
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus

from . import jobs
from .conftest import Ldj

SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}}


class Cluster:
    """What a status reads as, one after another; an exception is an API server that is away."""

    def __init__(self, *answers: LoraDpoJobStatus | Exception) -> None:
        self.answers = list(answers)
        self.now = 0.0

    def read(self) -> LoraDpoJobStatus:
        self.now += 100
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def clock(self) -> float:
        return self.now


AWAY = UnreachableError("nobody answers")
RUNNING, DONE = (jobs.job(**status).status for status in (jobs.RUNNING, jobs.SUCCEEDED))


def test_an_api_server_that_is_away_for_a_while_ends_nothing() -> None:
    cluster = Cluster(RUNNING, AWAY, AWAY, AWAY, DONE)
    read = submit.patient(cluster.read, patience=300, clock=cluster.clock)
    console = rich.console.Console(file=io.StringIO())
    assert follow.follow(read, console, timeout=math.inf, interval=0).phase is JobPhase.SUCCEEDED


def test_an_api_server_that_stays_away_is_told() -> None:
    cluster = Cluster(RUNNING, AWAY, AWAY, AWAY, AWAY)
    read = submit.patient(cluster.read, patience=300, clock=cluster.clock)
    console = rich.console.Console(file=io.StringIO())
    with pytest.raises(UnreachableError, match="nobody answers"):
        follow.follow(read, console, timeout=math.inf, interval=0)


@pytest.mark.parametrize(("generation", "refused"), [(1, True), (2, False)])
def test_a_job_that_the_operator_refuses_is_not_followed_for_ever(generation: int, refused: bool) -> None:
    condition = {"type": "Accepted", "status": "False", "reason": "NameTaken", "message": "Job tiny-prepare exists"}
    status = jobs.job(
        conditions=[condition | {"observedGeneration": 1, "lastTransitionTime": jobs.when(1)}], phase="Pending"
    ).status
    if not refused:
        submit.raise_if_refused(generation, status)
        return
    with pytest.raises(RefusedError, match="doesn't take the job: Job tiny-prepare exists"):
        submit.raise_if_refused(generation, status)


def test_a_wrong_job_is_refused_before_the_cluster_is_asked(ldj: Ldj, job: dict[str, Any]) -> None:
    job["spec"]["beta"] = -1
    result = ldj("submit", ldj.file(job), "--kubeconfig=/nowhere")
    assert result.exit_code == 1
    assert "spec.beta: -1 must be above 0" in result.stderr


@pytest.mark.parametrize(("content", "words"), [("a: [", "is not YAML"), (SECRET, "holds no LoraDpoJob")])
def test_a_file_without_jobs_is_an_error_in_a_sentence(content: Any, words: str, ldj: Ldj) -> None:
    result = ldj("submit", ldj.file(content))
    assert (result.exit_code, words in result.stderr) == (2, True)


def test_a_timeout_that_is_none_is_a_wrong_command_line(ldj: Ldj, job: dict[str, Any]) -> None:
    result = ldj("submit", ldj.file(job), "--timeout=soon")
    assert (result.exit_code, "is not a duration" in result.stderr) == (2, True)
