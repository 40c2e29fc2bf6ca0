"""Builders of what the operator observes: short to write, complete where a decision depends on it."""

from __future__ import annotations

import datetime
import json
from typing import Any

from lora_dpo_api.protocol import Phase, PreparedReport, ProgressReport, TerminationReport, TrainerState
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator import accept, names
from lora_dpo_operator.objects import Job, JobSet
from lora_dpo_operator.observed import Accepted, Observed, Poll
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.settings import Settings
from lora_dpo_operator.terminations import of_pod
from lora_dpo_operator.workloads import Workload

START = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
LATEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)
"""Where the calendar ends."""
UID = "11111111-2222-3333-4444-555555555555"
NAME = "tiny"
NAMESPACE = "team-a"
SETTINGS = Settings(trainer_image="trainer:1")
OWNER = {
    "apiVersion": "training.loradpo.dev/v1alpha1",
    "kind": "LoraDpoJob",
    "name": NAME,
    "uid": UID,
    "controller": True,
}


def at(seconds: int) -> datetime.datetime:
    """So many seconds after the job was made."""
    return START + datetime.timedelta(seconds=seconds)


def when(seconds: int) -> str:
    """The same, as Kubernetes writes it."""
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(base: Any, changes: Any) -> Any:
    """`base` with `changes` laid over it; None takes a field away."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    laid = {key: merged(base.get(key), value) for key, value in changes.items() if value is not None}
    return {key: value for key, value in base.items() if key not in changes} | laid


def wire(model: Any) -> dict[str, Any]:
    """A typed object as the API server holds it."""
    written: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return written


def a_job(
    spec: dict[str, Any] | None = None, *, labels: dict[str, str] | None = None, name: str = NAME
) -> dict[str, Any]:
    """A small valid job on one CPU host, with changes to its spec."""
    base = {
        "initializeFromHf": "gs://models/tiny",
        "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": ["gs://data/train.jsonl"]}}}},
        "lora": {"r": 16},
        "output": {"path": "gs://bucket/runs/tiny"},
        "cpu": {},
    }
    return {
        "apiVersion": "training.loradpo.dev/v1alpha1",
        "kind": "LoraDpoJob",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": UID,
            "generation": 1,
            "creationTimestamp": when(0),
            "labels": labels or {},
        },
        "spec": merged(base, spec or {}),
    }


def condition(kind: str, seconds: int, status: str = "True", reason: str = "", message: str = "") -> dict[str, Any]:
    """A condition of any object."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": when(seconds),
    }


def config_map_name() -> str:
    """Name of the ConfigMap of the small valid job."""
    verdict = accept.judge(a_job(), SETTINGS)
    assert isinstance(verdict, Accepted)
    return names.config_map(NAME, verdict.config)


def _child(name: str, seconds: int, phase: Phase) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "creationTimestamp": when(seconds),
        "labels": names.labels(NAME, UID, phase),
        "annotations": {names.CONFIG_MAP_ANNOTATION: config_map_name()},
        "ownerReferences": [OWNER],
    }


def a_batch_job(
    phase: Phase, created: int, *conditions: dict[str, Any], suspend: bool = False, queue: str | None = None
) -> Job:
    """The prepare or export Job; `queue` where Kueue has put it into one."""
    name = names.prepare_job(NAME) if phase is Phase.PREPARE else names.export_job(NAME)
    containers = [{"name": names.TRAINER, "image": "trainer:0"}]
    return Job.model_validate(
        {
            "metadata": _in_queue(_child(name, created, phase), queue),
            "spec": {"suspend": suspend, "template": {"spec": {"containers": containers}}},
            "status": {"conditions": list(conditions)},
        }
    )


def a_jobset(
    created: int,
    *conditions: dict[str, Any],
    restarts: int = 0,
    counted: int | None = None,
    suspend: bool = False,
    queue: str | None = None,
) -> JobSet:
    """The JobSet; `counted` restarts count towards its limit, by default all of them."""
    return JobSet.model_validate(
        {
            "metadata": _in_queue(_child(NAME, created, Phase.TRAIN), queue),
            "spec": {"suspend": suspend},
            "status": {
                "restarts": restarts,
                "restartsCountTowardsMax": restarts if counted is None else counted,
                "conditions": list(conditions),
            },
        }
    )


def _in_queue(metadata: dict[str, Any], queue: str | None) -> dict[str, Any]:
    labels = {names.QUEUE_LABEL: queue} if queue else {}
    return metadata | {"labels": metadata["labels"] | labels}


def a_workload(
    child: Job | JobSet,
    *conditions: dict[str, Any],
    active: bool = True,
    cluster_queue: str = "",
    annotations: dict[str, str] | None = None,
    checks: tuple[dict[str, str], ...] = (),
) -> Workload:
    """Kueue's Workload of a child.

    Args:
        child: whose it is.
        conditions: its conditions.
        active: whether it may be admitted at all.
        cluster_queue: whose quota it uses.
        annotations: its annotations.
        checks: its admission checks: name, state, message.
    """
    kind = type(child).__name__
    owner = {"kind": kind, "name": child.metadata.name, "uid": child.metadata.uid, "controller": True}
    return Workload.model_validate(
        {
            "metadata": {
                "name": f"{kind.lower()}-{child.metadata.name}-12345",
                "namespace": NAMESPACE,
                "labels": {names.WORKLOAD_OF: child.metadata.uid},
                "annotations": annotations or {},
                "ownerReferences": [owner],
            },
            "spec": {"active": active},
            "status": {
                "conditions": list(conditions),
                "admission": {"clusterQueue": cluster_queue} if cluster_queue else None,
                "admissionChecks": list(checks),
            },
        }
    )


