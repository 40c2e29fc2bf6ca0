"""What kopf watches, and nothing else: every handler hands over to the service.

No timers, daemons or finalizers: a deleted job's objects go by their owner references, also while the operator is
down. Only `on.event`: the other handlers keep their state in annotations of the job, which costs a write for each and a
copy of the whole spec; the service knows by itself what it has seen. Handlers return nothing, since kopf would write it
to the status.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import kopf

from lora_dpo_api.wire import GROUP, PLURAL, VERSION
from lora_dpo_operator import names
from lora_dpo_operator.service import Service

_OURS = {names.MANAGED_BY_LABEL: names.MANAGER}


@dataclasses.dataclass(frozen=True)
class Dependencies:
    """What handlers get as `memo`. Frozen, because kopf copies it for each object."""

    service: Service


class _NoDiffs(kopf.DiffBaseStorage):
    """Spares kopf the copy of each object that it makes to find differences, for handlers that do not ask for any."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """Nothing to compare."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:
        """Nothing was kept."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing to keep."""


def configure(settings: kopf.OperatorSettings) -> None:
    """Settings of kopf for this operator."""
    # No watching of CRDs and namespaces: fewer rights.
    settings.scanning.disabled = True
    settings.watching.server_timeout, settings.watching.client_timeout = 300, 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    for plural in ("jobsets", "jobs", "pods"):
        settings.watching.label_selectors[plural] = names.SELECTOR
    settings.networking.request_timeout, settings.networking.connect_timeout = 60, 10
    # An idle worker keeps its slot for the idle timeout, and what waits for a slot is held in memory as a whole.
    settings.queueing.worker_limit, settings.queueing.idle_timeout = 50, 0.05
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()


@kopf.on.event(GROUP, VERSION, PLURAL, id="job")
async def job_changed(
    event: kopf.RawEvent, body: kopf.Body, memo: Any, namespace: str | None, name: str, **_: Any
) -> None:
    """A LoraDpoJob is new, has changed, is gone, or was there when the operator started."""
    service, key = _service(memo), (namespace or "", name)
    if event["type"] == "DELETED":
        service.forget([key])
    else:
        await service.changed(key, dict(body))


@kopf.on.event("jobset.x-k8s.io", "v1alpha2", "jobsets", id="jobset", labels=_OURS)
@kopf.on.event("batch", "v1", "jobs", id="batch-job", labels=_OURS)
async def child_changed(
    event: kopf.RawEvent, body: kopf.Body, labels: kopf.Labels, memo: Any, namespace: str | None, **_: Any
) -> None:
    """A JobSet or Job of a job has changed."""
    job = labels.get(names.JOB_LABEL)
    if job:
        await _service(memo).hear((namespace or "", job), dict(body), gone=event["type"] == "DELETED")


@kopf.on.event("", "v1", "pods", id="pod", labels=_OURS)
async def pod_changed(event: kopf.RawEvent, body: kopf.Body, memo: Any, **_: Any) -> None:
    """A pod of a job has changed, or is gone: what it left is captured first."""
    service = _service(memo)
    key = service.capture(dict(body))
    if key:
        await service.hear(key, dict(body), gone=event["type"] == "DELETED")


def _service(memo: Any) -> Service:
    """The service, from kopf's untyped memo."""
    service = memo.service
    assert isinstance(service, Service)
    return service
