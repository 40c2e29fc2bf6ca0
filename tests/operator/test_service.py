"""One job after another state, through the service, against a real HTTP server that holds what a cluster would.

What counts here is the order of the calls: what is written before something is deleted, and what is tried again.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kube

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_operator.gateway import Gateway
from lora_dpo_operator.metrics import Instruments
from lora_dpo_operator.observed import Observed
from lora_dpo_operator.service import SETTLING_SECONDS, Service

from .builders import (
    NAME,
    NAMESPACE,
    OWNER,
    SETTINGS,
    UID,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    a_workload,
    at,
    condition,
    config_map_name,
    merged,
    prepare_report,
    prepared_status,
    wire,
)

KEY = (NAMESPACE, NAME)
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
NODES = "/api/v1/nodes"
JOBSETS = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"
JOBSET = f"{JOBSETS}/{NAME}"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
CONFIG_MAP = f"{CONFIG_MAPS}/{config_map_name()}"
JOB = f"/apis/training.loradpo.dev/v1alpha1/namespaces/{NAMESPACE}/loradpojobs/{NAME}"


@dataclasses.dataclass
class Cluster:
    """What the server holds, and what it was asked to change, in order.

    Attributes:
        asked: requests of any kind, but for the events that are posted when there is time.
        answers: what it answers to a verb and path, in place of what it was sent.
        refuses: status and message with which it answers a verb and path.
        holds: what it waits for before it answers a verb and path.
        now: the clock of the operator under test.
        told: a status was written.
    """

    held: dict[str, Any]
    calls: list[str] = dataclasses.field(default_factory=list)
    bodies: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    refuses: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    holds: dict[str, asyncio.Event] = dataclasses.field(default_factory=dict)
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)
    now: datetime.datetime = dataclasses.field(default_factory=lambda: at(30))
    monotonic: float = 0.0
    asked: int = 0
    told: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def advance(self, seconds: int) -> None:
        self.now += datetime.timedelta(seconds=seconds)
        self.monotonic += seconds

    @property
    def status(self) -> LoraDpoJobStatus:
        return LoraDpoJobStatus.model_validate(self.held[JOB].get("status", {}))

    async def answer(self, request: web.Request) -> web.Response:
        call = f"{request.method} {request.path}"
        self.asked += request.method == "GET" or request.path != EVENTS
        if call in self.holds:
            await self.holds[call].wait()
        if call in self.refuses:
            status, message = self.refuses[call]
            return web.json_response({"message": message}, status=status)
        if request.method == "GET":
            found = self.held.get(request.path)
            if found is None:
                return web.json_response({"message": "not found"}, status=404)
            return web.json_response({"items": found} if isinstance(found, list) else found)
        body = json.loads(await request.read())
        if request.path != EVENTS:
            self.calls.append(call)
            self.bodies.append(body)
        return web.json_response(self.answers.get(call) or self._changed(request, body))

    def _changed(self, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        if request.path == f"{JOB}/status":
            self.told.set()
            version = {"resourceVersion": f"written-{len(self.calls)}"}
            self.held[JOB] |= {"status": body["status"], "metadata": self.held[JOB]["metadata"] | version}
            return dict(self.held[JOB])
        if request.path == JOBSETS:
            made = {"uid": "made", "creationTimestamp": self.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
            self.held[JOBSET] = body | {"metadata": body["metadata"] | made}
            return dict(self.held[JOBSET])
        if request.method == "DELETE":
            self.held.pop(request.path, None)
        return body


@pytest.fixture
def cluster() -> Cluster:
    """A prepared job whose slice waits for hosts, with a minute of patience."""
    raw = a_job({"runPolicy": {"queueTimeout": "1m", "ttlAfterFinished": "10m"}})
    waits = a_pod(Phase.TRAIN, 21, unschedulable="0/1 nodes are available: 1 Insufficient google.com/tpu.")
    return Cluster(
        {
            JOB: raw | {"status": wire(prepared_status(phase=JobPhase.INITIALIZING))},
            JOBS: [wire(a_batch_job(Phase.PREPARE, 1, condition("Complete", 20)))],
            JOBSET: wire(a_jobset(21)),
            PODS: [wire(a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report())), wire(waits)],
            EVENTS: [],
            NODES: [],
        }
    )


@pytest.fixture
async def service(cluster: Cluster) -> AsyncIterator[Service]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    async with TestServer(app) as server:
        gateway = Gateway(kube.ApiClient(kube.Configuration(host=str(server.make_url("")).rstrip("/"))))
        yield serving(cluster, gateway)
        await gateway.close()


def serving(cluster: Cluster, gateway: Gateway) -> Service:
    """The operator, freshly started."""
    return Service(gateway, SETTINGS, Instruments(), clock=lambda: cluster.now, monotonic=lambda: cluster.monotonic)


async def test_the_operator_looks_again_when_a_limit_is_reached_and_tells_before_it_deletes(
    cluster: Cluster, service: Service
) -> None:
    await service.reconcile(KEY)
    assert cluster.status.phase is JobPhase.QUEUED
    cluster.advance(51)
    assert service.due() == []
    cluster.advance(1)
    assert service.due() == [KEY]
    cluster.calls.clear()
    await service.reconcile(KEY)
    assert cluster.status.phase is JobPhase.FAILED
    assert cluster.status.failure is not None
    assert cluster.status.failure.reason == "QueueTimeout"
    assert cluster.calls == [f"PATCH {JOB}/status", f"DELETE {JOBSET}"]
    cluster.calls.clear()
    await service.reconcile(KEY)
    assert cluster.calls == []


def seen(cluster: Cluster, version: str) -> dict[str, Any]:
    """The JobSet, as a watch shows it in another version."""
    found = cluster.held[JOBSET]
    return dict(found | {"metadata": found["metadata"] | {"resourceVersion": version}})


@pytest.fixture
async def settled(cluster: Cluster, service: Service) -> Cluster:
    """The same, a moment after it was looked at."""
    cluster.held[JOBSET] = seen(cluster, "7")
    await service.reconcile(KEY)
    cluster.monotonic += SETTLING_SECONDS
    cluster.asked = 0
    return cluster


async def test_the_echo_of_what_was_read_costs_nothing(settled: Cluster, service: Service) -> None:
    await service.hear(KEY, seen(settled, "7"), gone=False)
    assert settled.asked == 0
    await service.hear(KEY, seen(settled, "8"), gone=False)
    assert settled.asked > 0


async def test_news_among_echoes_is_heard(settled: Cluster, service: Service) -> None:
    # While one looks, others wait; the next one looks for all.
    events = [service.hear(KEY, seen(settled, version), gone=False) for version in ("8", "7", "9")]
    settled.held[JOBSET] = seen(settled, "9")
    await asyncio.gather(*events)
    once = settled.asked
    assert once > 0
    await service.hear(KEY, seen(settled, "9"), gone=False)
    assert settled.asked == once


async def test_what_children_do_right_after_a_look_is_looked_at_together(settled: Cluster, service: Service) -> None:
    await service.reconcile(KEY)
    settled.asked = 0
    for version in ("8", "9"):
        settled.held[JOBSET] = seen(settled, version)
        await service.hear(KEY, seen(settled, version), gone=False)
    assert (settled.asked, service.due()) == (0, [])
    settled.monotonic += SETTLING_SECONDS
    assert service.due() == [KEY]
    await service.reconcile(KEY)
    settled.monotonic += SETTLING_SECONDS
    assert service.due() == []


async def test_what_is_heard_while_a_job_is_looked_at_is_looked_at_next(settled: Cluster, service: Service) -> None:
    await asyncio.gather(service.reconcile(KEY), service.hear(KEY, seen(settled, "8"), gone=False))
    settled.monotonic += SETTLING_SECONDS
    assert service.due() == [KEY]


@pytest.fixture
async def suspended(cluster: Cluster, service: Service) -> Cluster:
    """A job whose user wants nothing to run, a moment after it was looked at."""
    cluster.held[JOB] = a_job({"runPolicy": {"suspend": True}}) | {"status": wire(prepared_status())}
    cluster.held |= {JOBSET: wire(a_jobset(21, suspend=True)), PODS: []}
    cluster.held[JOBSET] = seen(cluster, "7")
    await service.reconcile(KEY)
    cluster.monotonic += SETTLING_SECONDS
    cluster.asked = 0
    cluster.calls.clear()
    return cluster


async def test_a_child_that_does_as_it_should_costs_no_call(suspended: Cluster, service: Service) -> None:
    await service.hear(KEY, seen(suspended, "8") | {"kind": "JobSet"}, gone=False)
    assert suspended.asked == 0
    await service.hear(KEY, seen(suspended, "8") | {"kind": "JobSet"}, gone=False)
    assert suspended.asked == 0


async def test_the_echo_of_a_status_write_among_what_children_do_is_no_reason_to_look(
    suspended: Cluster, service: Service
) -> None:
    # All but the first wait for the job, and are taken together.
    await asyncio.gather(
        service.reconcile(KEY, seen(suspended, "9") | {"kind": "JobSet"}),
        service.reconcile(KEY, seen(suspended, "10") | {"kind": "JobSet"}),
        service.reconcile(KEY, suspended.held[JOB]),
    )
    assert suspended.asked == 0


async def test_what_a_pod_changes_in_the_status_is_written_and_nothing_is_read(
    settled: Cluster, service: Service
) -> None:
    starts = merged(wire(a_pod(Phase.TRAIN, 22, scheduled=23)), {"kind": "Pod", "metadata": {"resourceVersion": "7"}})
    settled.held[PODS] = [settled.held[PODS][0], starts]
    await service.reconcile(KEY)
    assert (settled.status.slice and settled.status.slice.ready_hosts) == 0
    settled.monotonic += SETTLING_SECONDS
    settled.asked = 0
    runs = wire(a_pod(Phase.TRAIN, 22, scheduled=23, running=30))
    await service.hear(KEY, merged(runs, {"kind": "Pod", "metadata": {"resourceVersion": "8"}}), gone=False)
    assert settled.calls[-1] == f"PATCH {JOB}/status"
    assert settled.asked == 1
    assert (settled.status.slice and settled.status.slice.ready_hosts) == 1


async def test_what_is_to_be_done_for_a_child_is_done_after_a_look(suspended: Cluster, service: Service) -> None:
    # Somebody has let the slice go.
    suspended.held[JOBSET] = merged(seen(suspended, "8"), {"kind": "JobSet", "spec": {"suspend": False}})
    suspended.answers[f"PATCH {JOBSET}"] = seen(suspended, "9")
    await service.hear(KEY, suspended.held[JOBSET], gone=False)
    assert f"PATCH {JOBSET}" in suspended.calls


ONCE_MADE = collections.Counter([f"POST {CONFIG_MAPS}", f"POST {JOBS}", *2 * [f"PATCH {JOB}/status"]])
"""What a new job is written for: that it is accepted is told while its first objects are made."""


def only_new(cluster: Cluster) -> dict[str, Any]:
    """A job that nobody has looked at, all that there is."""
    new = a_job()
    cluster.held = {JOB: new, JOBS: [], PODS: [], EVENTS: []}
    return new


async def test_a_new_job_is_not_read_again_and_one_that_was_written_to_is(cluster: Cluster, service: Service) -> None:
    new = only_new(cluster)
    cluster.refuses[f"GET {JOB}"] = (500, "etcd is away")
    await service.changed(KEY, new)
    assert collections.Counter(cluster.calls) == ONCE_MADE
    assert cluster.calls[-1] == f"PATCH {JOB}/status"
    assert cluster.status.phase is JobPhase.PREPARING
    # What a late watch shows is older than what was written.
    cluster.calls.clear()
    await service.changed(KEY, merged(new, {"metadata": {"generation": 2}}))
    assert cluster.calls == []
    assert service.snapshot()[KEY].phase is JobPhase.PREPARING


async def test_an_edit_while_a_new_job_is_first_written_to_is_not_taken_for_a_new_job(
    cluster: Cluster, service: Service
) -> None:
    new = only_new(cluster)
    cluster.refuses[f"GET {JOB}"] = (500, "etcd is away")
    edited = merged(new, {"metadata": {"generation": 2}})
    await asyncio.gather(service.changed(KEY, new), service.changed(KEY, edited))
    assert collections.Counter(cluster.calls) == ONCE_MADE


async def test_that_a_new_job_is_accepted_is_told_while_its_first_objects_are_made(
    cluster: Cluster, service: Service
) -> None:
    new = only_new(cluster)
    webhook = cluster.holds[f"POST {JOBS}"] = asyncio.Event()
    looking = asyncio.create_task(service.changed(KEY, new))
    async with asyncio.timeout(5):
        await cluster.told.wait()
    accepted = cluster.status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.observed_generation) == ("True", 1)
    assert cluster.status.phase is JobPhase.PENDING
    webhook.set()
    await looking
    assert cluster.status.phase is JobPhase.PREPARING
    assert [entry.phase for entry in cluster.status.timeline] == [JobPhase.PENDING, JobPhase.PREPARING]


async def test_where_many_jobs_are_new_each_status_is_written_once(cluster: Cluster, service: Service) -> None:
    new, other = only_new(cluster), (NAMESPACE, "other")
    answer = cluster.holds[f"GET {JOB.removesuffix(NAME)}other"] = asyncio.Event()
    looking = asyncio.create_task(service.reconcile(other))
    await asyncio.sleep(0)
    await service.changed(KEY, new)
    assert cluster.calls == [f"POST {CONFIG_MAPS}", f"POST {JOBS}", f"PATCH {JOB}/status"]
    answer.set()
    await looking


async def test_a_new_job_of_which_something_cannot_be_made_is_looked_at_again(
    cluster: Cluster, service: Service
) -> None:
    new = only_new(cluster)
    cluster.refuses[f"POST {JOBS}"] = (503, "no leader")
    await service.changed(KEY, new)
    assert cluster.status.phase is JobPhase.PENDING
    del cluster.refuses[f"POST {JOBS}"]
    cluster.advance(2)
    for key in service.due():
        await service.take_up(key)
    assert cluster.status.phase is JobPhase.PREPARING


async def test_the_end_of_a_child_is_always_news(cluster: Cluster, service: Service) -> None:
    cluster.held[JOBSET] = seen(cluster, "7")
    await service.reconcile(KEY)
    cluster.asked = 0
    # At once, too.
    await service.hear(KEY, seen(cluster, "7"), gone=True)
    assert cluster.asked > 0


async def test_an_echo_after_a_failure_is_another_try(cluster: Cluster, service: Service) -> None:
    cluster.held[JOBSET] = seen(cluster, "7")
    await service.reconcile(KEY)
    cluster.refuses[f"GET {JOB}"] = (500, "etcd is away")
    await service.reconcile(KEY)
    cluster.asked = 0
    await service.hear(KEY, seen(cluster, "7"), gone=False)
    assert cluster.asked > 0


async def test_what_happens_to_the_children_of_a_finished_job_is_no_news(cluster: Cluster, service: Service) -> None:
    finished = cluster.held[JOB] | {"status": wire(prepared_status(phase=JobPhase.SUCCEEDED))}
    service.note(finished)
    await service.hear(KEY, seen(cluster, "8"), gone=False)
    assert cluster.asked == 0


KUEUE = "/apis/kueue.x-k8s.io"
WORKLOADS = f"{KUEUE}/v1beta1/namespaces/{NAMESPACE}/workloads"
IN_QUEUE = a_jobset(21, condition("Suspended", 21), suspend=True, queue="tpus")


@pytest.fixture
def queued(cluster: Cluster) -> Cluster:
    """The same job in a queue."""
    cluster.held |= {
        JOB: a_job({"queueName": "tpus"}) | {"status": wire(prepared_status())},
        JOBSET: wire(IN_QUEUE),
        PODS: [],
        KUEUE: {"preferredVersion": {"version": "v1beta1"}},
        WORKLOADS: [wire(a_workload(IN_QUEUE))],
    }
    return cluster


async def test_a_wait_in_a_queue_is_looked_at_ever_more_rarely(queued: Cluster, service: Service) -> None:
    await service.reconcile(KEY)
    assert queued.status.phase is JobPhase.QUEUED
    queued.advance(4)
    assert service.looks() == []
    queued.advance(1)
    assert service.looks() == [KEY]
    queued.advance(100)
    await service.reconcile(KEY)
    queued.advance(56)
    assert service.looks() == []
    queued.advance(1)
    assert service.looks() == [KEY]


async def test_suspending_a_job_in_a_queue_touches_its_workload_alone(queued: Cluster, service: Service) -> None:
    spec = {"queueName": "tpus", "runPolicy": {"suspend": True}}
    queued.held[JOB] = a_job(spec) | {"status": wire(prepared_status())}
    workload = f"{WORKLOADS}/jobset-{NAME}-12345"
    queued.answers[f"PATCH {workload}"] = wire(a_workload(IN_QUEUE, active=False))
    await service.reconcile(KEY)
    assert queued.calls == [f"PATCH {workload}", f"PATCH {JOB}/status"]
    assert queued.bodies[0] == {
        "metadata": {"annotations": {"training.loradpo.dev/suspended": "true"}},
        "spec": {"active": False},
    }


async def test_a_job_that_is_put_back_into_its_queue_waits_and_is_not_taken_out_any_more(
    queued: Cluster, service: Service
) -> None:
    note = {"training.loradpo.dev/suspended": "true"}
    out = condition("Evicted", 25, reason="Deactivated", message="The workload is deactivated")
    workload = wire(a_workload(IN_QUEUE, out, active=False, annotations=note))
    queued.held[WORKLOADS] = [workload]
    queued.answers[f"PATCH {WORKLOADS}/jobset-{NAME}-12345"] = workload | {"spec": {"active": True}}
    await service.reconcile(KEY)
    assert queued.status.phase is JobPhase.QUEUED
    assert queued.status.timeline[-1].reason == "WaitingForQueue"


def observations() -> int:
    """How many are held in memory."""
    gc.collect()
    return sum(isinstance(one, Observed) for one in gc.get_objects())


async def test_of_a_finished_job_only_its_status_is_held(cluster: Cluster, service: Service) -> None:
    before = observations()
    await service.reconcile(KEY)
    assert observations() == before + 1
    cluster.advance(60)
    await service.reconcile(KEY)
    assert service.snapshot()[KEY].phase is JobPhase.FAILED
    assert observations() == before


async def test_a_slice_that_could_not_be_given_back_is_tried_again_also_after_a_restart(
    cluster: Cluster, service: Service
) -> None:
    cluster.advance(60)
    cluster.refuses[f"DELETE {JOBSET}"] = (500, "etcd is away")
    await service.reconcile(KEY)
    assert (cluster.status.phase, JOBSET in cluster.held) == (JobPhase.FAILED, True)
    cluster.advance(1)
    assert service.due() == [KEY]
    cluster.refuses.clear()
    # A restarted operator hears of every JobSet that there is.
    await serving(cluster, service.gateway).reconcile(KEY)
    assert JOBSET not in cluster.held
    assert cluster.status.phase is JobPhase.FAILED


async def test_a_finished_job_is_deleted_when_its_time_is_over_also_by_an_operator_that_was_away(
    cluster: Cluster, service: Service
) -> None:
    cluster.advance(60)
    await service.reconcile(KEY)
    ended = cluster.status.completion_time
    assert ended == at(81)
    fresh = serving(cluster, service.gateway)
    assert not fresh.note(cluster.held[JOB])
    assert fresh.due() == []
    cluster.advance(600)
    assert fresh.due() == [KEY]
    cluster.calls.clear()
    await fresh.reconcile(KEY)
    assert cluster.calls == [f"DELETE {JOB}"]
    assert cluster.bodies[-1] == {"propagationPolicy": "Background", "preconditions": {"uid": UID}}
    await fresh.reconcile(KEY)
    assert fresh.snapshot() == {}


async def test_a_failed_job_that_is_asked_to_try_again_gets_a_new_slice_once_the_old_one_is_gone(
    cluster: Cluster, service: Service
) -> None:
    cluster.advance(60)
    await service.reconcile(KEY)
    cluster.held[JOB]["metadata"]["annotations"] = {"training.loradpo.dev/retry": "again"}
    assert service.note(cluster.held[JOB])
    assert service.retry_asked(cluster.held[JOB])
    cluster.calls.clear()
    await service.reconcile(KEY)
    assert cluster.calls == []
    del cluster.held[PODS][1]
    await service.reconcile(KEY)
    assert cluster.calls == [f"POST {CONFIG_MAPS}", f"POST {JOBSETS}", f"PATCH {JOB}/status"]
    status = cluster.status
    assert (status.phase, status.failure, status.retry) == (JobPhase.INITIALIZING, None, "again")
    assert [entry.phase.value for entry in status.timeline][-2:] == ["Failed", "Initializing"]
    assert not service.retry_asked(cluster.held[JOB])


def test_a_job_is_news_once_for_each_thing_that_it_asks(cluster: Cluster, service: Service) -> None:
    job = cluster.held[JOB]

    def changed(**changes: Any) -> dict[str, Any]:
        return merged(job, {"metadata": changes})

    assert service.is_news(job)
    assert not service.is_news(merged(job, {"status": {"phase": "Preparing"}})), "the echo of a status write"
    assert not service.is_news(changed(annotations={"note": "x"}))
    assert service.is_news(changed(generation=2))
    assert service.is_news(changed(generation=2, labels={"kueue.x-k8s.io/queue-name": "a"}))
    assert not service.is_news(changed(generation=2, labels={"kueue.x-k8s.io/queue-name": "a"}))
    assert service.is_news(changed(uid="another")), "made anew under the same name"


async def test_a_status_that_somebody_else_has_written_is_corrected_at_once(cluster: Cluster, service: Service) -> None:
    await service.changed(KEY, cluster.held[JOB])
    cluster.asked = 0
    await service.changed(KEY, cluster.held[JOB])
    assert cluster.asked == 0, "the echo of its own write"
    theirs = {"metadata": {"resourceVersion": "theirs"}, "status": {"message": "x"}}
    cluster.held[JOB] = merged(cluster.held[JOB], theirs)
    await service.changed(KEY, cluster.held[JOB])
    assert cluster.status.message != "x"
    cluster.asked = 0
    await service.changed(KEY, cluster.held[JOB])
    assert cluster.asked == 0


def test_a_failed_job_is_news_until_its_retry_is_heard(cluster: Cluster, service: Service) -> None:
    failed = merged(cluster.held[JOB], {"status": {"phase": "Failed", "observedGeneration": 1}})
    service.is_news(failed)
    annotations = {"training.loradpo.dev/retry": "again"}
    asking = merged(failed, {"metadata": {"annotations": annotations, "resourceVersion": "8"}})
    assert service.is_news(asking)
    assert service.is_news(asking)
    assert not service.is_news(merged(asking, {"status": {"retry": "again"}}))


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (403, 'jobsets "tiny" is forbidden: exceeded quota: small, requested: count/jobsets=1', "small"),
        (500, 'Internal error occurred: failed calling webhook "mjobset.kb.io": no endpoints', "mjobset.kb.io"),
    ],
    ids=["quota", "a webhook that does not answer"],
)
async def test_what_the_cluster_refuses_for_now_is_told_and_tried_again(
    cluster: Cluster, service: Service, status: int, message: str, reason: str
) -> None:
    del cluster.held[JOBSET], cluster.held[PODS][1]
    cluster.refuses[f"POST {JOBSETS}"] = (status, message)
    await service.reconcile(KEY)
    assert message in str(cluster.status.message)
    assert "Hint: " in str(cluster.status.message)
    assert reason in str(cluster.status.message).split("Hint: ")[1]
    assert cluster.status.failure is None
    cluster.refuses.clear()
    cluster.advance(round(SETTINGS.recheck_seconds))
    assert service.looks() == [KEY]
    await service.reconcile(KEY)
    assert JOBSET in cluster.held
    assert cluster.status.phase is JobPhase.INITIALIZING


@pytest.fixture
def new(cluster: Cluster) -> Cluster:
    """The same cluster with a job that has just been made, and somebody's ConfigMap of the name that it needs."""
    cluster.held = {JOB: a_job(), JOBS: [], PODS: [], EVENTS: [], CONFIG_MAP: {"metadata": {"name": "x"}}}
    cluster.refuses[f"POST {CONFIG_MAPS}"] = (409, "it exists already")
    return cluster


