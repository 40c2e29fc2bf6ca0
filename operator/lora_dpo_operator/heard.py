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
    versions = dict(observed.versions)
    for manifest in told:
        metadata = ObjectMeta.model_validate(manifest["metadata"])
        newer = _newer(metadata.resource_version, versions.get(metadata.uid))
        if newer is False:
            continue
        more = _with(found, manifest) if newer and _stays(metadata) else None
        if more is None:
            return None
        found, versions[metadata.uid] = more, metadata.resource_version
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
    if before is None or before.metadata.uid != jobset.metadata.uid:
        return None
    steady = before.suspended == jobset.suspended and before.status.restarts == jobset.status.restarts
    if not steady or jobset.ended or jobset.restarting:
        return None
    return dataclasses.replace(observed, jobset=jobset)


def _with_job(observed: Observed, job: Job) -> Observed | None:
    told = [one.type for one in job.status.conditions if one.status == "True"]
    if told not in ([], ["Suspended"]):
        return None
    for field, before in (("prepare", observed.prepare), ("export", observed.export)):
        if before is not None and before.metadata.uid == job.metadata.uid:
            steady = before.spec.suspend == job.spec.suspend
            return dataclasses.replace(observed, **{field: job}) if steady else None  # type: ignore[arg-type]
    if observed.jobset is None or not job.metadata.owned_by(observed.jobset.metadata.uid):
        return None
    return dataclasses.replace(observed, slice_jobs=_replaced(observed.slice_jobs, job))


def _with_pod(observed: Observed, pod: Pod) -> Observed | None:
    if pod.job_uid != observed.metadata.uid or of_pod(pod) is not None:
        return None
    return dataclasses.replace(observed, pods=_replaced(observed.pods, pod))


def _stays(metadata: ObjectMeta) -> bool:
    """Whether it is neither on its way out nor Kueue's to start."""
    return metadata.deletion_timestamp is None and names.QUEUE_LABEL not in metadata.labels


def _replaced[T: Job | Pod](held: tuple[T, ...], one: T) -> tuple[T, ...]:
    """With it in the place of its earlier version, or at the end."""
    uids = [before.metadata.uid for before in held]
    place = uids.index(one.metadata.uid) if one.metadata.uid in uids else len(held)
    return (*held[:place], one, *held[place + 1 :])


def _newer(version: str, than: str | None) -> bool | None:
    """Whether a version is newer than another, or the first; None where that cannot be told.

    Versions of one object are numbers that grow.
    https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
    """
    if than is None:
        return True
    if version and version == than:
        return False
    return int(version) > int(than) if version.isdecimal() and than.isdecimal() else None
