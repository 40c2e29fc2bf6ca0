"""The alerts, evaluated by promtool: each fires when it should, only then, and resolves."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.status import JobPhase
from lora_dpo_localcluster import debian

from . import exported
from .conftest import CHART, Helm

RUNBOOKS = CHART.parents[1] / "docs" / "runbooks"

JOB = 'namespace="a", name="llama"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation:
    """Series, one value a minute in promtool's notation, and the minutes in which an alert fires or is silent."""

    alert: str
    series: Mapping[str, str]
    fires: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()


SITUATIONS = {
    "the operator is gone for half an hour": Situation(
        alert="LoraDpoOperatorAbsent",
        series={"loradpo_operator_last_resync_timestamp_seconds": "0 60 120 stale _x28 1920+60x20"},
        silent=(2, 12, 34),
        fires=(14, 31),
    ),
    "the operator stops reading and begins again": Situation(
        alert="LoraDpoOperatorBlind",
        series={"loradpo_operator_last_resync_timestamp_seconds": "0x40 2460x20"},
        silent=(30, 34, 42),
        fires=(37, 40),
    ),
    "half of the reconciles fail for a while": Situation(
        alert="LoraDpoReconcileErrors",
        series={
            'loradpo_operator_reconciles_total{result="failed"}': "0+1x20 20x30",
            'loradpo_operator_reconciles_total{result="ok"}': "0+1x50",
        },
        silent=(5, 35),
        fires=(15, 20),
    ),
    "a reconcile fails now and then": Situation(
        alert="LoraDpoReconcileErrors",
        series={
            'loradpo_operator_reconciles_total{result="failed"}': "0+1x60",
            'loradpo_operator_reconciles_total{result="ok"}': "0+100x60",
        },
        silent=(15, 30, 60),
    ),
    "a running job makes no steps for 40 minutes": Situation(
        alert="LoraDpoJobStalled",
        series={
            f'loradpo_operator_job_phase{{{JOB}, phase="Running"}}': "1x60",
            f"loradpo_operator_job_step{{{JOB}}}": "5x40 6+1x20",
        },
        silent=(10, 42),
        fires=(16, 40),
    ),
    "a running job makes a step every ten minutes": Situation(
        alert="LoraDpoJobStalled",
        series={
            f'loradpo_operator_job_phase{{{JOB}, phase="Running"}}': "1x60",
            f"loradpo_operator_job_step{{{JOB}}}": "1x9 2x9 3x9 4x9 5x9 6x9",
        },
        silent=(16, 30, 45, 59),
    ),
    "a job waits for its slice for more than an hour": Situation(
        alert="LoraDpoJobWaitsLong",
        series={
            f'loradpo_operator_job_phase{{{JOB}, phase="Queued"}}': "1x70 stale",
            f'loradpo_operator_job_phase{{{JOB}, phase="Running"}}': "_x71 1x20",
        },
        silent=(59, 72),
        fires=(61, 70),
    ),
    "a job crashes three times in three minutes": Situation(
        alert="LoraDpoJobRestartsOften",
        series={f"loradpo_operator_job_restarts{{{JOB}}}": "0x10 1 2 3x90"},
        silent=(5, 12, 80),
        fires=(13, 60),
    ),
    "a job crashes once": Situation(
        alert="LoraDpoJobRestartsOften",
        series={f"loradpo_operator_job_restarts{{{JOB}}}": "0x10 1x90"},
        silent=(13, 60),
    ),
    "no checkpoint for 40 minutes, then one": Situation(
        alert="LoraDpoCheckpointStale",
        series={
            f"loradpo_train_last_checkpoint_timestamp_seconds{{{JOB}}}": "0x40 2460x20",
            f"loradpo_train_checkpoint_interval_seconds{{{JOB}}}": "120x60",
            f'loradpo_train_state{{{JOB}, state="Training"}}': "1x60",
        },
        silent=(6, 10, 42),
        fires=(13, 40),
    ),
    "no checkpoint for 40 minutes, where one an hour is asked for": Situation(
        alert="LoraDpoCheckpointStale",
        series={
            f"loradpo_train_last_checkpoint_timestamp_seconds{{{JOB}}}": "0x200",
            f"loradpo_train_checkpoint_interval_seconds{{{JOB}}}": "3600x200",
            f'loradpo_train_state{{{JOB}, state="Training"}}': "1x200",
        },
        silent=(40, 179, 184),
        fires=(187,),
    ),
    "no checkpoint, but a long evaluation": Situation(
        alert="LoraDpoCheckpointStale",
        series={
            f"loradpo_train_last_checkpoint_timestamp_seconds{{{JOB}}}": "0x60",
            f"loradpo_train_checkpoint_interval_seconds{{{JOB}}}": "120x60",
            f'loradpo_train_state{{{JOB}, state="Training"}}': "0x60",
            f'loradpo_train_state{{{JOB}, state="Evaluating"}}': "1x60",
        },
        silent=(37, 60),
    ),
    "maintenance is announced, and done": Situation(
        alert="LoraDpoMaintenanceScheduled",
        series={f"loradpo_operator_job_maintenance_scheduled{{{JOB}}}": "_x10 1x30 stale"},
        silent=(5, 42),
        fires=(11, 40),
    ),
    "the loss is not finite for 20 minutes": Situation(
        alert="LoraDpoLossNotFinite",
        series={
            f"loradpo_train_step{{{JOB}}}": "1+1x60",
            f"loradpo_train_dpo_loss{{{JOB}}}": "0.6x10 stale _x18 0.5x30",
        },
        silent=(10, 13, 32),
        fires=(17, 29),
    ),
    "the first step is not done yet": Situation(
        alert="LoraDpoLossNotFinite", series={f"loradpo_train_step{{{JOB}}}": "0x60"}, silent=(10, 60)
    ),
    "the reward margin is negative for an hour": Situation(
        alert="LoraDpoRewardMarginNegative",
        series={
            f"loradpo_train_reward_margin{{{JOB}}}": "-0.1x60 5x30",
            f"loradpo_train_step{{{JOB}}}": "200x90",
        },
        silent=(29, 64),
        fires=(31, 60),
    ),
    "accuracy stays at chance for an hour, then rises": Situation(
        alert="LoraDpoAccuracyStuck",
        series={
            f"loradpo_train_dpo_accuracy{{{JOB}}}": "0.5x60 0.9x60",
            f"loradpo_train_step{{{JOB}}}": "300x120",
        },
        silent=(29, 75, 110),
        fires=(31, 60),
    ),
    "accuracy is at chance in the first steps": Situation(
        alert="LoraDpoAccuracyStuck",
        series={
            f"loradpo_train_dpo_accuracy{{{JOB}}}": "0.5x60",
            f"loradpo_train_step{{{JOB}}}": "100x60",
        },
        silent=(31, 60),
    ),
    "a job fails, and is kept": Situation(
        alert="LoraDpoJobFailed",
        series={
            f'loradpo_operator_job_failure{{{JOB}, class="Data"}}': "_x10 1x100",
            f"loradpo_operator_job_completion_timestamp_seconds{{{JOB}}}": "_x10 600x100",
        },
        silent=(5, 75),
        fires=(12, 60),
    ),
    "a job fails, and is deleted": Situation(
        alert="LoraDpoJobFailed",
        series={
            f'loradpo_operator_job_failure{{{JOB}, class="Data"}}': "_x10 1x5 stale",
            f"loradpo_operator_job_completion_timestamp_seconds{{{JOB}}}": "_x10 600x5 stale",
        },
        silent=(5, 17),
        fires=(12,),
    ),
    "chips are nearly full, until the job is made anew": Situation(
        alert="LoraDpoDeviceMemoryNearLimit",
        series={
            f"loradpo_train_memory_device_peak_bytes{{{JOB}}}": "90x10 96x20 80x20",
            f"loradpo_train_memory_device_limit_bytes{{{JOB}}}": "100x50",
        },
        silent=(10, 13, 32),
        fires=(17, 30),
    ),
    "chips are nearly idle for an hour": Situation(
        alert="LoraDpoSliceUnderused",
        series={
            f"loradpo_train_mfu{{{JOB}}}": "0.02x70 0.4x50",
            f'loradpo_train_state{{{JOB}, state="Training"}}': "1x120",
        },
        silent=(29, 90),
        fires=(31, 70),
    ),
    "chips are idle in a long evaluation": Situation(
        alert="LoraDpoSliceUnderused",
        series={
            f"loradpo_train_mfu{{{JOB}}}": "0.02x70",
            f'loradpo_train_state{{{JOB}, state="Training"}}': "0x70",
        },
        silent=(31, 70),
    ),
    "the reward margin is negative at the start": Situation(
        alert="LoraDpoRewardMarginNegative",
        series={
            f"loradpo_train_reward_margin{{{JOB}}}": "-0.1x60",
            f"loradpo_train_step{{{JOB}}}": "50x60",
        },
        silent=(31, 60),
    ),
}


