"""A real Prometheus, configured by the monitors, and the real servers of operator and trainer: every question of every
dashboard and alert has an answer.

What they serve is made up here; `tests/cluster/test_monitoring.py` asks the same of jobs that run.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldj import monitors, prometheus
from lora_dpo_api import yaml12
from lora_dpo_localcluster import debian, namespace
from lora_dpo_trainer import progress
from scripts.dashboards import board
from scripts.dashboards.__main__ import BOARDS

from . import exported, things
from .conftest import CHART

RULES = yaml12.loads((CHART / "files" / "rules.yaml").read_text())
ALERTS = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
QUESTIONS = [
    pytest.param(expression, id=f"{found.uid}: {place} {number}")
    for found in BOARDS
    for number, (place, expression) in enumerate(board.expressions(found))
]
CHECKPOINT = "loradpo_train_last_checkpoint_timestamp_seconds"
HAPPENS = {"LoraDpoJobFailed", "LoraDpoMaintenanceScheduled"}
"""Alerts whose situation the made-up jobs are in; the others' are in test_alerts.py."""


class Asked:
    """A Prometheus that answers."""

    def __init__(self, address: str, log: Path) -> None:
        self._address = address
        self._log = log

    def __call__(self, expression: str) -> list[dict[str, Any]]:
        """The series of the expression's present value."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def until(self, question: Callable[[], object]) -> None:
        """Wait until a question has an answer."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if question():
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Prometheus, after it has seen steps, a checkpoint and a restart."""
    debian.ensure_for_prometheus(print)
    folder = tmp_path_factory.mktemp("prometheus")
    fleet, rank_0 = exported.Fleet(), exported.trainer_progress()
    instruments = exported.operator_instruments(fleet)
    chosen = prometheus.read_monitors(things.MONITORS)
    configs = monitors.scrape_configs(chosen, folder, interval="1s")
    (folder / "prometheus.yml").write_text(yaml12.dumps({"scrape_configs": configs}))
    trainer = progress.Server(rank_0, port=0, host="127.0.0.1")
    address = f"127.0.0.1:{namespace.free_ports(1)[0]}"
    files = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
    with exported.served(instruments) as port, (folder / "log").open("w") as log:
        objects = [*things.installed("127.0.0.1", port), things.pod("rank-0", things.RANK_0, "127.0.0.1", trainer.port)]
        for name, found in monitors.target_files(chosen, objects).items():
            (folder / name).write_text(json.dumps(found))
        process = subprocess.Popen(["prometheus", *files, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            made = Asked(address, folder / "log")
            made.until(lambda: made("loradpo_train_step") and made("loradpo_operator_job_restarts == 0"))
            fleet.restarts, fleet.step = 1, 5
            rank_0.update(step=5, last_checkpoint=exported.checkpoint())
            made.until(lambda: made("loradpo_train_step == 5") and made("loradpo_operator_job_step == 5"))
            exported.work(instruments)
            made.until(lambda: made("rate(loradpo_operator_reconciles_total[1m]) > 0"))
            # A subquery looks at whole seconds only.
            made.until(lambda: made(f"last_over_time((changes({CHECKPOINT}[1m]) > 0)[1m:1s])"))
            yield made
        finally:
            process.terminate()
            process.wait(timeout=30)
            trainer.close()


@pytest.mark.parametrize("expression", QUESTIONS)
def test_a_question_of_a_dashboard_has_an_answer(expression: str, asked: Asked) -> None:
    assert asked(f"last_over_time(({board.filled(expression)})[10m:1s])")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_looks_at_series_that_are_there(alert: str, asked: Asked) -> None:
    for name in sorted(set(re.findall(r"loradpo_\w+", ALERTS[alert]))):
        assert asked(name), name
    assert bool(asked(ALERTS[alert])) is (alert in HAPPENS)


def test_a_choice_of_another_namespace_leaves_nothing(asked: Asked) -> None:
    for found in BOARDS:
        for row in found.rows:
            for panel in row.panels:
                for query in panel.queries:
                    assert not asked(f"({board.filled(query.expression, namespace='elsewhere')}) > 0"), panel.title
