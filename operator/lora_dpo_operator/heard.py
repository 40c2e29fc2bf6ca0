"""What watches tell of a job's children between two looks at it.

A look reads everything. What goes as it should in between (a Job is made, pods get their nodes and start) is added to
what was observed then, without a call to the API server. All else is for the next look: what ends, goes, starts anew,
waits in a queue or has no node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lora_dpo_operator import names, waiting
from lora_dpo_operator.objects import Job, JobSet, ObjectMeta
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.terminations import of_pod


def added(observed: Observed, told: Iterable[Mapping[str, Any]]) -> Observed | None:
    """What was observed, and the children as watches have shown them since.

    Args:
        observed: a job as it was last looked at.
        told: children and pods, as the API server holds them; older ones than were observed are left out.

    Returns:
        None where the job must be looked at.
    """
    verdict = observed.verdict
    if not isinstance(verdict, Accepted) or verdict.queue_name is not None:
        return None
    if observed.settled or observed.retry_asked or observed.trouble is not None or observed.workload is not None:
        return None
    before, found = waiting.watched(observed), observed
    for manifest in told:
        more = _with(found, manifest)
        if more is None:
            return None
        found = more
    if any(pod.unschedulable for pod in found.slice_pods):
        return None
    # Events on another object than before are read at the next look.
    return found if waiting.watched(found) == before else dataclasses.replace(found, warnings=())


def _with(observed: Observed, manifest: Mapping[str, Any]) -> Observed | None:
    match manifest.get("kind"):
        case "JobSet":
            return _with_jobset(observed, JobSet.model_validate(manifest))
        case "Job":
            return _with_job(observed, Job.model_validate(manifest))
        case "Pod":
            return _with_pod(observed, Pod.model_validate(manifest))
        case _:
            return None


def _with_jobset(observed: Observed, jobset: JobSet) -> Observed | None:
    before = observed.jobset
    if before is None or before.metadata.uid != jobset.metadata.uid or not _stays(jobset.metadata):
        return None
    newer = _newer(jobset.metadata, before.metadata)
    if not newer:
        return observed if newer is False else None
    steady = before.suspended == jobset.suspended and before.status.restarts == jobset.status.restarts
    if not steady or jobset.ended or jobset.restarting:
        return None
    return dataclasses.replace(observed, jobset=jobset)


def _with_job(observed: Observed, job: Job) -> Observed | None:
    told = [one.type for one in job.status.conditions if one.status == "True"]
    if not _stays(job.metadata) or told not in ([], ["Suspended"]):
        return None
    for field, before in (("prepare", observed.prepare), ("export", observed.export)):
        if before is not None and before.metadata.uid == job.metadata.uid:
            newer = _newer(job.metadata, before.metadata)
            if newer is None or before.spec.suspend != job.spec.suspend:
                return None
            return dataclasses.replace(observed, **{field: job}) if newer else observed  # type: ignore[arg-type]
    if observed.jobset is None or not job.metadata.owned_by(observed.jobset.metadata.uid):
        return None
    jobs = _replaced(observed.slice_jobs, job)
    return None if jobs is None else dataclasses.replace(observed, slice_jobs=jobs)


def _with_pod(observed: Observed, pod: Pod) -> Observed | None:
    if pod.job_uid != observed.metadata.uid or not _stays(pod.metadata) or of_pod(pod) is not None:
        return None
    pods = _replaced(observed.pods, pod)
    return None if pods is None else dataclasses.replace(observed, pods=pods)


def _stays(metadata: ObjectMeta) -> bool:
    """Whether it is neither on its way out nor Kueue's to start."""
    return metadata.deletion_timestamp is None and names.QUEUE_LABEL not in metadata.labels


def _replaced[T: Job | Pod](held: tuple[T, ...], one: T) -> tuple[T, ...] | None:
    """With the newer of two versions; None where it cannot be told which that is."""
    for index, before in enumerate(held):
        if before.metadata.uid == one.metadata.uid:
            newer = _newer(one.metadata, before.metadata)
            if newer is None:
                return None
            return (*held[:index], one, *held[index + 1 :]) if newer else held
    return (*held, one)


def _newer(one: ObjectMeta, other: ObjectMeta) -> bool | None:
    """Whether one is newer than the other; None where that cannot be told.

    Versions of one object are numbers that grow.
    https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
    """
    versions = (one.resource_version, other.resource_version)
    if not all(version.isdecimal() for version in versions):
        return None
    return int(versions[0]) > int(versions[1])
