"""The objects that the operator would make of a job, by the operator's own builders."""

from __future__ import annotations

from typing import Any

from ldj.jobfiles import Document
from lora_dpo_api.resolve import resolve
from lora_dpo_operator import accept, configmap, export_job, jobset, names, prepare_job
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.observed import Accepted
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
    blueprint = Blueprint(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        uid=UID,
        spec=verdict.spec,
        placement=verdict.placement,
        config=verdict.config,
        config_map=names.config_map(job.metadata.name, verdict.config),
        image=verdict.spec.pod_template.image or settings.trainer_image,
        spec_hash=verdict.spec_hash,
        trainer_env=settings.trainer_env,
        queue_name=verdict.queue_name,
        prepared_digest=DIGEST,
    )
    return (
        configmap.build(blueprint),
        prepare_job.build(blueprint),
        jobset.build(blueprint),
        export_job.build(blueprint),
    )
