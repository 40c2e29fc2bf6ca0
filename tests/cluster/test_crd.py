"""The definition and its policies on a real API server.

Fixtures of the suite: `cluster`, whose `kubeconfig` is a path, and `kubectl(*words, stdin=None)`, which returns the
finished process with its text.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    written: dict[str, Any] = yaml12.loads((ROOT / "tests" / "data" / "api" / "job.yaml").read_text())
    return written | {"metadata": {"name": "probe", "namespace": "default"}}


def applied(kubectl: Kubectl, job: dict[str, Any], section: str, changes: dict[str, Any]) -> str:
    """What the user reads when applying the job with a changed section (a dry run on the server)."""
    spec = job["spec"] | {section: job["spec"].get(section, {}) | changes}
    done = kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(job | {"spec": spec}))
    return done.stdout + done.stderr


@pytest.fixture(autouse=True, scope="module")
def definition(kubectl: Kubectl, job: dict[str, Any]) -> None:
    """The definition and both policies, in force (the API server takes up a new policy within a second or two)."""
    done = kubectl("apply", "-f", str(ROOT / "crds"))
    assert done.returncode == 0, done.stderr
    kubectl("wait", "--for=condition=Established", "crd/loradpojobs.training.loradpo.dev", "--timeout=60s")
    deadline = time.monotonic() + 60
    while "Warning" not in applied(kubectl, job, "lora", {"zeroInitB": False}):
        assert time.monotonic() < deadline, "the admission policies never came into force"


@pytest.fixture
def started(kubectl: Kubectl, job: dict[str, Any]) -> Iterator[str]:
    """A job that another controller runs (so that no operator touches it), in phase Running."""
    spec = job["spec"] | {"managedBy": "example.com/nobody"}
    metadata = {"name": "immutable", "namespace": "default"}
    kubectl("apply", "-f", "-", stdin=json.dumps(job | {"metadata": metadata, "spec": spec}))
    kubectl("patch", "ldj", "immutable", "--subresource=status", "--type=merge", "-p", '{"status":{"phase":"Running"}}')
    yield "immutable"
    kubectl("delete", "ldj", "immutable", "--wait=true")


def changed(kubectl: Kubectl, name: str, spec: dict[str, Any], *words: str) -> str:
    done = kubectl("patch", "ldj", name, "--type=merge", "-p", json.dumps({"spec": spec}), *words)
    return done.stdout + done.stderr


def test_the_whole_spec_is_taken(kubectl: Kubectl, job: dict[str, Any]) -> None:
    done = kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(job))
    assert "loradpojob.training.loradpo.dev/probe created" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("section", "changes", "path", "message"),
    [
        ("cpu", {}, "spec.tpu", "exactly one of tpu"),
        ("optimizer", {"learningRate": 2e-4}, "spec.optimizer.learningRate", "must be at most 5e-5"),
        ("optimizer", {"warmupSteps": 5}, "spec.optimizer.warmupSteps", "exclude each other"),
        ("trainer", {"numEpochs": 1}, "spec.trainer.numEpochs", "exclude each other"),
        ("lora", {"r": 0}, "spec.lora.r", "greater than or equal to 1"),
        ("lora", {"rank": 8}, "spec.lora.rank", "unknown field"),
        ("lora", {"aInitMode": "zero"}, "spec.lora.aInitMode", "both factors at zero"),
        ("output", {"path": "memory://x"}, "spec.output.path", "memory://x must be a folder in a bucket"),
        ("tpu", {"machineType": "ct5p-hightpu-4t", "acceleratorType": "v5p-8"}, "spec.tpu.acceleratorType", "excludes"),
        ("tpu", {"capacity": {"type": "reservation"}}, "spec.tpu.capacity.reservation", "needs the name"),
        ("data", {"trainWeights": {"other": 1}}, "spec.data.trainWeights", "may only name components"),
        ("runPolicy", {"activeDeadline": "0h"}, "spec.runPolicy.activeDeadline", "should match"),
    ],
)
def test_an_impossible_field_never_enters(
    section: str, changes: dict[str, Any], path: str, message: str, kubectl: Kubectl, job: dict[str, Any]
) -> None:
    said = applied(kubectl, job, section, changes)
    assert path in said
    assert message in said
    assert "created" not in said


def test_a_name_that_is_too_long_never_enters(kubectl: Kubectl, job: dict[str, Any]) -> None:
    named = job | {"metadata": {"name": "a" * 46, "namespace": "default"}}
    done = kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(named))
    assert "must have at most 45" in done.stderr


@pytest.mark.parametrize(
    ("section", "changes", "warning"),
    [
        ("lora", {"zeroInitB": False}, "spec.lora.zeroInitB: false is forced to true"),
        ("lora", {"alpha": 16}, "spec.lora.alpha: differs from r=64"),
        ("lora", {"r": 128, "alpha": 128}, "spec.lora.rsLora: rank 128 is above 64"),
        ("optimizer", {"learningRate": 3e-5}, "spec.optimizer.learningRate: 3e-05 is above the guide's range"),
    ],
)
def test_the_guides_advice_is_a_warning_at_apply(
    section: str, changes: dict[str, Any], warning: str, kubectl: Kubectl, job: dict[str, Any]
) -> None:
    said = applied(kubectl, job, section, changes)
    assert "ValidatingAdmissionPolicy 'guidance.loradpojobs.training.loradpo.dev'" in said
    assert warning in said
    assert "created" in said


def test_a_running_job_takes_only_pauses_deadlines_and_lifetimes(kubectl: Kubectl, started: str) -> None:
    policy = {"runPolicy": {"activeDeadline": "48h", "ttlAfterFinished": "7d", "suspend": True}}
    assert "patched" in changed(kubectl, started, policy, "--dry-run=server")
    assert "spec.eval: cannot change while the job runs" in changed(kubectl, started, {"eval": {"everySteps": 7}})
    assert "spec.lora: cannot change once the job has started" in changed(kubectl, started, {"lora": {"r": 32}})


def test_a_suspended_job_takes_all_but_what_the_run_is(kubectl: Kubectl, started: str) -> None:
    changed(kubectl, started, {"runPolicy": {"suspend": True}})
    assert "patched" in changed(kubectl, started, {"eval": {"everySteps": 7}, "tpu": {"topology": "2x2x2"}})
    assert "spec.output: cannot change" in changed(kubectl, started, {"output": {"path": "gs://other/run"}})
    assert "spec.beta: cannot change once the job has started" in changed(kubectl, started, {"beta": 0.2})


def test_explain_reads_like_a_manual(kubectl: Kubectl) -> None:
    said = " ".join(kubectl("explain", "ldj.spec.lora").stdout.split())
    assert "Rank. Default: 64." in said
    assert "false is forced to true, with a warning" in said
