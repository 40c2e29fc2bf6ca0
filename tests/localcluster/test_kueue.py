"""Kueue's own manifests, fitted to a cluster that has no registry and no certificate manager."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_localcluster import controllers, kueue

SERVICE = {"service": {"name": "kueue-webhook-service", "namespace": "kueue-system", "path": "/mutate"}}


def hook(name: str) -> dict[str, Any]:
    return {"name": name, "clientConfig": SERVICE}


def named(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}} | fields


SOURCE = (
    named("Namespace", "kueue-system"),
    named("APIService", "v1beta1.visibility.kueue.x-k8s.io"),
    named("ConfigMap", "kueue-manager-config", data={"controller_manager_config.yaml": "theirs"}),
    named("Secret", "kueue-webhook-server-cert"),
    named("MutatingWebhookConfiguration", "m", webhooks=[hook("mpod.kb.io"), hook("mjobset.kb.io")]),
    named(
        *("Deployment", "kueue-controller-manager"),
        spec={
            "template": {
                "spec": {
                    "securityContext": {"runAsNonRoot": True},
                    "containers": [{"image": "theirs", "volumeMounts": [{"name": "cert"}], "readinessProbe": {}}],
                }
            }
        },
    ),
)


@pytest.fixture
def made() -> dict[str, dict[str, Any]]:
    source = "---\n".join(yaml12.dumps(item) for item in SOURCE)
    found = kueue.manifests(
        source, "localhost/kueue:1", controllers.certificate("kueue-webhook-service.kueue-system.svc")
    )
    return {item["kind"]: item for item in found}


def test_what_needs_an_aggregated_api_is_left_out(made: dict[str, dict[str, Any]]) -> None:
    # An aggregated API that does not answer keeps every namespace from being deleted.
    assert "APIService" not in made
    configuration = json.loads(made["ConfigMap"]["data"]["controller_manager_config.yaml"])
    assert configuration["featureGates"]["VisibilityOnDemand"] is False


def test_no_webhook_stands_before_pods(made: dict[str, dict[str, Any]]) -> None:
    assert [found["name"] for found in made["MutatingWebhookConfiguration"]["webhooks"]] == ["mjobset.kb.io"]


def test_webhooks_trust_the_certificate_that_the_controller_gets(made: dict[str, dict[str, Any]]) -> None:
    config = made["MutatingWebhookConfiguration"]["webhooks"][0]["clientConfig"]
    assert config["service"] == SERVICE["service"]
    assert config["caBundle"] == made["Secret"]["data"]["ca.crt"]
    assert b"BEGIN CERTIFICATE" in base64.b64decode(made["Secret"]["data"]["tls.crt"])


def test_the_image_is_the_one_that_the_nodes_have(made: dict[str, dict[str, Any]]) -> None:
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("localhost/kueue:1", "IfNotPresent")
