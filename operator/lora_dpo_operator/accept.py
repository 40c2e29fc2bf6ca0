"""Whether a LoraDpoJob can run, by the API's own rules: the same ones as in the schema, applied again."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from lora_dpo_api.errors import SpecError
from lora_dpo_api.job import LoraDpoJob, Metadata
from lora_dpo_api.resolve import resolve
from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator import names
from lora_dpo_operator.observed import Accepted, Refused, Verdict
from lora_dpo_operator.placement import place
from lora_dpo_operator.settings import Settings

_NOT_IN_THE_PODS = ("suspend", "ttlAfterFinished", "queueTimeout", "startupTimeout", "activeDeadline")
"""Fields of the run policy that may change without the pods changing."""


def judge(raw: dict[str, Any], settings: Settings) -> Verdict:
    """Parse and resolve a job as the API server holds it."""
    try:
        resolved = resolve(LoraDpoJob.from_body(raw))
    except SpecError as error:
        return Refused(message=str(error))
    spec = resolved.job.spec
    return Accepted(
        spec=spec,
        placement=place(resolved.hardware, spec.tpu, simulate=settings.simulate_tpu and spec.tpu is not None),
        trainer=resolved.config,
        run_id=resolved.job.run_id,
        spec_hash=names.spec_hash(_built_from(resolved.job)),
        queue_name=resolved.queue,
        queue_labels=_of_kueue(resolved.job.metadata.labels),
        notices=resolved.warnings,
    )


def metadata_of(raw: dict[str, Any]) -> Metadata:
    """The job's metadata, whatever its spec is like."""
    return Metadata.model_validate(raw["metadata"])


def status_of(raw: dict[str, Any]) -> LoraDpoJobStatus:
    """The job's status, as this operator or another version of it wrote it."""
    try:
        return LoraDpoJobStatus.model_validate(raw.get("status") or {})
    except ValidationError:
        # Another version wrote it. What matters is in the children, and is derived anew.
        return LoraDpoJobStatus()


def _of_kueue(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name.startswith(f"{names.KUEUE}/")}


def _built_from(job: LoraDpoJob) -> dict[str, Any]:
    spec = job.spec.to_wire()
    policy = {key: value for key, value in spec.get("runPolicy", {}).items() if key not in _NOT_IN_THE_PODS}
    return spec | {"runPolicy": policy}
