"""Pods of the trainer: what prepare, slice and export have in common.

All three mount and reference the same things, so that what is missing shows in prepare, before a slice is held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lora_dpo_api import protocol
from lora_dpo_api.protocol import Environment, Phase
from lora_dpo_operator import names
from lora_dpo_operator.blueprint import Blueprint

USER = 65532
"""The image's non-root user."""

EnvVar = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extras:
    """What a phase adds to the common pod."""

    env: tuple[EnvVar, ...] = ()
    ports: tuple[dict[str, Any], ...] = ()
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    grace_seconds: int = 30
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shared_memory: bool = False


def template(blueprint: Blueprint, phase: Phase, extras: Extras) -> dict[str, Any]:
    """A pod template.

    Args:
        blueprint: the job.
        phase: which of the trainer's phases the pod runs.
        extras: what the phase adds.
    """
    user = blueprint.spec.pod_template
    return {
        "metadata": {
            "labels": dict(user.labels) | blueprint.labels(phase),
            "annotations": dict(user.annotations) | dict(extras.annotations),
        },
        "spec": _pod_spec(blueprint, phase, extras),
    }


def value(name: str, content: str) -> EnvVar:
    """An environment variable with a value."""
    return {"name": str(name), "value": content}


def from_annotation(name: str, annotation: str) -> EnvVar:
    """An environment variable with the value of one of the pod's annotations."""
    field = {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"}
    return {"name": str(name), "valueFrom": {"fieldRef": field}}


def from_secret(name: str, secret: str) -> EnvVar:
    """An environment variable with the value of a Secret's key of the same name."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}


def _pod_spec(blueprint: Blueprint, phase: Phase, extras: Extras) -> dict[str, Any]:
    user = blueprint.spec.pod_template
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": extras.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(blueprint, phase, extras)],
        "volumes": _volumes(blueprint, extras),
    }
    optional = {
        "serviceAccountName": user.service_account_name,
        "priorityClassName": blueprint.spec.run_policy.priority_class_name,
        "imagePullSecrets": list(user.image_pull_secrets),
        "nodeSelector": dict(extras.node_selector),
        "tolerations": list(extras.tolerations),
    }
    return spec | {key: content for key, content in optional.items() if content}


def _container(blueprint: Blueprint, phase: Phase, extras: Extras) -> dict[str, Any]:
    user = blueprint.spec.pod_template
    container: dict[str, Any] = {
        "name": names.TRAINER,
        "image": blueprint.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "lora_dpo_trainer"],
        "args": ["--config_path", protocol.CONFIG_FILE, "--phase", phase.value],
        "env": _environment(blueprint, phase, extras.env),
        "terminationMessagePath": protocol.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": protocol.CONFIG_MOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "shm", "mountPath": "/dev/shm"}] if extras.shared_memory else []),
            *user.volume_mounts,
        ],
    }
    optional = {
        "ports": list(extras.ports),
        "envFrom": list(user.env_from),
        "resources": dict(extras.resources),
    }
    return container | {key: content for key, content in optional.items() if content}


def _volumes(blueprint: Blueprint, extras: Extras) -> list[dict[str, Any]]:
    return [
        {"name": "config", "configMap": {"name": blueprint.config_map}},
        {"name": "tmp", "emptyDir": {}},
        *([{"name": "shm", "emptyDir": {"medium": "Memory"}}] if extras.shared_memory else []),
        *blueprint.spec.pod_template.volumes,
    ]


def _environment(blueprint: Blueprint, phase: Phase, extra: Iterable[EnvVar]) -> list[EnvVar]:
    """Operator's settings, then the user's, then the contract: the later one of a name wins."""
    spec = blueprint.spec
    secrets = []
    if spec.hugging_face:
        secrets.append(from_secret("HF_TOKEN", spec.hugging_face.secret_ref))
    if spec.tracking.wandb:
        secrets.append(from_secret("WANDB_API_KEY", spec.tracking.wandb.secret_ref))
    contract = [value("HOME", "/tmp"), value(Environment.PHASE, phase.value), *extra]
    settings = [value(name, content) for name, content in blueprint.trainer_env]
    by_name = {variable["name"]: variable for variable in (*settings, *secrets, *spec.pod_template.env, *contract)}
    return list(by_name.values())
