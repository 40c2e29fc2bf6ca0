"""What to do next for one job: from what was observed to actions. Pure, and safe to repeat.

Nothing is made twice: every object has one name, and is made only where it was not seen. An object that appears in
between is met as a conflict, and taken where it is this job's.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

from lora_dpo_api import durations
from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase
from lora_dpo_operator import configmap, export_job, jobset, lifetime, names, network_policy, prepare_job, renewal
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import CONFIG_MAPS, JOBS, JOBSETS, LORA_DPO_JOBS, NETWORK_POLICIES, Manifest, Resource
from lora_dpo_operator.holding import Hold
from lora_dpo_operator.objects import Job, JobSet
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.settings import Settings


@dataclasses.dataclass(frozen=True)
class Create:
    """Make an object, once."""

    resource: Resource
    manifest: Manifest


@dataclasses.dataclass(frozen=True)
class SetSuspend:
    """Suspend or resume."""

    resource: Resource
    name: str
    suspend: bool


@dataclasses.dataclass(frozen=True)
class Delete:
    """Delete an object.

    Attributes:
        foreground: it stays until what it owns is gone.
        uid: delete this one only, not one that was made anew under its name.
    """

    resource: Resource
    name: str
    foreground: bool = False
    uid: str = ""


@dataclasses.dataclass(frozen=True)
class SetDeadline:
    """Say when Kubernetes ends a Job by itself, should the operator be away then."""

    name: str
    seconds: int


@dataclasses.dataclass(frozen=True)
class SetActive:
    """Take a Workload out of its queue, or put it back: the way to suspend what Kueue has."""

    name: str
    active: bool


Action = Create | SetSuspend | SetActive | Delete | SetDeadline

AWAY_SECONDS = 300
"""How long after the operator Kubernetes ends a slice whose time is up."""


def actions(observed: Observed, settings: Settings) -> tuple[Action, ...]:
    """What to do, in this order; nothing for a job that is refused, finished or being deleted."""
    verdict = observed.verdict
    if not isinstance(verdict, Accepted) or observed.settled or observed.metadata.deletion_timestamp is not None:
        return ()
    if renewal.wanted(observed):
        return _cleared(observed)
    blueprint = blueprint_of(observed, verdict, settings)
    if observed.prepared is None:
        return _prepare(observed, blueprint)
    if not observed.trained:
        return _train(observed, blueprint)
    return _export(observed, blueprint)


def release(observed: Observed, now: datetime.datetime) -> tuple[Delete, ...]:
    """What a finished job still holds, or the job itself once its time is over.

    Of a failed one the JobSet, unless it has ended by itself: then it stays, for its logs can be read.
    """
    if observed.metadata.deletion_timestamp is not None or observed.retry_asked:
        return ()
    expiry = lifetime.expires_at(observed)
    if expiry is not None and expiry <= now:
        return (Delete(LORA_DPO_JOBS, observed.metadata.name, uid=observed.metadata.uid),)
    found = observed.jobset
    if observed.status.phase is not JobPhase.FAILED or found is None or found.ended:
        return ()
    return (Delete(JOBSETS, found.metadata.name),) if found.metadata.deletion_timestamp is None else ()


def _cleared(observed: Observed) -> tuple[Delete, ...]:
    """Take away what keeps a job from being started again."""
    return tuple(
        Delete(JOBSETS if isinstance(child, JobSet) else JOBS, child.metadata.name, foreground=True)
        for child in renewal.in_the_way(observed)
        if child.metadata.deletion_timestamp is None
    )


def blueprint_of(observed: Observed, verdict: Accepted, settings: Settings) -> Blueprint:
    """Everything the builders need. Image and configuration stay those that the job was started with."""
    name = observed.metadata.name
    return Blueprint(
        name=name,
        namespace=observed.metadata.namespace,
        uid=observed.metadata.uid,
        spec=verdict.spec,
        placement=verdict.placement,
        verdict=verdict,
        config_map=observed.pinned_config_map or names.config_map(name, verdict.config),
        image=observed.running_image or verdict.spec.pod_template.image or settings.trainer_image,
        spec_hash=observed.status.spec_hash or verdict.spec_hash,
        trainer_env=settings.trainer_env,
        progress_peers=settings.progress_peers,
        queue_name=verdict.queue_name,
        queue_labels=verdict.queue_labels,
        prepared_digest=observed.prepared.digest if observed.prepared else "",
        restarts_before=observed.status.restarts,
        preemptions_before=observed.status.preemptions,
    )


def _prepare(observed: Observed, blueprint: Blueprint) -> tuple[Action, ...]:
    job = observed.prepare
    if job is None:
        return (*_around(blueprint), Create(JOBS, prepare_job.build(blueprint)))
    if job.failed or job.metadata.deletion_timestamp is not None:
        return ()
    if job.complete:
        # Its pod is gone, and its report with it: run it again, which costs little where its output exists.
        lost = not any(end.succeeded for end in observed.ends(Phase.PREPARE))
        return (Delete(JOBS, job.metadata.name),) if lost else ()
    return (*_lost_config(observed, blueprint), *_suspended(observed, JOBS, job))


def _train(observed: Observed, blueprint: Blueprint) -> tuple[Action, ...]:
    found = observed.jobset
    if found is None and observed.pods_of(Phase.TRAIN):
        # Pods of a JobSet that was deleted still end: two slices must not write to one output.
        return ()
    if found is None and blueprint.queue_name and observed.wants_suspension:
        # Kueue would start it, since a JobSet in a queue cannot be made suspended.
        return ()
    if found is None:
        return (*_around(blueprint), Create(JOBSETS, jobset.build(blueprint)))
    if found.metadata.deletion_timestamp is not None:
        return ()
    if found.failed:
        return ()
    ends = _deadlines(observed, durations.seconds(blueprint.spec.run_policy.active_deadline))
    lost = _lost_config(observed, blueprint)
    changes = _suspended(observed, JOBSETS, found)
    resumes = any(isinstance(action, SetSuspend) and not action.suspend for action in changes)
    # Whatever became of the ConfigMap meanwhile, hosts must not be held waiting for it.
    return (*(_config(blueprint) if resumes else lost), *changes, *ends)


def _deadlines(observed: Observed, active: int) -> Iterator[SetDeadline]:
    """Once the slice is held, its Jobs end a little after `activeDeadline` even with no operator there.

    A Job's own clock starts when it is made, and would count the wait for capacity too.
    """
    due = Hold(since=observed.status.held_since, before=observed.status.active_seconds or 0).end_after(active)
    for job in observed.slice_jobs:
        if due is None or job.status.start_time is None or job.ended:
            continue
        seconds = max(1, round((due - job.status.start_time).total_seconds()) + AWAY_SECONDS)
        if job.spec.active_deadline_seconds != seconds:
            yield SetDeadline(job.metadata.name, seconds)


def _export(observed: Observed, blueprint: Blueprint) -> tuple[Action, ...]:
    if observed.export is None:
        return (*_around(blueprint), Create(JOBS, export_job.build(blueprint)))
    return _lost_config(observed, blueprint)


def _around(blueprint: Blueprint) -> tuple[Action, ...]:
    """What has to be there before the pods of a phase."""
    guarded = (Create(NETWORK_POLICIES, network_policy.build(blueprint)),) if blueprint.progress_peers else ()
    return (*guarded, *_config(blueprint))


def _config(blueprint: Blueprint) -> tuple[Action, ...]:
    """The ConfigMap, where its content is still the one that the job was started with."""
    current = names.config_map(blueprint.name, blueprint.config)
    return (Create(CONFIG_MAPS, configmap.build(blueprint)),) if current == blueprint.config_map else ()


def _lost_config(observed: Observed, blueprint: Blueprint) -> tuple[Action, ...]:
    """The ConfigMap once more, where a pod waits for it: someone has deleted it."""
    said = [event.message for event in observed.warnings] + [pod.stuck.message for pod in observed.pods if pod.stuck]
    missing = f'configmap "{blueprint.config_map}" not found'
    return _config(blueprint) if any(missing in message for message in said) else ()


def _suspended(observed: Observed, resource: Resource, child: Job | JobSet) -> tuple[Action, ...]:
    """Suspend or resume as the user wants; of what is in a queue, Kueue owns `suspend`."""
    wanted, workload = observed.wants_suspension, observed.workload
    if not observed.in_queue(child):
        return (SetSuspend(resource, child.metadata.name, wanted),) if child.spec.suspend != wanted else ()
    if workload is None:
        return ()
    if wanted and workload.spec.active:
        return (SetActive(workload.metadata.name, active=False),)
    # What Kueue or an administrator took out of the queue is theirs to put back.
    return (SetActive(workload.metadata.name, active=True),) if not wanted and workload.suspended_by_us else ()