def a_pod(
    phase: Phase,
    created: int = 0,
    *,
    host: int = 0,
    slice_index: int = 0,
    attempt: int = 0,
    scheduled: int | None = None,
    unschedulable: str = "",
    waiting: tuple[str, str] | None = None,
    running: int | None = None,
    deleted: int | None = None,
    ended: tuple[int, int] | None = None,
    message: str | TerminationReport = "",
    reason: str = "",
    disrupted: str = "",
    address: str | None = "10.0.0.7",
    selector: dict[str, str] | None = None,
    requests: dict[str, str] | None = None,
) -> Pod:
    """A pod.

    Args:
        scheduled: when it got its node; by default when it was made, unless `unschedulable`.
        waiting: reason and message of its container.
        running: since when its container runs.
        deleted: since when it is on its way out.
        ended: when its container ended, and its exit code.
        message: its termination message.
        reason: the kubelet's word for the end.
        selector: its node selector.
        requests: what its container requests.
    """
    name = {
        Phase.PREPARE: "prepare-abcde",
        Phase.TRAIN: f"slice-{slice_index}-{host}-abcde",
        Phase.EXPORT: "export-abcde",
    }[phase]
    metadata = _child(f"{NAME}-{name}", created, phase)
    metadata["uid"] += f"-{attempt}-{created}"
    metadata |= {"deletionTimestamp": when(deleted)} if deleted is not None else {}
    if phase is Phase.TRAIN:
        metadata["labels"] |= {
            names.JOB_INDEX: str(slice_index),
            names.COMPLETION_INDEX: str(host),
            names.RESTART_ATTEMPT: str(attempt),
        }
    conditions = (
        [condition("PodScheduled", created, "False", "Unschedulable", unschedulable)]
        if unschedulable
        else [condition("PodScheduled", created if scheduled is None else scheduled)]
    )
    conditions += [condition("DisruptionTarget", created, reason=disrupted)] if disrupted else []
    state: dict[str, Any] = {}
    pod_phase = "Pending"
    if waiting:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    if running is not None:
        state, pod_phase = {"running": {"startedAt": when(running)}}, "Running"
    if ended is not None:
        text = message if isinstance(message, str) else message.to_termination_message()
        terminated = {"startedAt": when(created), "finishedAt": when(ended[0]), "exitCode": ended[1]}
        state = {"terminated": terminated | {"message": text, "reason": reason}}
        pod_phase = "Failed" if ended[1] else "Succeeded"
    container = {"name": names.TRAINER, "ready": running is not None, "imageID": "", "state": state}
    return Pod.model_validate(
        {
            "metadata": metadata,
            "spec": {
                "nodeName": None if unschedulable else "node-1",
                "nodeSelector": selector or {},
                "containers": [{"name": names.TRAINER, "resources": {"requests": requests or {}}}],
            },
            "status": {
                "phase": pod_phase,
                "podIP": address,
                "conditions": conditions,
                "containerStatuses": [container] if state else [],
            },
        }
    )


PREPARED = PreparedReport(
    digest="0123456789abcdef", train_pairs=300, validation_pairs=60, total_steps=20, tokens=12_345
)


def prepare_report() -> TerminationReport:
    """What prepare leaves behind when all is well."""
    return TerminationReport(
        phase=Phase.PREPARE, exit_code=0, reason="Prepared", message="300 pairs", prepared=PREPARED
    )


def progress(
    state: TrainerState = TrainerState.TRAINING,
    *,
    step: int = 3,
    since: int = 40,
    updated: int = 50,
    attempt: int = 0,
    **fields: Any,
) -> ProgressReport:
    """A progress report of rank 0."""
    return ProgressReport(
        run_id=f"{NAMESPACE}/{NAME}",
        attempt=attempt,
        state=state,
        state_since=at(since),
        updated_at=at(updated),
        step=step,
        total_steps=20,
        **fields,
    )


def train_report(exit_code: int = 0, reason: str = "Trained", **fields: Any) -> TerminationReport:
    """What a host of the slice leaves behind."""
    return TerminationReport(
        phase=Phase.TRAIN, exit_code=exit_code, reason=reason, message=fields.pop("message", "said why"), **fields
    )


def prepared_status(**fields: Any) -> LoraDpoJobStatus:
    """The status of a job whose rows are prepared."""
    return LoraDpoJobStatus(prepared=PREPARED, **fields)


def observe(
    raw: dict[str, Any] | None = None,
    *,
    settings: Settings = SETTINGS,
    pods: tuple[Pod, ...] = (),
    gone: tuple[Pod, ...] = (),
    report: ProgressReport | None = None,
    **fields: Any,
) -> Observed:
    """What was observed of a job.

    Args:
        raw: the job; a small valid one by default.
        pods: pods that are there.
        gone: pods whose end was captured, and that are not there any more.
        report: the last polled progress report.
        fields: the rest of `Observed`.
    """
    written = raw or a_job()
    ends = tuple(end for end in map(of_pod, (*gone, *pods)) if end is not None)
    return Observed(
        **{
            "metadata": accept.metadata_of(written),
            "status": LoraDpoJobStatus(),
            "verdict": accept.judge(written, settings),
            "settings": settings,
            "pods": pods,
            "terminations": ends,
            "poll": Poll(report=report),
        }
        | fields
    )


def pretty(value: Any) -> str:
    """For comparing in messages."""
    return json.dumps(value, indent=1, sort_keys=True, default=str)
