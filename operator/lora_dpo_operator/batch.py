"""The one-pod Jobs around the slice: how prepare and export retry."""

from __future__ import annotations

from typing import Any

from lora_dpo_api import durations
from lora_dpo_api.protocol import CONTRACT_EXIT_CODES, Environment, ExitCode, Phase
from lora_dpo_operator import names, pod
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest

RETRIES = 3
"""Of a crash, or of a node that went away under the pod. What the trainer says itself is final."""

_FINAL_EXIT_CODES = [int(code) for code in CONTRACT_EXIT_CODES if code is not ExitCode.PREEMPTED]


def one_pod_job(blueprint: Blueprint, phase: Phase, *, name: str, env: tuple[pod.EnvVar, ...] = ()) -> Manifest:
    """A Job of one pod on ordinary nodes.

    Args:
        blueprint: the job.
        phase: prepare or export.
        name: the Job's name.
        env: environment variables of this phase.
    """
    prepare = blueprint.spec.prepare
    extras = pod.Extras(
        env=(pod.value(Environment.PLATFORM, "cpu"), *_shape(blueprint), *env),
        resources=prepare.resources or {},
        node_selector=prepare.node_selector,
        tolerations=prepare.tolerations,
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": blueprint.metadata(name, blueprint.labels(phase)),
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": durations.seconds(prepare.timeout),
            "suspend": blueprint.spec.run_policy.suspend,
            "podFailurePolicy": _pod_failure_policy(),
            "template": pod.template(blueprint, phase, extras),
        },
    }


def _shape(blueprint: Blueprint) -> tuple[pod.EnvVar, ...]:
    """The slice's shape: prepare packs rows for it."""
    hardware = blueprint.placement.hardware
    shape = (
        pod.value(Environment.SLICES, str(hardware.slices)),
        pod.value(Environment.HOSTS, str(hardware.hosts)),
    )
    devices = blueprint.placement.devices
    return shape + ((pod.value(Environment.DEVICES, str(devices)),) if devices else ())


def _pod_failure_policy() -> dict[str, Any]:
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": names.TRAINER, "operator": "In", "values": _FINAL_EXIT_CODES},
            },
        ]
    }
