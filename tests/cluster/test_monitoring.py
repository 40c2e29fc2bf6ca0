"""Prometheus on the test cluster: every question of the dashboards and alerts has an answer when it should."""

from __future__ import annotations

import dataclasses
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ldj import prometheus
from ldj.prometheus import Prometheus
from lora_dpo_api import yaml12
from lora_dpo_api.status import JobPhase
from lora_dpo_localcluster import debian
from lora_dpo_localcluster.provider import Cluster
from lora_dpo_operator.nodes import MAINTENANCE_LABEL
from scripts.dashboards import board
from scripts.dashboards.__main__ import BOARDS

from .conftest import ROOT, Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model

MONITORS = ROOT / "operator" / "manifests" / "monitors.yaml"
RULES = yaml12.loads((ROOT / "helm" / "lora-dpo-operator" / "files" / "rules.yaml").read_text())
ALERTS = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
TPU_ONLY = re.compile(r"loradpo_train_(mfu|memory_device_\w+)")
"""What a CPU does not tell; `tests/helm/test_answers.py` asks for it with made-up values."""
QUESTIONS = {
    f"{found.uid}: {panel.title}: {query.legend}": query.expression
    for found in BOARDS
    for row in found.rows
    for panel in row.panels
    for query in panel.queries
}
PANELS = [pytest.param(asked, id=name) for name, asked in QUESTIONS.items() if not TPU_ONLY.search(asked)]
TPU_PANELS = [pytest.param(asked, id=name) for name, asked in QUESTIONS.items() if TPU_ONLY.search(asked)]
SITUATIONS = {
    "LoraDpoJobFailed": "failed",
    "LoraDpoJobWaitsLong": "waits",
    "LoraDpoMaintenanceScheduled": "trains",
}
"""Alerts whose expression is true of one of the jobs; `tests/helm/test_alerts.py` has the others', and the times."""
MARKS = [pytest.param(mark.expression, id=f"{found.uid}: {mark.name}") for found in BOARDS for mark in found.marks]
VARIABLES = [
    pytest.param(expression, id=f"{found.uid}: {name}")
    for found in BOARDS
    for name, expression in board.expressions(found)
    if name in ("namespace", "job")
]


LONG = {"numTrainSteps": 100_000, "trainBatchSize": 16}


@dataclasses.dataclass(frozen=True, slots=True)
class Watched:
    """A slice of two hosts that trains and was restarted, jobs that failed and wait, and a Prometheus that saw them.

    Attributes:
        namespace: of the jobs.
    """

    prometheus: Prometheus
    kubectl: Kubectl
    namespace: str
    trains: Job
    failed: Job
    waits: Job

    def look(self) -> None:
        """Tell Prometheus what there is to scrape now."""
        self.prometheus.scrape(self.kubectl.json("get", prometheus.KINDS, "--all-namespaces")["items"])

    def ask(self, expression: str) -> tuple[Any, ...]:
        """The present value of an expression, with the reader's choices of a dashboard filled in."""
        return self.prometheus.query(board.filled(expression))

    def wait(self, question: Callable[[], object], what: str, *, timeout: float = 600) -> None:
        """Wait, and keep Prometheus up to date."""

        def looked() -> object:
            self.look()
            return question()

        wait_for(looked, what, timeout=timeout, interval=1)


