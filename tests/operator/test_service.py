"""What the service knows of the jobs, as the metrics show it."""

from __future__ import annotations

import datetime

from kubernetes.aio import client as kube

from lora_dpo_api.status import LoraDpoJobStatus
from lora_dpo_operator import names
from lora_dpo_operator.gateway import Gateway
from lora_dpo_operator.metrics import Instruments
from lora_dpo_operator.service import Service

from .builders import NAME, NAMESPACE, SETTINGS, UID, a_job


async def test_a_pod_alone_makes_no_job() -> None:
    gateway = Gateway(kube.ApiClient(kube.Configuration()))
    service = Service(gateway, SETTINGS, Instruments(), clock=lambda: datetime.datetime.now(datetime.UTC))
    try:
        metadata = {"name": "p", "namespace": NAMESPACE, "uid": "u", "labels": names.labels(NAME, UID)}
        assert service.capture({"metadata": metadata}) == (NAMESPACE, NAME)
        assert service.snapshot() == {}
        service.note(a_job())
        assert service.snapshot() == {(NAMESPACE, NAME): LoraDpoJobStatus()}
        service.forget(known=set())
        assert service.snapshot() == {}
    finally:
        await gateway.close()
