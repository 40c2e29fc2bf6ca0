"""The objects that the operator would make of a job, by the operator's own builders."""

from __future__ import annotations

import dataclasses
from typing import Any

from ldj.jobfiles import Document
from lora_dpo_api.resolve import resolve
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator import accept, configmap, export_job, jobset, plan, prepare_job
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.settings import Settings

UID = "00000000-0000-0000-0000-000000000000"
"""In place of the job's uid, which the API server gives."""
DIGEST = "known-after-prepare"
"""In place of the digest of the prepared rows."""

Manifest = dict[str, Any]


def of_job(document: Document, settings: Settings) -> tuple[Manifest, ...]:
    """ConfigMap, prepare Job, JobSet and export Job of one job; nothing where another controller runs it.

    Args:
        document: the job.
        settings: the operator's.

    Raises:
        SpecError: the job is refused.
    """
    job = document.job()
    resolve(job)
    verdict = accept.judge(document.body, settings)
    assert isinstance(verdict, Accepted), "what resolves is accepted"
    if verdict.spec.managed_by is not None:
        return ()
    metadata = job.metadata.model_copy(update={"uid": UID})
    fresh = Observed(metadata=metadata, status=LoraDpoJobStatus(), verdict=verdict)
    blueprint = dataclasses.replace(plan.blueprint_of(fresh, verdict, settings), prepared_digest=DIGEST)
    return (
        configmap.build(blueprint),
        prepare_job.build(blueprint),
        jobset.build(blueprint),
        export_job.build(blueprint),
    )
