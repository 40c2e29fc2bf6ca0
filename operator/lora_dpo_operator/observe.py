"""Reads one job and its children: the edge between the API server's dictionaries and typed values."""

from __future__ import annotations

import asyncio
import dataclasses

from lora_dpo_api import wire
from lora_dpo_api.protocol import Phase
from lora_dpo_api.tpu import ACCELERATOR_LABEL
from lora_dpo_operator import accept, names, waiting
from lora_dpo_operator.errors import ForbiddenError, NameTakenError, NotFoundError
from lora_dpo_operator.gateway import (
    JOBS,
    JOBSETS,
    LORA_DPO_JOBS,
    NODES,
    PODS,
    Gateway,
    Manifest,
    local_queues,
    workloads,
)
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.objects import EventView, Job, JobSet, KubeModel, ObjectMeta, items
from lora_dpo_operator.observed import NOT_POLLED, Accepted, Observed, Poll, Trouble
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.reasons import Reason
from lora_dpo_operator.settings import Settings
from lora_dpo_operator.terminations import Termination, of_pod
from lora_dpo_operator.workloads import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What is known of a job beside what the API server says.

    Attributes:
        terminations: of containers whose pods may be gone, by the pods' uids.
        poll: the last readings of its progress.
        maintenance: nodes whose maintenance is announced, all of the cluster's.
    """

    terminations: dict[str, Termination] = dataclasses.field(default_factory=dict)
    poll: Poll = NOT_POLLED
    maintenance: tuple[Node, ...] = ()


async def observe(
    gateway: Gateway, key: tuple[str, str], memory: Memory, settings: Settings, *, new: Manifest | None = None
) -> Observed | None:
    """Read everything about a job, once.

    Args:
        gateway: the door to the API server.
        key: namespace and name of the job.
        memory: what else is known of it.
        settings: the operator's.
        new: the job, where it has been read already and no operator has written to it.

    Returns:
        None where the job is gone, or going.

    Raises:
        GatewayError: the API server did not answer.
    """
    namespace, name = key
    reading = gateway.get(JOBSETS, namespace, names.jobset(name))
    if new is None:
        raw, jobset = await asyncio.gather(gateway.get(LORA_DPO_JOBS, namespace, name), reading)
    else:
        raw, jobset = new, await reading
    if raw is None or raw["metadata"].get("deletionTimestamp"):
        return None
    # Of a job that no operator has written to there is nothing to read: what one that died at once has made is found
    # when it is made again.
    unwritten = accept.status_of(raw).phase is None
    jobs, pods = ([], []) if unwritten else await _children(gateway, namespace, name)
    observed = await _with_queue(gateway, _assemble(raw, jobset, jobs, pods, memory, settings))
    watched = waiting.watched(observed)
    if watched is not None:
        told = await gateway.warnings(namespace, watched.uid, age=settings.recheck_seconds)
        observed = dataclasses.replace(observed, warnings=items(EventView, list(told)))
    if isinstance(observed.verdict, Accepted) and any(pod.unschedulable for pod in observed.slice_pods):
        observed = dataclasses.replace(observed, nodes=await _tpu_hosts(gateway))
    return observed


async def _children(gateway: Gateway, namespace: str, name: str) -> tuple[list[Manifest], list[Manifest]]:
    """Jobs and pods."""
    selector = names.job_selector(name)
    return await asyncio.gather(
        gateway.list(JOBS, namespace, labels=selector), gateway.list(PODS, namespace, labels=selector)
    )


async def _with_queue(gateway: Gateway, observed: Observed) -> Observed:
    """What Kueue says, where it is asked to say something, or has taken up a child by itself."""
    verdict, child = observed.verdict, observed.working_child
    if not isinstance(verdict, Accepted) or observed.settled or observed.trouble is not None:
        return observed
    idle = observed.jobset is None and not observed.trained
    about_to_start = idle and (observed.prepare is None or observed.prepared is not None)
    if verdict.queue_name is not None and about_to_start:
        # Said before anything is made: without Kueue the quota would not be heeded, without the queue nothing starts.
        trouble = await _no_queue(gateway, observed.metadata.namespace, verdict.queue_name)
        return dataclasses.replace(observed, trouble=trouble)
    if child is None or child.ended or not (observed.in_queue(child) or child.spec.suspend):
        return observed
    return dataclasses.replace(observed, workload=await _workload(gateway, child.metadata))


async def _workload(gateway: Gateway, child: ObjectMeta) -> Workload | None:
    version = await gateway.served_version(names.KUEUE)
    if version is None:
        return None
    selector = f"{names.WORKLOAD_OF}={child.uid}"
    try:
        found = items(Workload, await gateway.list(workloads(version), child.namespace, labels=selector))
    except (NotFoundError, ForbiddenError):
        return None
    return next((workload for workload in found if workload.metadata.owned_by(child.uid)), None)


async def _no_queue(gateway: Gateway, namespace: str, queue: str) -> Trouble | None:
    """Why a queue will never admit anything; None where it may."""
    version = await gateway.served_version(names.KUEUE)
    if version is None:
        return Trouble(
            reason=Reason.NO_KUEUE,
            message=f"The job asks for the queue {queue}, but Kueue is not installed",
            final=False,
            hint="install Kueue (https://kueue.sigs.k8s.io), or take spec.queueName away",
        )
    try:
        if await gateway.get(local_queues(version), namespace, queue) is not None:
            return None
    except ForbiddenError:
        return None
    return Trouble(
        reason=Reason.NO_QUEUE,
        message=f"There is no LocalQueue {queue} in the namespace {namespace}",
        final=False,
        hint=f"kubectl get localqueues -n {namespace}; correct spec.queueName, or create the LocalQueue",
    )


async def _tpu_hosts(gateway: Gateway) -> tuple[Node, ...]:
    """Those that there are; none where the operator may see no nodes, because it serves a few namespaces only."""
    try:
        return items(Node, await gateway.list(NODES, None, labels=ACCELERATOR_LABEL))
    except ForbiddenError:
        return ()


def _assemble(
    raw: Manifest,
    jobset: Manifest | None,
    jobs: list[Manifest],
    pods: list[Manifest],
    memory: Memory,
    settings: Settings,
) -> Observed:
    metadata = accept.metadata_of(raw)
    found = {job.metadata.name: job for job in items(Job, jobs) if job.metadata.owned_by(metadata.uid)}
    typed_pods = tuple(pod for pod in items(Pod, pods) if pod.job_uid == metadata.uid)
    ends = memory.terminations | {end.uid: end for end in map(of_pod, typed_pods) if end is not None}
    parsed = JobSet.model_validate(jobset) if jobset else None
    stranger = parsed if parsed and not parsed.metadata.owned_by(metadata.uid) else None
    return Observed(
        metadata=metadata,
        status=accept.status_of(raw),
        verdict=accept.judge(raw, settings),
        settings=settings,
        prepare=found.get(names.prepare_job(metadata.name)),
        jobset=None if stranger else parsed,
        slice_jobs=_slice_jobs(jobs, parsed) if parsed and not stranger else (),
        export=found.get(names.export_job(metadata.name)),
        pods=typed_pods,
        terminations=tuple(end for end in ends.values() if end.job_uid == metadata.uid),
        poll=memory.poll,
        maintenance=_of_its_hosts(memory.maintenance, typed_pods),
        trouble=taken(taken_by("JobSet", stranger.metadata, metadata.name)) if stranger else None,
    )


def _of_its_hosts(nodes: tuple[Node, ...], pods: tuple[Pod, ...]) -> tuple[Node, ...]:
    hosts = {pod.spec.node_name for pod in pods if pod.phase is Phase.TRAIN and pod.alive}
    return tuple(node for node in nodes if node.metadata.name in hosts)


def _slice_jobs(jobs: list[Manifest], jobset: JobSet) -> tuple[Job, ...]:
    return tuple(job for job in items(Job, jobs) if job.metadata.owned_by(jobset.metadata.uid))


def with_child(observed: Observed, manifest: Manifest) -> Observed:
    """What was observed, and a child as the API server has just returned it."""
    kind, name = manifest.get("kind"), manifest["metadata"]["name"]
    fields: dict[str, KubeModel] = {}
    if kind == "JobSet":
        fields["jobset"] = JobSet.model_validate(manifest)
    elif kind == "Job" and name == names.prepare_job(observed.metadata.name):
        fields["prepare"] = Job.model_validate(manifest)
    elif kind == "Job" and name == names.export_job(observed.metadata.name):
        fields["export"] = Job.model_validate(manifest)
    return dataclasses.replace(observed, **fields)  # type: ignore[arg-type]


def taken_by(kind: str, found: ObjectMeta, job: str) -> NameTakenError:
    """The error that an object of another owner is, which has a name that this job needs."""
    earlier = f"{wire.KIND} {job}"
    return NameTakenError(kind, found.name, found.owner, passing=found.owner == earlier)


def taken(error: NameTakenError) -> Trouble:
    """What stands in the status of it."""
    return Trouble(reason=Reason.NAME_TAKEN, message=str(error), final=not error.passing)


def with_workload(observed: Observed, manifest: Manifest | None) -> Observed:
    """What was observed, and Kueue's Workload as the API server has just returned it."""
    return dataclasses.replace(observed, workload=Workload.model_validate(manifest) if manifest else None)
