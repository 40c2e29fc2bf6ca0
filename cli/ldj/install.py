"""Installs the operator into a cluster: the project's one file, with the images of this checkout."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldj.kubectl import Kubectl
from lora_dpo_api import yaml12

NAMESPACE = "lora-dpo-system"
DEPLOYMENT = "lora-dpo-operator"
CONTAINER = "operator"
MANIFEST = Path("operator", "manifests", "install.yaml")
"""In the project's clone: the operator with its definition, policies and roles."""


def install(kubectl: Kubectl, checkout: Path, *, operator: str, trainer: str, trainer_env: Mapping[str, str]) -> None:
    """Apply everything and wait until the operator is ready.

    Args:
        kubectl: the cluster.
        checkout: the project's clone.
        operator: image of the operator.
        trainer: image of the trainer.
        trainer_env: environment of every trainer pod, such as the address of a storage server.

    Raises:
        KubectlError: something was refused, or the operator isn't ready in time.
    """
    settings = {
        "LORADPO_TRAINER_IMAGE": trainer,
        "LORADPO_TRAINER_ENV": ",".join(f"{name}={value}" for name, value in sorted(trainer_env.items())),
    }
    manifest = (checkout / MANIFEST).read_text()
    kubectl.apply_objects(
        with_settings(found, image=operator, settings=settings) if found["kind"] == "Deployment" else found
        for found in yaml12.loads_all(manifest)
    )
    kubectl.text(["wait", "--for=condition=Established", "--timeout=60s", "crd/loradpojobs.training.loradpo.dev"])
    kubectl.text(
        ["rollout", "status", f"deployment/{DEPLOYMENT}", "--namespace", NAMESPACE, "--timeout=120s"], timeout=150
    )


def with_settings(deployment: Mapping[str, Any], *, image: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The operator's Deployment with another image and with settings in its environment; the rest stays."""
    made: dict[str, Any] = copy.deepcopy(dict(deployment))
    for container in made["spec"]["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            kept = [entry for entry in container.get("env", []) if entry["name"] not in settings]
            container["image"] = image
            container["env"] = kept + [{"name": name, "value": value} for name, value in settings.items()]
    return made
