"""The chart's monitors: what a real Prometheus scrapes by them, and under which labels."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldj import monitors, prometheus
from lora_dpo_api import yaml12
from lora_dpo_localcluster import debian, namespace

from . import things
from .conftest import Helm, only
from .scenarios import MONITORED, WITHOUT_DEFINITION

META = "__meta_kubernetes_"
OBJECTS = [
    *things.installed("127.0.1.1", 8080),
    things.pod("rank-0", things.RANK_0, "127.0.1.3", 9100),
    things.pod("rank-1", things.RANK_0 | {"batch.kubernetes.io/job-completion-index": "1"}, "127.0.1.4", 9100),
    things.pod("slice-1", things.RANK_0 | {"jobset.sigs.k8s.io/job-index": "1"}, "127.0.1.5", 9100),
    things.pod("prepare", things.RANK_0 | {"training.loradpo.dev/phase": "prepare"}, "127.0.1.6", 9100),
    things.pod("ended", things.RANK_0, "127.0.1.7", 9100, phase="Succeeded", where="b"),
]


def test_the_plain_manifests_have_the_charts_monitors(helm: Helm) -> None:
    rendered = helm.render(MONITORED | WITHOUT_DEFINITION)
    for found in prometheus.read_monitors(things.MONITORS):
        wanted = only(rendered, found["kind"])
        # The chart may be installed twice in a cluster, the plain manifests may not.
        wanted["spec"]["selector"]["matchLabels"].pop("app.kubernetes.io/instance", None)
        assert found["spec"] == wanted["spec"]
        assert found["metadata"]["name"] == wanted["metadata"]["name"]


def test_a_service_monitor_becomes_what_prometheus_operator_makes_of_it(tmp_path: Path) -> None:
    """The order and the labels of prometheus-operator's own recorded configurations, but for sharding."""
    found = monitors.scrape_configs(prometheus.read_monitors(things.MONITORS), tmp_path)[0]
    del found["file_sd_configs"]
    target = [f"{META}endpoint_address_target_kind", f"{META}endpoint_address_target_name"]
    component, name = "app_kubernetes_io_component", "app_kubernetes_io_name"
    assert found == {
        "job_name": "serviceMonitor/lora-dpo-system/lora-dpo-operator/0",
        "honor_labels": True,
        "scrape_interval": "30s",
        "scrape_timeout": "10s",
        "metrics_path": "/metrics",
        "relabel_configs": [
            {"source_labels": ["job"], "target_label": "__tmp_prometheus_job_name"},
            {
                "action": "keep",
                "source_labels": [f"{META}service_label_{component}", f"{META}service_labelpresent_{component}"],
                "regex": "(operator);true",
            },
            {
                "action": "keep",
                "source_labels": [f"{META}service_label_{name}", f"{META}service_labelpresent_{name}"],
                "regex": "(lora-dpo-operator);true",
            },
            {"action": "keep", "source_labels": [f"{META}endpoint_port_name"], "regex": "http"},
            {
                "source_labels": target,
                "separator": ";",
                "regex": "Node;(.*)",
                "replacement": "${1}",
                "target_label": "node",
            },
            {
                "source_labels": target,
                "separator": ";",
                "regex": "Pod;(.*)",
                "replacement": "${1}",
                "target_label": "pod",
            },
            {"source_labels": [f"{META}namespace"], "target_label": "namespace"},
            {"source_labels": [f"{META}service_name"], "target_label": "service"},
            {"source_labels": [f"{META}pod_name"], "target_label": "pod"},
            {"source_labels": [f"{META}pod_container_name"], "target_label": "container"},
            {"action": "drop", "source_labels": [f"{META}pod_phase"], "regex": "(Failed|Succeeded)"},
            {"source_labels": [f"{META}service_name"], "target_label": "job", "replacement": "${1}"},
            {"target_label": "endpoint", "replacement": "http"},
        ],
    }


def test_a_pod_monitor_becomes_what_prometheus_operator_makes_of_it(tmp_path: Path) -> None:
    found = monitors.scrape_configs(prometheus.read_monitors(things.MONITORS), tmp_path)[1]
    assert found["job_name"] == "podMonitor/lora-dpo-system/lora-dpo-operator-trainer/0"
    assert found["honor_labels"] is False
    rules = found["relabel_configs"]
    assert [rule.get("target_label") or rule["action"] for rule in rules] == [
        "__tmp_prometheus_job_name",
        "drop",
        *["keep"] * 5,
        *("namespace", "container", "pod", "job", "endpoint"),
        "name",
    ]
    assert rules[-3] == {"target_label": "job", "replacement": "lora-dpo-system/lora-dpo-operator-trainer"}
    assert rules[-1] == {"source_labels": [f"{META}pod_label_training_loradpo_dev_job"], "target_label": "name"}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What a real Prometheus decides to scrape of the objects above."""
    debian.ensure_for_prometheus(print)
    folder = tmp_path_factory.mktemp("prometheus")
    chosen = prometheus.read_monitors(things.MONITORS)
    (folder / "prometheus.yml").write_text(yaml12.dumps({"scrape_configs": monitors.scrape_configs(chosen, folder)}))
    for name, found in monitors.target_files(chosen, OBJECTS).items():
        (folder / name).write_text(json.dumps(found))
    address = f"127.0.0.1:{namespace.free_ports(1)[0]}"
    files = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield active(address, folder / "log")
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_operators_and_rank_0_of_each_slice_are_scraped_and_nothing_else(targets: list[dict[str, Any]]) -> None:
    assert sorted(target["scrapeUrl"] for target in targets) == [
        "http://127.0.1.1:8080/metrics",
        "http://127.0.1.3:9100/metrics",
    ]


def test_operator_and_trainer_meet_in_namespace_and_name(targets: list[dict[str, Any]]) -> None:
    labels = {target["scrapeUrl"]: target["labels"] for target in targets}
    trainer = labels["http://127.0.1.3:9100/metrics"]
    assert (trainer["namespace"], trainer["name"], trainer["pod"]) == ("a", "llama", "rank-0")
    operator = labels["http://127.0.1.1:8080/metrics"]
    assert (operator["namespace"], operator["pod"], operator["job"]) == (
        "lora-dpo-system",
        "operator",
        "lora-dpo-operator",
    )


def active(address: str, log: Path) -> list[dict[str, Any]]:
    """Its targets, once there are any."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/targets", timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["activeTargets"]
        except OSError:
            found = []
        if len(found) > 1:
            return found
        time.sleep(0.2)
