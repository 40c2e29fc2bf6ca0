"""Reading a job from a real HTTP server that holds what a cluster would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kube

from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names
from lora_dpo_operator.gateway import Gateway
from lora_dpo_operator.observe import Memory, observe
from lora_dpo_operator.terminations import of_pod

from .builders import (
    NAME,
    NAMESPACE,
    SETTINGS,
    UID,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    a_workload,
    condition,
    prepare_report,
    prepared_status,
    wire,
)

JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
JOBSET = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets/{NAME}"
JOB = f"/apis/training.loradpo.dev/v1alpha1/namespaces/{NAMESPACE}/loradpojobs/{NAME}"
Held = dict[str, Any]


@pytest.fixture
def held() -> Held:
    """What the server holds: path to object, or to the items of a list."""
    return {JOB: a_job() | {"status": {"phase": "Preparing"}}, JOBS: [], PODS: [], EVENTS: []}


@pytest.fixture
async def gateway(held: Held) -> AsyncIterator[Gateway]:
    async def handle(request: web.Request) -> web.Response:
        found = held.get(request.path)
        if found is None:
            return web.json_response({"message": "not found"}, status=404)
        return web.json_response({"items": found} if isinstance(found, list) else found)

    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", handle)
    async with TestServer(app) as server:
        door = Gateway(kube.ApiClient(kube.Configuration(host=str(server.make_url("")).rstrip("/"))))
        yield door
        await door.close()


async def test_children_are_found_by_name_and_owner(held: Held, gateway: Gateway) -> None:
    held[JOBS] = [wire(a_batch_job(Phase.PREPARE, 1, condition("Complete", 20)))]
    held[PODS] = [wire(a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report()))]
    held[JOBSET] = wire(a_jobset(21))
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.prepare is not None
    assert observed.jobset is not None
    assert observed.prepared == prepare_report().prepared
    assert observed.trouble is None


async def test_what_a_deleted_namesake_left_is_not_taken_over(held: Held, gateway: Gateway) -> None:
    left = a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report())
    end = of_pod(left)
    assert end is not None
    held[JOB] |= {"metadata": a_job()["metadata"] | {"uid": "another"}}
    held[JOBS] = [wire(a_batch_job(Phase.PREPARE, 1, condition("Complete", 20)))]
    held[PODS] = [wire(left)]
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(terminations={end.uid: end}), SETTINGS)
    assert observed is not None
    assert (observed.prepare, observed.pods, observed.terminations, observed.prepared) == (None, (), (), None)


async def test_a_jobset_of_someone_else_is_trouble(held: Held, gateway: Gateway) -> None:
    theirs = wire(a_jobset(21))
    theirs["metadata"]["ownerReferences"] = []
    held[JOBSET] = theirs
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.jobset is None
    assert observed.trouble is not None
    assert observed.trouble.message.startswith(f"JobSet {NAME} exists already and belongs to nobody")


async def test_a_pod_that_cannot_start_brings_its_events(held: Held, gateway: Gateway) -> None:
    held[JOBS] = [wire(a_batch_job(Phase.PREPARE, 1))]
    held[PODS] = [wire(a_pod(Phase.PREPARE, 1, waiting=("ContainerCreating", "")))]
    about = {"involvedObject": {"uid": held[PODS][0]["metadata"]["uid"]}}
    held[EVENTS] = [
        {"type": "Warning", "reason": "FailedMount", "message": 'secret "certs" not found', **about},
        {"type": "Warning", "reason": "OfAnotherPod", "message": "x", "involvedObject": {"uid": "another"}},
    ]
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert [event.reason for event in observed.warnings] == ["FailedMount"]


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_job_that_is_gone_or_going_is_none(held: Held, gateway: Gateway, deleted: bool) -> None:
    if deleted:
        del held[JOB]
    else:
        held[JOB]["metadata"]["deletionTimestamp"] = "2026-01-01T13:00:00Z"
    assert await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS) is None


KUEUE = "/apis/kueue.x-k8s.io"
WORKLOADS = f"{KUEUE}/v1beta1/namespaces/{NAMESPACE}/workloads"
QUEUE = f"{KUEUE}/v1beta1/namespaces/{NAMESPACE}/localqueues/tpus"
SERVED = {"preferredVersion": {"version": "v1beta1"}}
QUEUED_JOB = a_job({"queueName": "tpus"})


async def test_kueues_workload_is_found_by_discovery_and_owner(held: Held, gateway: Gateway) -> None:
    jobset = a_jobset(21, suspend=True, queue="tpus")
    ours, other = a_workload(jobset), a_workload(a_batch_job(Phase.EXPORT, 60))
    held[JOB] = QUEUED_JOB | {"status": wire(prepared_status())}
    held |= {JOBSET: wire(jobset), KUEUE: SERVED, WORKLOADS: [wire(other), wire(ours)]}
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.workload == ours
    assert observed.trouble is None


async def test_a_jobset_that_nobody_queues_brings_no_workload(held: Held, gateway: Gateway) -> None:
    held |= {JOBSET: wire(a_jobset(21)), KUEUE: SERVED, WORKLOADS: [wire(a_workload(a_jobset(21)))]}
    held[JOB] = a_job() | {"status": wire(prepared_status())}
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.workload is None


async def test_a_kueue_that_went_away_keeps_nothing(held: Held, gateway: Gateway) -> None:
    held[JOB] = QUEUED_JOB | {"status": wire(prepared_status())}
    held |= {JOBSET: wire(a_jobset(21, suspend=True, queue="tpus")), KUEUE: SERVED}
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert (observed.workload, observed.trouble) == (None, None)


async def test_a_queue_without_kueue_is_said_before_anything_is_made(held: Held, gateway: Gateway) -> None:
    held[JOB] = QUEUED_JOB
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.trouble is not None
    assert (observed.trouble.reason, observed.trouble.final) == ("KueueNotInstalled", False)
    assert "asks for the queue tpus" in observed.trouble.message


async def test_a_queue_that_does_not_exist_is_said_before_anything_is_made(held: Held, gateway: Gateway) -> None:
    held |= {JOB: QUEUED_JOB, KUEUE: SERVED}
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.trouble is not None
    assert (observed.trouble.reason, observed.trouble.final) == ("LocalQueueNotFound", False)
    assert observed.trouble.message == f"There is no LocalQueue tpus in the namespace {NAMESPACE}"
    assert f"kubectl get localqueues -n {NAMESPACE}" in observed.trouble.hint


async def test_a_queue_that_exists_is_no_trouble(held: Held, gateway: Gateway) -> None:
    held |= {JOB: QUEUED_JOB, KUEUE: SERVED, QUEUE: {"metadata": {"name": "tpus"}}}
    observed = await observe(gateway, (NAMESPACE, NAME), Memory(), SETTINGS)
    assert observed is not None
    assert observed.trouble is None


def test_every_label_has_its_job_and_uid() -> None:
    assert names.labels(NAME, UID, Phase.TRAIN) == {
        "app.kubernetes.io/managed-by": "lora-dpo-operator",
        "training.loradpo.dev/job": NAME,
        "training.loradpo.dev/job-uid": UID,
        "training.loradpo.dev/phase": "train",
    }
