"""Names, labels and annotations of what the operator makes.

A user finds everything of a job by its label, and the operator by its names: neither needs a list in the status.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lora_dpo_api.protocol import Phase
from lora_dpo_api.wire import GROUP

MANAGER = "lora-dpo-operator"
"""Value of `app.kubernetes.io/managed-by`, and the field manager of server-side apply."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
JOB_LABEL = f"{GROUP}/job"
JOB_UID_LABEL = f"{GROUP}/job-uid"
"""Tells a job's pods from those of a job of the same name that was deleted before."""
PHASE_LABEL = f"{GROUP}/phase"
SPEC_HASH_ANNOTATION = f"{GROUP}/spec-hash"
CONFIG_MAP_ANNOTATION = f"{GROUP}/config-map"
RESTARTS_ANNOTATION = f"{GROUP}/restarts-before"
PREEMPTIONS_ANNOTATION = f"{GROUP}/preemptions-before"
"""On a JobSet that was made again because someone deleted it: what was counted until then."""

KUEUE = "kueue.x-k8s.io"
"""API group of Kueue, and the prefix of its labels."""
KUEUE_NAMESPACE = "kueue-system"
QUEUE_LABEL = f"{KUEUE}/queue-name"
WORKLOAD_OF = f"{KUEUE}/job-uid"
"""Label of a Workload: the uid of the Job or JobSet that it stands for."""
SUSPENDED_ANNOTATION = f"{GROUP}/suspended"
"""On a Workload that the operator deactivated: only those does it activate again."""

JOBSET_NAME_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_INDEX = "jobset.sigs.k8s.io/job-index"
RESTART_ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"

SLICE = "slice"
"""The replicated job of the JobSet: one child Job a slice, one pod a host."""

TRAINER = "trainer"
"""The container, in every phase."""

CONFIG_KEY = "config.yaml"

SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER}"


def prepare_job(job: str) -> str:
    """Name of the Job that prepares."""
    return f"{job}-prepare"


def export_job(job: str) -> str:
    """Name of the Job that exports."""
    return f"{job}-export"


def jobset(job: str) -> str:
    """Name of the JobSet that trains: the job's own, so that its host names stay short."""
    return job


def network_policy(job: str) -> str:
    """Name of the NetworkPolicy of its pods."""
    return job


def config_map(job: str, content: str) -> str:
    """Name of the ConfigMap with a resolved configuration: another content, another name."""
    return f"{job}-config-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def labels(job: str, uid: str, phase: Phase | None = None) -> dict[str, str]:
    """Labels of an object of a job, and of its pods."""
    common = {MANAGED_BY_LABEL: MANAGER, JOB_LABEL: job, JOB_UID_LABEL: uid}
    return common if phase is None else {**common, PHASE_LABEL: phase.value}


def job_selector(job: str) -> str:
    """Label selector for everything of one job."""
    return f"{SELECTOR},{JOB_LABEL}={job}"


def spec_hash(spec: dict[str, Any]) -> str:
    """Digest of what the pods are made from: 16 hex digits."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