@pytest.fixture(scope="module")
def rules(helm: Helm) -> dict[str, Any]:
    """The groups of the rendered PrometheusRule."""
    (found,) = helm.render({"prometheus": {"rules": {"enabled": True}}}, show="templates/prometheusrule.yaml")
    groups: dict[str, Any] = found["spec"]
    return groups


@pytest.fixture(scope="module")
def alerts(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


@pytest.fixture(scope="module", autouse=True)
def promtool() -> None:
    """promtool, of the machine or installed."""
    debian.ensure_for_prometheus(print)


def check(*argv: str, folder: Path) -> None:
    answer = subprocess.run(["promtool", *argv], cwd=folder, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_prometheus_takes_the_rules(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml12.dumps(rules))
    check("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)


@pytest.mark.parametrize("name", SITUATIONS)
def test_an_alert_fires_when_it_should_and_only_then(name: str, rules: dict[str, Any], tmp_path: Path) -> None:
    situation = SITUATIONS[name]
    firing = f'count(ALERTS{{alertname="{situation.alert}", alertstate="firing"}})'
    expected = {minute: [{"labels": "{}", "value": 1}] for minute in situation.fires}
    expected |= {minute: [] for minute in situation.silent}
    unit_test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in situation.series.items()],
                "promql_expr_test": [
                    {"expr": firing, "eval_time": f"{minute}m", "exp_samples": samples}
                    for minute, samples in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "rules.yaml").write_text(yaml12.dumps(rules))
    (tmp_path / "test.yaml").write_text(yaml12.dumps(unit_test))
    check("test", "rules", "test.yaml", folder=tmp_path)


def test_every_alert_has_situations_in_which_it_fires_and_is_silent(alerts: dict[str, Any]) -> None:
    assert {situation.alert for situation in SITUATIONS.values() if situation.fires} == set(alerts)
    assert {situation.alert for situation in SITUATIONS.values() if situation.silent} == set(alerts)


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_what_to_look_at(alerts: dict[str, Any]) -> None:
    for name, alert in alerts.items():
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(alert["annotations"]) == {"summary", "description"}, name


def test_every_alert_has_a_page_with_cause_check_and_fix(alerts: dict[str, Any]) -> None:
    pages = {page.stem: page.read_text() for page in RUNBOOKS.iterdir()}
    assert set(pages) == set(alerts)
    for name, text in pages.items():
        titles = [line for line in text.splitlines() if line.startswith("#")]
        assert titles == [f"# {name}", "## Cause", "## Check", "## Fix"]


def test_alerts_link_to_their_pages_where_it_is_said_where_those_are(helm: Helm) -> None:
    values = {"prometheus": {"rules": {"enabled": True, "runbookUrl": "https://docs.example.com/runbooks/"}}}
    (found,) = helm.render(values, show="templates/prometheusrule.yaml")
    for alert in (rule for group in found["spec"]["groups"] for rule in group["rules"]):
        assert alert["annotations"]["runbook_url"] == f"https://docs.example.com/runbooks/{alert['alert']}.md"


def test_every_metric_of_an_alert_exists(alerts: dict[str, Any]) -> None:
    wanted = {name for alert in alerts.values() for name in re.findall(r"loradpo_\w+", alert["expr"])}
    assert wanted <= exported.operator() | exported.trainer()


def test_alerts_ask_for_phases_that_exist(alerts: dict[str, Any]) -> None:
    asked = {
        phase
        for alert in alerts.values()
        for match in re.findall(r'phase=~?"([^"]+)"', alert["expr"])
        for phase in match.split("|")
    }
    assert asked <= {phase.value for phase in JobPhase}
