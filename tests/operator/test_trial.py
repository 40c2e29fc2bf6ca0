"""What `helm test` runs: one job to its end, against an HTTP server that answers as an API server would."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kube

from lora_dpo_operator import trial
from lora_dpo_operator.errors import RejectedError, TrialError
from lora_dpo_operator.gateway import Gateway

JOB = {
    "apiVersion": "training.loradpo.dev/v1alpha1",
    "kind": "LoraDpoJob",
    "metadata": {"name": "lora-dpo-trial", "namespace": "team-a"},
    "spec": {
        "initializeFromHf": "gs://b/model",
        "data": {"components": {"pairs": {"source": {"type": "url", "trainUrls": ["gs://b/x.jsonl"]}}}},
        "trainer": {"numTrainSteps": 3, "trainBatchSize": 4},
        "output": {"path": "gs://b/run"},
        "cpu": {},
    },
}
SUCCEEDED = {"phase": "Succeeded", "message": "The adapter is there."}


@dataclasses.dataclass
class Cluster:
    """One place for one job.

    Attributes:
        statuses: of the job, one a look, the last for ever; a number is an answer of the API server without any.
    """

    statuses: list[dict[str, Any] | int] = dataclasses.field(default_factory=lambda: [{}])
    job: dict[str, Any] | None = None
    asked: list[str] = dataclasses.field(default_factory=list)
    refuses: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.method)
        if request.method == "POST":
            if self.refuses:
                return web.json_response({"message": "spec.beta is missing"}, status=422)
            self.job = await request.json()
        elif request.method == "DELETE":
            self.job = None
        if self.job is None:
            return web.json_response({"message": "not found"}, status=404)
        status: dict[str, Any] | int = {}
        if request.method == "GET":
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, int):
            return web.json_response({"message": "busy"}, status=status)
        return web.json_response(self.job | {"status": status})


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def door(cluster: Cluster) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    async with TestServer(app) as server:
        made = Gateway(kube.ApiClient(kube.Configuration(host=str(server.make_url("")).rstrip("/"))))
        yield made
        await made.close()


async def story(door: Gateway) -> list[str]:
    told: list[str] = []
    await trial.run(door, JOB, told.append, interval=0)
    return told


async def test_a_job_that_succeeds_is_told_and_removed(cluster: Cluster, door: Gateway) -> None:
    preparing = {"phase": "Preparing", "message": "Reading rows."}
    cluster.statuses = [{}, preparing, preparing, SUCCEEDED]
    assert await story(door) == ["Pending", "Preparing: Reading rows.", "Succeeded: The adapter is there."]
    assert cluster.job is None


async def test_the_job_of_an_earlier_trial_makes_way(cluster: Cluster, door: Gateway) -> None:
    cluster.job, cluster.statuses = JOB, [SUCCEEDED]
    assert await story(door) == ["Succeeded: The adapter is there."]
    assert cluster.asked == ["GET", "DELETE", "GET", "POST", "GET", "GET", "DELETE", "GET"]


async def test_a_job_that_fails_stays_and_says_why(cluster: Cluster, door: Gateway) -> None:
    failure = {"class": "Storage", "reason": "NoBucket", "message": "gs://b is not there", "hint": "Make it"}
    cluster.statuses = [{"phase": "Failed", "failure": failure}]
    with pytest.raises(TrialError, match=r"Storage/NoBucket: gs://b is not there\. Hint: Make it\nSee: kubectl"):
        await story(door)
    assert cluster.job is not None


async def test_a_job_that_the_operator_does_not_take_is_not_waited_for(cluster: Cluster, door: Gateway) -> None:
    refused = {
        "type": "Accepted",
        "status": "False",
        "reason": "InvalidSpec",
        "message": "spec.tpu: no",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    cluster.statuses = [{"conditions": [refused]}]
    with pytest.raises(TrialError, match=r"does not take the job: spec\.tpu: no\nSee: "):
        await story(door)


async def test_a_job_that_never_enters_is_an_error_of_the_api_server(cluster: Cluster, door: Gateway) -> None:
    cluster.refuses = True
    with pytest.raises(RejectedError, match=r"spec\.beta is missing"):
        await story(door)


async def test_an_api_server_that_is_busy_is_asked_again(cluster: Cluster, door: Gateway) -> None:
    cluster.statuses = [503, SUCCEEDED]
    told = await story(door)
    assert "does not answer" in told[0]
    assert told[1:] == ["Succeeded: The adapter is there."]


async def test_a_job_that_somebody_deletes_ends_the_trial(cluster: Cluster, door: Gateway) -> None:
    cluster.statuses = [404]
    with pytest.raises(TrialError, match="was deleted by somebody else"):
        await story(door)


def test_a_wrong_command_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert trial.main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_without_a_cluster_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "job.yaml").write_text("{}")
    assert trial.main([str(tmp_path / "job.yaml")]) == 1
    assert "Invalid kube-config" in capsys.readouterr().err
