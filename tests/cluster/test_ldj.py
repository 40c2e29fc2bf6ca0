"""`ldj` as its users run it, from submit to adapter, and where a job fails."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.status import JobPhase
from lora_dpo_localcluster.provider import Cluster

from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model

PROGRAM = Path(sys.executable).with_name("ldj")
LONG = {"trainer": {"numTrainSteps": 100_000, "trainBatchSize": 4}}


@dataclasses.dataclass(frozen=True, slots=True)
class Ldj:
    """The program, with a kubeconfig, in one namespace."""

    kubeconfig: Path
    namespace: str
    folder: Path

    @contextlib.contextmanager
    def started(self, *argv: str | Path) -> Iterator[subprocess.Popen[str]]:
        """It runs, and ends with the context at the latest."""
        where = ("--namespace", self.namespace, "--kubeconfig", str(self.kubeconfig))
        env = os.environ | {"COLUMNS": "200"}
        pipe = subprocess.PIPE
        with subprocess.Popen([PROGRAM, *argv, *where], stdout=pipe, stderr=pipe, text=True, env=env) as process:
            try:
                yield process
            finally:
                process.kill()

    def __call__(self, *argv: str | Path, code: int = 0) -> str:
        """What it prints; the test fails when it ends with another code, or with a traceback."""
        with self.started(*argv) as process:
            out, err = process.communicate(timeout=600)
        assert process.returncode == code, err
        assert "Traceback" not in err
        return out if code == 0 else out + err

    def file(self, body: dict[str, Any]) -> Path:
        """A file that holds this job."""
        file = self.folder / "job.yaml"
        file.write_text(yaml12.dumps(body))
        return file


@pytest.fixture
def ldj(cluster: Cluster, operator: Operator, namespace: str, tmp_path: Path) -> Ldj:
    return Ldj(cluster.kubeconfig, namespace, tmp_path)


@pytest.fixture
def job(kubectl: Kubectl, namespace: str, bucket: Bucket) -> Job:
    upload_model(bucket)
    return Job(kubectl, namespace, "tiny")


def test_a_job_is_submitted_followed_told_drawn_and_heard(ldj: Ldj, job: Job, bucket: Bucket) -> None:
    file = ldj.file(manifest("tiny", bucket.url))
    ldj("submit", file, "--detach")
    with ldj.started("logs", "tiny", "--follow") as listener:
        # Applied again it is the same job, and is followed to its end.
        story = ldj("submit", file)
        heard, complaint = listener.communicate(timeout=60)
    assert listener.returncode == 0, complaint
    assert {line.partition(" | ")[0] for line in heard.splitlines()} == {"prepare", "train 0/0", "export"}

    assert f"{ldj.namespace}/tiny  Succeeded  step 6 of 6 (100 %)" in story
    assert f"peft: {bucket.url}/runs/tiny/adapter" in story
    assert "gradient norm" in ldj("status", "tiny")
    assert json.loads(ldj("status", "tiny", "-o", "json"))["status"]["phase"] == "Succeeded"
    assert "6/6" in ldj("watch", "--once")

    assert "train 0/0 | " in ldj("logs", "tiny", "--phase", "train", "--tail", "3")
    assert ldj("logs", "tiny").startswith("export | ")

    drawn = ldj("plot", "tiny")
    assert all(title in drawn for title in ("loss, last", "reward margin, last", "accuracy, last"))
    picture = ldj.folder / "curve.png"
    ldj("plot", "tiny", "--png", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert "has finished (Succeeded)" in ldj("suspend", "tiny", code=1)
    assert "only a job that has failed can be tried again" in ldj("retry", "tiny", code=1)


def test_a_job_that_fails_is_told_with_what_to_do_and_its_log(ldj: Ldj, job: Job, bucket: Bucket) -> None:
    missing = {"prefs": {"source": {"type": "url", "trainUrls": [f"{bucket.url}/data/nothing-*.jsonl"]}}}
    told = ldj("submit", ldj.file(manifest("tiny", bucket.url, data={"components": missing})), code=1)
    assert "failure: Data/" in told
    assert "in prepare, pod tiny-prepare-" in told
    assert "what to do: " in told
    assert "nothing-*.jsonl" in ldj("logs", "tiny")
    assert "has no curve yet: it is Failed" in ldj("plot", "tiny", code=1)


def test_a_job_is_suspended_and_resumed(ldj: Ldj, job: Job, bucket: Bucket) -> None:
    ldj("submit", ldj.file(manifest("tiny", bucket.url, **LONG)), "--detach")
    job.reaches(JobPhase.RUNNING)
    ldj("suspend", "tiny")
    job.reaches(JobPhase.SUSPENDED)
    wait_for(lambda: not job.slice_pods(), "the slice to be given back")
    ldj("resume", "tiny")
    job.reaches(JobPhase.RUNNING)
    job.delete()


def test_who_may_not_and_what_is_not_there_are_told_in_a_sentence(ldj: Ldj, kubectl: Kubectl) -> None:
    assert f"There is no LoraDpoJob none in the namespace {ldj.namespace}" in ldj("status", "none", code=4)
    kubectl.text("-n", ldj.namespace, "create", "serviceaccount", "nobody")
    config = yaml12.loads(ldj.kubeconfig.read_text())
    token = kubectl.text("-n", ldj.namespace, "create", "token", "nobody").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    as_nobody = ldj.folder / "nobody"
    as_nobody.write_text(yaml12.dumps(config))
    told = dataclasses.replace(ldj, kubeconfig=as_nobody)("watch", "--once", code=3)
    assert told.startswith("error: You may not do this: loradpojobs.training.loradpo.dev is forbidden")
    assert token not in told