def belongs_to(cluster: Cluster, path: str, *owners: dict[str, Any]) -> None:
    cluster.held[path] = {"metadata": {"name": path.rsplit("/", 1)[1], "ownerReferences": list(owners)}}


async def test_a_config_map_of_someone_else_is_left_alone_and_said(new: Cluster, service: Service) -> None:
    belongs_to(new, CONFIG_MAP)
    await service.reconcile(KEY)
    assert new.calls == [f"PATCH {JOB}/status"]
    accepted = new.status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "NameTaken")
    assert f"ConfigMap {config_map_name()} exists already and belongs to nobody" in accepted.message
    assert new.status.phase is JobPhase.FAILED


async def test_a_config_map_of_the_job_itself_is_taken(new: Cluster, service: Service) -> None:
    belongs_to(new, CONFIG_MAP, OWNER)
    await service.reconcile(KEY)
    assert new.calls == [f"POST {JOBS}", f"PATCH {JOB}/status"]
    assert new.status.phase is JobPhase.PREPARING


async def test_a_new_job_costs_no_reading_of_children_and_what_an_operator_that_died_has_made_is_taken(
    new: Cluster, service: Service
) -> None:
    belongs_to(new, CONFIG_MAP, OWNER)
    prepare = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
    pod = a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report())
    new.refuses |= {f"POST {JOBS}": (409, "it exists already"), f"GET {PODS}": (500, "nobody should ask")}
    new.held |= {JOBS: [wire(prepare)], f"{JOBS}/{prepare.metadata.name}": wire(prepare), PODS: [wire(pod)]}
    await service.reconcile(KEY)
    assert new.status.phase is JobPhase.PENDING
    del new.refuses[f"GET {PODS}"]
    new.monotonic += SETTLING_SECONDS
    # A started operator hears of every pod that there is.
    await service.hear(KEY, wire(pod), gone=False)
    assert new.status.phase is JobPhase.INITIALIZING
    assert JOBSET in new.held


@pytest.mark.parametrize("path", [CONFIG_MAP, JOBSET], ids=["its ConfigMap", "its JobSet"])
async def test_what_a_deleted_job_of_the_same_name_left_is_waited_for(
    new: Cluster, service: Service, path: str
) -> None:
    belongs_to(new, CONFIG_MAP, OWNER)
    belongs_to(new, path, OWNER | {"uid": "before"})
    await service.reconcile(KEY)
    assert new.status.phase is JobPhase.PENDING
    assert "still belongs to an earlier LoraDpoJob tiny, which was deleted" in str(new.status.message)
    del new.held[path]
    new.refuses.clear()
    new.advance(round(SETTINGS.recheck_seconds))
    assert service.looks() == [KEY]
    await service.reconcile(KEY)
    assert new.status.phase is JobPhase.PREPARING