@pytest.fixture(scope="module")
def watched(
    cluster: Cluster, kubectl: Kubectl, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    debian.ensure_for_prometheus(print)
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", namespace)
    wait_for(lambda: kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    bucket = Bucket(cluster.bucket.create(f"test-{uuid.uuid4().hex[:12]}"), cluster.bucket)
    upload_model(bucket)
    jobs = (Job(kubectl, namespace, name) for name in ("trains", "failed", "waits"))
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus.running(cluster, folder, prometheus.read_monitors(MONITORS)) as running:
        found = Watched(running, kubectl, namespace, *jobs)
        try:
            found.look()
            _provoke(found, bucket)
            yield found
        finally:
            kubectl("label", "nodes", "--all", f"{MAINTENANCE_LABEL}-")
            kubectl("delete", "namespace", namespace, "--wait=false")


def _provoke(watched: Watched, bucket: Bucket) -> None:
    """Bring about what the dashboards tell of: steps, evaluations, checkpoints, a failure, a restart."""
    nothing = {"source": {"type": "url", "trainUrls": [f"{bucket.url}/nothing/*.jsonl"]}}
    watched.failed.apply(manifest("failed", bucket.url, data={"components": {"prefs": nothing}}))
    nowhere = {"machineType": "ct6e-standard-4t", "topology": "4x4"}
    watched.waits.apply(manifest("waits", bucket.url, cpu=None, tpu=nowhere, trainer=LONG))
    watched.trains.apply(
        manifest(
            "trains",
            bucket.url,
            cpu=None,
            tpu={"machineType": "ct5p-hightpu-4t", "topology": "2x2x2"},
            trainer=LONG,
            eval={"everySteps": 5},
            output={"path": f"{bucket.url}/runs/trains", "checkpoint": {"every": "5s"}},
        )
    )
    mine = f'namespace="{watched.namespace}", name="trains"'
    checkpoints = f"changes(loradpo_train_last_checkpoint_timestamp_seconds{{{mine}}}[5m]) > 0"
    watched.wait(lambda: watched.ask(f"loradpo_train_eval_dpo_loss{{{mine}}}"), "an evaluation in Prometheus")
    watched.wait(lambda: watched.ask(checkpoints), "a second checkpoint in Prometheus")
    watched.wait(lambda: watched.failed.status.phase is JobPhase.FAILED, "the other job to fail")
    waiting = (JobPhase.QUEUED, JobPhase.INITIALIZING)
    watched.wait(lambda: watched.waits.status.phase in waiting, "the third job to wait for its slice")
    pod = watched.trains.slice_pods()[-1]
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    watched.kubectl.text("-n", watched.namespace, "delete", "pod", name, "--grace-period=0", "--force")
    watched.kubectl.text("label", "node", node, f"{MAINTENANCE_LABEL}={int(time.time()) + 3600}")
    restarted = f"loradpo_operator_job_restarts{{{mine}}} + loradpo_operator_job_preemptions{{{mine}}} > 0"
    watched.wait(lambda: watched.ask(restarted), "the restart in Prometheus")
    again = f'loradpo_train_state{{{mine}, state="Training"}} == 1'
    watched.wait(lambda: watched.trains.status.phase is JobPhase.RUNNING and watched.ask(again), "training to go on")
    announced = f"loradpo_operator_job_maintenance_scheduled{{{mine}}}"
    watched.wait(lambda: watched.ask(announced), "the announced maintenance in Prometheus")


@pytest.mark.parametrize("expression", PANELS)
def test_a_panel_has_data_of_a_run_that_trains(watched: Watched, expression: str) -> None:
    if not watched.ask(expression):
        watched.wait(lambda: watched.ask(expression), f"an answer to {board.filled(expression)}", timeout=60)


@pytest.mark.parametrize("expression", TPU_PANELS)
def test_what_only_a_tpu_tells_is_absent_on_a_cpu(watched: Watched, expression: str) -> None:
    assert watched.ask(expression) == ()


@pytest.mark.parametrize("expression", MARKS)
def test_restarts_and_checkpoints_are_marked(watched: Watched, expression: str) -> None:
    assert watched.ask(f"last_over_time(({expression})[30m:5s])")


@pytest.mark.parametrize("expression", VARIABLES)
def test_the_reader_has_a_choice(watched: Watched, expression: str) -> None:
    assert watched.ask(expression)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_looks_at_series_that_are_there(watched: Watched, alert: str) -> None:
    watched.prometheus.query(ALERTS[alert])
    for name in sorted(set(re.findall(r"loradpo_\w+", ALERTS[alert]))):
        assert watched.prometheus.query(f"count({name})") or TPU_ONLY.search(name), name


@pytest.mark.parametrize(("alert", "job"), SITUATIONS.items())
def test_an_alert_is_about_the_job_in_its_situation(watched: Watched, alert: str, job: str) -> None:
    found = [labels for labels, _ in watched.prometheus.query(ALERTS[alert])]
    assert [labels["name"] for labels in found if labels["namespace"] == watched.namespace] == [job]


def test_the_job_that_failed_is_told_with_its_class(watched: Watched) -> None:
    found = [labels for labels, _ in watched.prometheus.query(ALERTS["LoraDpoJobFailed"])]
    mine = [labels for labels in found if labels["namespace"] == watched.namespace]
    assert [(labels["name"], labels["class"]) for labels in mine] == [("failed", "Data")]


def test_operator_and_trainer_agree_on_who_a_job_is(watched: Watched) -> None:
    both = "loradpo_train_step and on (namespace, name) loradpo_operator_job_step"
    found = {(labels["namespace"], labels["name"]) for labels, _ in watched.prometheus.query(both)}
    assert (watched.namespace, "trains") in found


def test_an_operator_that_is_gone_is_missed(watched: Watched, operator: Operator) -> None:
    assert not watched.prometheus.query(ALERTS["LoraDpoOperatorAbsent"])
    operator.kill()
    try:
        watched.wait(lambda: watched.prometheus.query(ALERTS["LoraDpoOperatorAbsent"]), "the alert", timeout=60)
    finally:
        operator.start()


def test_a_deleted_jobs_series_vanish(watched: Watched) -> None:
    mine = f'{{namespace="{watched.namespace}", name="failed"}}'
    present = f"loradpo_operator_job_phase{mine}"
    watched.wait(lambda: watched.prometheus.query(present), "the series of the operator that is back", timeout=60)
    watched.failed.delete()
    watched.wait(lambda: not watched.prometheus.query(mine), "its series to be gone", timeout=60)
