"""The JobSet: one child Job a slice, one pod a host, the whole gang restarted together.

Created once and never applied again, with every field that its webhook would default written out: Kueue owns node
selectors, tolerations and `suspend` of a queued one, and nearly everything else is immutable.
https://jobset.sigs.k8s.io/docs/concepts/
"""

from __future__ import annotations

from typing import Any

from lora_dpo_api import durations, protocol
from lora_dpo_api.protocol import CONTRACT_EXIT_CODES, FATAL_EXIT_CODES, Environment, ExitCode, Phase
from lora_dpo_api.spec_running import RunPolicy
from lora_dpo_api.tpu import CHIP_RESOURCE
from lora_dpo_operator import names, pod
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest

EXCLUSIVE_TOPOLOGY = "alpha.jobset.sigs.k8s.io/exclusive-topology"
NODE_POOL = "cloud.google.com/gke-nodepool"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"

USER_ERROR_RULE = "userError"
DEADLINE_RULE = "deadline"
DISRUPTION_RULE = "disruption"
"""Rule names: the JobSet's condition RestartingJobSet has the reason `FailurePolicy_<name>`."""

GRACE_SECONDS = 60
"""Longest time for the last checkpoint when a host is taken away; spot capacity gives less, whatever is asked."""

LONGEST_WAIT = 7 * 86_400
"""Seconds for which a slice without `queueTimeout` may wait for capacity while the operator is away."""

_TPU_PORTS = (
    {"name": "tpu", "containerPort": 8471},
    {"name": "megascale", "containerPort": 8080},
    {"name": "tpu-metrics", "containerPort": 8431},
)


def build(blueprint: Blueprint) -> Manifest:
    """The manifest. Needs the blueprint's `prepared_digest`."""
    labels = blueprint.labels(Phase.TRAIN)
    before = {
        names.RESTARTS_ANNOTATION: blueprint.restarts_before,
        names.PREEMPTIONS_ANNOTATION: blueprint.preemptions_before,
    }
    counted = {name: str(count) for name, count in before.items() if count}
    queued = {**blueprint.queue_labels, names.QUEUE_LABEL: blueprint.queue_name} if blueprint.queue_name else {}
    spec: dict[str, Any] = {
        "network": {
            "enableDNSHostnames": True,
            "publishNotReadyAddresses": True,
            "subdomain": names.jobset(blueprint.name),
        },
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "failurePolicy": _failure_policy(max(0, blueprint.spec.run_policy.max_restarts - blueprint.restarts_before)),
        "replicatedJobs": [_slices(blueprint)],
    }
    if not blueprint.queue_name:
        spec["suspend"] = blueprint.spec.run_policy.suspend
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": blueprint.metadata(names.jobset(blueprint.name), labels | queued, counted),
        "spec": spec,
    }


def _slices(blueprint: Blueprint) -> dict[str, Any]:
    hardware = blueprint.placement.hardware
    exclusive = {EXCLUSIVE_TOPOLOGY: NODE_POOL} if blueprint.placement.exclusive else {}
    return {
        "name": names.SLICE,
        "groupName": "default",
        "replicas": hardware.slices,
        "template": {
            # On the slice's template, not on the JobSet: only there does JobSet keep it from other replicated jobs.
            "metadata": {"labels": blueprint.labels(Phase.TRAIN), "annotations": exclusive},
            "spec": {
                "parallelism": hardware.hosts,
                "completions": hardware.hosts,
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "activeDeadlineSeconds": _longest(blueprint.spec.run_policy),
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": _pod_failure_policy(),
                "template": pod.template(blueprint, Phase.TRAIN, _extras(blueprint)),
            },
        },
    }


def _longest(policy: RunPolicy) -> int:
    """Seconds after which the slice's Job ends even with no operator there; from its making, so the wait counts.

    Once the slice is held, the operator writes the exact time into the Job.
    """
    wait = durations.seconds(policy.queue_timeout) if policy.queue_timeout else LONGEST_WAIT
    return wait + durations.seconds(policy.active_deadline)


def _extras(blueprint: Blueprint) -> pod.Extras:
    placement = blueprint.placement
    user = blueprint.spec.pod_template
    ports = (
        {"name": "metrics", "containerPort": protocol.PROGRESS_PORT},
        {"name": "coordinator", "containerPort": protocol.COORDINATOR_PORT},
    )
    return pod.Extras(
        env=_environment(blueprint),
        ports=ports + (_TPU_PORTS if placement.on_tpu_nodes else ()),
        resources=_resources(blueprint),
        node_selector=dict(user.node_selector) | placement.node_selector,
        tolerations=(*placement.tolerations, *user.tolerations),
        grace_seconds=GRACE_SECONDS,
        annotations={SAFE_TO_EVICT: "false"},
        shared_memory=True,
    )


def _environment(blueprint: Blueprint) -> tuple[pod.EnvVar, ...]:
    placement = blueprint.placement
    hardware = placement.hardware
    name = names.jobset(blueprint.name)
    variables = [
        pod.value(Environment.PREPARED_DIGEST, blueprint.prepared_digest),
        pod.value(Environment.PLATFORM, placement.platform.value),
        pod.value(Environment.SLICES, str(hardware.slices)),
        pod.value(Environment.HOSTS, str(hardware.hosts)),
        pod.from_annotation(Environment.SLICE_INDEX, names.JOB_INDEX),
        pod.from_annotation(Environment.RESTART_ATTEMPT, names.RESTART_ATTEMPT),
    ]
    if placement.devices:
        variables.append(pod.value(Environment.DEVICES, str(placement.devices)))
    if placement.needs_coordinator:
        address = f"{name}-{names.SLICE}-0-0.{name}:{protocol.COORDINATOR_PORT}"
        variables.append(pod.value(Environment.COORDINATOR, address))
    return tuple(variables)


def _resources(blueprint: Blueprint) -> dict[str, Any]:
    """The user's, with the slice's chips in requests and limits: both must name all of a host's."""
    spec = blueprint.spec
    given = spec.cpu.resources if spec.cpu else spec.pod_template.resources
    resources = {key: dict(content) for key, content in (given or {}).items()}
    if blueprint.placement.on_tpu_nodes:
        chips = {CHIP_RESOURCE: str(blueprint.placement.hardware.chips_per_host)}
        for key in ("requests", "limits"):
            resources[key] = resources.get(key, {}) | chips
    return resources


def _pod_failure_policy() -> dict[str, Any]:
    """Fail the slice's Job at once and say why: the failure policy reads its message."""
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "FailJob",
                "onExitCodes": {
                    "containerName": names.TRAINER,
                    "operator": "In",
                    "values": [int(code) for code in CONTRACT_EXIT_CODES],
                },
            },
        ]
    }


def _failure_policy(max_restarts: int) -> dict[str, Any]:
    """What helps no restart fails at once, what is nobody's fault restarts free, the rest counts.

    Job failures of both kinds have the reason PodFailurePolicy; the Job controller's messages tell them apart.
    """
    fatal = "|".join(str(int(code)) for code in FATAL_EXIT_CODES)
    return {
        "maxRestarts": max_restarts,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {
                "name": USER_ERROR_RULE,
                "action": "FailJobSet",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [f"exit code ({fatal}) matching FailJob rule"],
            },
            {"name": DEADLINE_RULE, "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
            {
                "name": DISRUPTION_RULE,
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [
                    "has condition DisruptionTarget matching FailJob rule",
                    f"exit code {int(ExitCode.PREEMPTED)} matching FailJob rule",
                ],
            },
        ],
    }
