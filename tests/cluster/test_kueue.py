"""Jobs in the queues of a real Kueue: behind quota, admitted, evicted by something more urgent, resumed to the end.

Kueue's webhooks stand between every Job and the API server, so it is there for these tests alone.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_localcluster import kueue
from lora_dpo_localcluster.provider import Cluster

from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model

STEPS = 1000
ONE = {"cpu": {"resources": {"requests": {"cpu": "100m"}}}}
"""What one slice asks for, and all that the queue has."""


def object_of(kind: str, name: str, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    body = {"spec": spec} if spec is not None else {}
    return {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind, "metadata": {"name": name}, **body, **more}


POOL = (
    object_of("ResourceFlavor", "any", {}),
    object_of("WorkloadPriorityClass", "urgent", value=1000, description=""),
    object_of(
        "ClusterQueue",
        "pool",
        {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [
                {
                    "coveredResources": ["cpu"],
                    "flavors": [{"name": "any", "resources": [{"name": "cpu", "nominalQuota": "100m"}]}],
                }
            ],
        },
    ),
)
QUEUES = (
    object_of("LocalQueue", "tpus", {"clusterQueue": "pool"}),
    object_of("LocalQueue", "express", {"clusterQueue": "pool", "stopPolicy": "Hold"}),
)


@pytest.fixture(scope="module")
def queues(operator: Operator, cluster: Cluster, kubectl: Kubectl) -> Iterator[str]:
    """A namespace with the queue `tpus`, and `express`, which is closed; together they have room for one slice."""
    del operator
    kueue.install(cluster, print)
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", namespace)
    for item in POOL:
        kubectl.text("apply", "-f", "-", stdin=item)
    for item in QUEUES:
        kubectl.text("-n", namespace, "apply", "-f", "-", stdin=item)
    yield namespace
    kubectl.text("delete", "namespace", namespace, "--timeout=60s")
    kueue.uninstall(cluster)


@contextlib.contextmanager
def suspensions(kubectl: Kubectl, namespace: str, jobset: str) -> Iterator[list[str]]:
    """Every value that `spec.suspend` of a JobSet takes, in order."""
    seen: list[str] = []

    def see(line: str) -> None:
        if seen[-1:] != [line.strip()]:
            seen.append(line.strip())

    jobsets = ("-n", namespace, "get", "jobsets", f"--field-selector=metadata.name={jobset}")
    with kubectl.watching(*jobsets, "--watch", "-o", 'jsonpath={.spec.suspend}{"\\n"}', see=see):
        yield seen


def trains(job: Job, beyond: int = 0) -> int:
    """Wait until it has trained some steps beyond those; the number of steps done."""
    job.reaches(JobPhase.RUNNING)
    # Behind the compilations of its first steps, in which a slice cannot save.
    enough = beyond + 20
    return wait_for(lambda: (job.status.step or 0) > enough and job.status.step, f"steps of {job.name}", timeout=240)


def goes_on(job: Job, done: int) -> int:
    """Wait until it trains again, from a checkpoint; the number of steps done."""
    job.reaches(JobPhase.RUNNING)
    (pod,) = job.slice_pods()
    log = job.kubectl.text("-n", job.namespace, "logs", pod["metadata"]["name"])
    found = re.search(r"Going on from step (\d+)", log)
    assert found is not None, log
    now = trains(job, beyond=int(found[1]))
    # Almost always nothing is lost; where something is, the job says how much.
    assert int(found[1]) + job.status.steps_lost >= done
    return now


def phases(job: Job) -> list[tuple[str, str | None]]:
    """Phases and their reasons, without restarts of what is starting anyway.

    A suspended slice's host that leaves with its exit code may count as one that was taken away; the restart is free.
    """
    told = [
        (entry.phase.value, entry.reason) for entry in job.status.timeline if entry.phase is not JobPhase.RESTARTING
    ]
    return [entry for index, entry in enumerate(told) if index == 0 or entry != told[index - 1]]


def test_a_job_waits_trains_is_evicted_and_goes_on_to_its_end(queues: str, kubectl: Kubectl, bucket: Bucket) -> None:
    upload_model(bucket)
    low, urgent, lost = (Job(kubectl, queues, name) for name in ("low", "urgent", "lost"))
    long = {
        "trainer": {"numTrainSteps": STEPS, "trainBatchSize": 4},
        "output": {"path": f"{bucket.url}/runs/low", "checkpoint": {"every": "2s"}},
    }
    with suspensions(kubectl, queues, "low") as seen:
        first = manifest("urgent", bucket.url, **ONE, queueName="express")
        first["metadata"]["labels"] = {"kueue.x-k8s.io/priority-class": "urgent"}
        lost.apply(manifest("lost", bucket.url, **ONE, queueName="absent"))
        low.apply(manifest("low", bucket.url, **ONE, **long, queueName="tpus"))
        urgent.apply(first)

        # A queue that doesn't exist is said at once, and nothing is made.
        said = lost.says(ConditionType.ADMITTED, "False", "LocalQueueNotFound")
        assert f"There is no LocalQueue absent in the namespace {queues}" in said.message
        assert f"kubectl get localqueues -n {queues}" in said.message
        assert lost.objects() == []

        done = trains(low)
        admitted = low.condition(ConditionType.ADMITTED)
        assert admitted is not None
        assert (admitted.status, admitted.reason) == ("True", "Admitted")
        assert admitted.message == "The workload is admitted (ClusterQueue pool)"

        said = urgent.says(ConditionType.ADMITTED, "False", "Inadmissible")
        assert said.message == "LocalQueue express is inactive"
        assert urgent.slice_pods() == []
        opened = '{"spec": {"stopPolicy": "None"}}'
        kubectl.text("-n", queues, "patch", "localqueue", "express", "--type=merge", "-p", opened)
        evicted = low.says(ConditionType.EVICTED, "True", "Preempted")
        assert evicted.message.startswith("Preempted to accommodate a workload")
        low.reaches(JobPhase.QUEUED)
        wait_for(lambda: "insufficient unused quota for cpu" in str(low.status.message), "Kueue's reason")

        status = low.reaches(JobPhase.RUNNING)
        assert (status.restarts, status.failure) == (0, None)
        resumed = low.condition(ConditionType.EVICTED)
        assert resumed is not None
        assert (resumed.status, resumed.reason) == ("False", "QuotaReserved")
        done = goes_on(low, done)

        low.suspend(True)
        low.reaches(JobPhase.SUSPENDED)
        wait_for(lambda: not low.slice_pods(), "the end of the slice's pods")
        low.suspend(False)
        goes_on(low, done)
        assert low.reaches(JobPhase.SUCCEEDED).step == STEPS
        assert seen == ["true", "false"] * 3

    assert phases(low) == [
        *(("Pending", None), ("Preparing", None)),
        *(("Queued", "WaitingForQueue"), ("Initializing", None), ("Running", None)),
        *(("Queued", "Preempted"), ("Initializing", None), ("Running", None)),
        *(("Suspended", "SuspendedByUser"), ("Queued", "WaitingForQueue"), ("Initializing", None), ("Running", None)),
        *(("Exporting", None), ("Succeeded", None)),
    ]
    assert [phase for phase, _ in phases(urgent)[:4]] == ["Pending", "Preparing", "Queued", "Initializing"]
    urgent.reaches(JobPhase.SUCCEEDED)
    told = [event["reason"] for event in low.events()]
    assert told.count("Evicted") == 1

    kubectl.text("-n", queues, "apply", "-f", "-", stdin=object_of("LocalQueue", "absent", {"clusterQueue": "pool"}))
    lost.reaches(JobPhase.PREPARING)
