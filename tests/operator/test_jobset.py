from __future__ import annotations

import re
from typing import Any

import pytest

from lora_dpo_api.protocol import CONTRACT_EXIT_CODES, FATAL_EXIT_CODES, ExitCode
from lora_dpo_operator import batch, export_job, jobset, pod, prepare_job

from .builders import a_job
from .cases import JOBS, SIMULATED, blueprint

MULTI_HOST = ("v5e-multi-host", "v5p-multislice", "v6e-multislice", "v6e-queued")


def built(name: str) -> dict[str, Any]:
    return jobset.build(blueprint(JOBS[name]))


def slice_job(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]


def pod_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return slice_job(manifest)["spec"]["template"]["spec"]


def environment(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in spec["containers"][0]["env"]
    }


@pytest.mark.parametrize("name", JOBS)
def test_only_slices_of_several_tpu_hosts_claim_a_node_pool(name: str) -> None:
    template = slice_job(built(name))
    assert (jobset.EXCLUSIVE_TOPOLOGY in template["metadata"]["annotations"]) == (name in MULTI_HOST)
    assert jobset.EXCLUSIVE_TOPOLOGY not in built(name)["metadata"]["annotations"]


@pytest.mark.parametrize("name", JOBS)
def test_suspend_is_kueues_where_there_is_a_queue(name: str) -> None:
    assert ("suspend" in built(name)["spec"]) == (name != "v6e-queued")
    assert "ttlSecondsAfterFinished" not in built(name)["spec"]


@pytest.mark.parametrize(
    ("name", "slices", "hosts", "chips", "devices"),
    [
        ("v5e-single-host", 1, 1, "8", "8"),
        ("v5e-multi-host", 1, 4, "4", "16"),
        ("v5p-single-host", 1, 1, "4", "4"),
        ("v5p-multislice", 2, 2, "4", "16"),
        ("v6e-multislice", 2, 4, "4", "32"),
        ("v6e-queued", 1, 2, "4", "8"),
    ],
)
def test_hosts_and_chips_follow_from_the_topology(name: str, slices: int, hosts: int, chips: str, devices: str) -> None:
    manifest = built(name)
    replicated = manifest["spec"]["replicatedJobs"][0]
    job = replicated["template"]["spec"]
    resources = pod_spec(manifest)["containers"][0]["resources"]
    assert replicated["replicas"] == slices
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert resources["requests"]["google.com/tpu"] == resources["limits"]["google.com/tpu"] == chips
    assert environment(pod_spec(manifest))["LORADPO_DEVICES"] == devices


def test_cpu_hosts_are_told_of_each_other_and_tpu_hosts_are_not() -> None:
    assert environment(pod_spec(built("cpu-2x2")))["LORADPO_COORDINATOR"] == "tiny-slice-0-0.tiny:8476"
    assert "LORADPO_COORDINATOR" not in environment(pod_spec(built("v6e-multislice")))
    assert "LORADPO_COORDINATOR" not in environment(pod_spec(built("cpu-one-host")))


def test_a_simulated_slice_runs_on_cpu_on_the_posed_hosts() -> None:
    spec = pod_spec(jobset.build(blueprint(JOBS["v5e-multi-host"], SIMULATED)))
    found = environment(spec)
    assert found["LORADPO_PLATFORM"] == "cpu"
    assert "LORADPO_DEVICES" not in found
    assert found["LORADPO_COORDINATOR"] == "tiny-slice-0-0.tiny:8476"
    assert spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def message_of(code: int) -> str:
    """What the Job controller writes about a container that ended with this code."""
    return f"Container trainer for pod default/x failed with exit code {code} matching FailJob rule at index 1"


def action(message: str, reason: str = "PodFailurePolicy") -> str:
    """What the failure policy does: the first rule that matches, else a restart that counts."""
    for rule in built("v6e-multislice")["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns")
        matches = patterns is None or any(re.search(pattern, message) for pattern in patterns)
        if reason in rule["onJobFailureReasons"] and matches:
            return str(rule["action"])
    return "RestartJobSet"


@pytest.mark.parametrize("code", CONTRACT_EXIT_CODES)
def test_user_errors_fail_at_once_preemption_restarts_free_and_the_rest_counts(code: ExitCode) -> None:
    expected = "RestartJobSet"
    if code in FATAL_EXIT_CODES:
        expected = "FailJobSet"
    if code is ExitCode.PREEMPTED:
        expected = "RestartJobSetAndIgnoreMaxRestarts"
    assert action(message_of(code)) == expected


def test_a_host_that_is_taken_away_restarts_free() -> None:
    message = "Pod default/x has condition DisruptionTarget matching FailJob rule at index 0"
    assert action(message) == "RestartJobSetAndIgnoreMaxRestarts"


def test_a_crash_counts_and_the_deadline_ends_the_job() -> None:
    assert action("Job has reached the specified backoff limit", "BackoffLimitExceeded") == "RestartJobSet"
    assert action("Job was active longer than specified deadline", "DeadlineExceeded") == "FailJobSet"


@pytest.mark.parametrize("build", [jobset.build, prepare_job.build, export_job.build])
def test_pods_meet_the_restricted_standard_and_hold_no_credentials(build: Any) -> None:
    manifest = build(blueprint(JOBS["v6e-everything"]))
    spec = pod_spec(manifest) if manifest["kind"] == "JobSet" else manifest["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsUser"] == pod.USER == 65532
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]


@pytest.mark.parametrize("build", [jobset.build, prepare_job.build, export_job.build])
def test_every_phase_needs_what_the_slice_needs(build: Any) -> None:
    manifest = build(blueprint(JOBS["v6e-everything"]))
    spec = pod_spec(manifest) if manifest["kind"] == "JobSet" else manifest["spec"]["template"]["spec"]
    found = environment(spec)
    assert found["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "HF_TOKEN"}}
    assert found["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "data"}} in spec["volumes"]
    assert spec["serviceAccountName"] == "trainer"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


def test_the_users_environment_wins_over_the_operators_and_the_contract_over_both() -> None:
    raw = a_job({"podTemplate": {"env": [{"name": "A", "value": "user"}, {"name": "LORADPO_PLATFORM", "value": "x"}]}})
    found = environment(pod_spec(jobset.build(blueprint(raw, SIMULATED))))
    assert (found["A"], found["B"], found["LORADPO_PLATFORM"]) == ("user", "operator", "cpu")


def test_prepare_is_not_tried_again_where_the_trainer_has_spoken() -> None:
    rules = batch.one_pod_job(blueprint(a_job()), prepare_job.Phase.PREPARE, name="x")["spec"]["podFailurePolicy"][
        "rules"
    ]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert rules[1]["onExitCodes"]["values"] == [64, 65, 69, 70, 73, 76, 77, 78]
