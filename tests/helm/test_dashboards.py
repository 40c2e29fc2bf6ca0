"""The Grafana dashboards: as generated, complete for a reader, and asking only for what is served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_localcluster import debian
from scripts.dashboards import board, fleet
from scripts.dashboards.__main__ import BOARDS, FOLDER, GOOGLES

from . import exported
from .conftest import CHART, Helm

DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.iterdir())}
PANELS = {
    f"{name}: {panel['title']}": panel
    for name, found in DASHBOARDS.items()
    for panel in found["panels"]
    if panel["type"] != "row"
}
TITLES = {"lora-dpo-training", "lora-dpo-fleet", "lora-dpo-operator"}


def test_the_committed_dashboards_are_the_generated_ones() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "scripts.dashboards", "--check"], cwd=CHART.parents[1], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert set(DASHBOARDS) == TITLES


def test_the_chart_ships_them_for_grafanas_sidecar(helm: Helm) -> None:
    values = {"prometheus": {"dashboards": {"enabled": True, "annotations": {"grafana_folder": "LoRA-DPO"}}}}
    shipped = {}
    for found in helm.render(values, show="templates/dashboards.yaml"):
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert found["metadata"]["annotations"] == {"grafana_folder": "LoRA-DPO"}
        ((file, text),) = found["data"].items()
        shipped[file] = json.loads(text)
    assert shipped == {f"{name}.json": found for name, found in DASHBOARDS.items()}


def test_with_googles_prometheus_the_operators_series_have_the_jobs_namespace_under_another_name(helm: Helm) -> None:
    values = {"prometheus": {"dashboards": {"enabled": True}, "googleManaged": {"enabled": True}}}
    shipped: dict[str, str] = {}
    for found in helm.render(values, show="templates/dashboards.yaml"):
        shipped |= found["data"]
    assert {name: json.loads(text) for name, text in shipped.items()} == {
        file.name: json.loads(file.read_text()) for file in GOOGLES.iterdir()
    }
    asked = [line for text in shipped.values() for line in text.splitlines() if re.search('"(expr|query)":', line)]
    of_jobs = [line for line in asked if "loradpo_operator_job_" in line]
    assert len(of_jobs) > 20
    for line in of_jobs:
        assert not re.search(r"(?<![$_])\bnamespace\b", line.replace("exported_namespace", "")), line
        assert "loradpo_train_" not in line
    assert not [line for line in asked if "exported_namespace" in line and line not in of_jobs]
    comparison = next(
        panel for panel in json.loads(shipped["lora-dpo-training.json"])["panels"] if panel["type"] == "table"
    )
    (order,) = (found["options"]["indexByName"] for found in comparison["transformations"] if found["id"] == "organize")
    assert "exported_namespace" in order


def test_the_chart_ships_none_unless_asked(helm: Helm) -> None:
    assert "could not find template" in helm.run("template", "x", "--show-only=templates/dashboards.yaml").stderr


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_what_is_good(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    assert len(steps) > 1
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_reader_chooses_data_source_namespace_and_job(name: str) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert all(variables[choice]["multi"] and variables[choice]["includeAll"] for choice in ("namespace", "job"))
    assert {source["uid"] for source in sources(DASHBOARDS[name])} == {"${datasource}"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [cell for panel in panels for cell in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("title", ["Loss", "Evaluation: loss"])
def test_ln_2_is_drawn_on_the_loss(title: str) -> None:
    defaults = PANELS[f"lora-dpo-training: {title}"]["fieldConfig"]["defaults"]
    assert 0.693 in [step["value"] for step in defaults["thresholds"]["steps"]]
    assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"


def test_restarts_and_checkpoints_are_marked_on_the_curves() -> None:
    marks = {mark["name"]: mark for mark in DASHBOARDS["lora-dpo-training"]["annotations"]["list"]}
    assert set(marks) >= {"Restart", "Checkpoint"}
    assert all(marks[name]["enable"] and marks[name]["expr"] for name in ("Restart", "Checkpoint"))


def test_dashboards_ask_only_for_metrics_that_are_served() -> None:
    served = exported.operator() | exported.trainer()
    asked = {name for _, expression in everything() for name in re.findall(r"loradpo_\w+", expression)}
    assert asked <= served, asked - served


def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboards:{number}", "expr": board.filled(expression)}
        for number, (_, expression) in enumerate(everything())
    ]
    promtool(tmp_path, "check", "rules", "rules.yaml", rules=rules)


def test_chip_hours_count_every_job_once_also_when_it_is_gone(tmp_path: Path) -> None:
    (panel,) = (panel for row in fleet.BOARD.rows for panel in row.panels if panel.title.startswith("Chip-hours"))
    series = {
        # Held 8 chips for half an hour, succeeded, and stays.
        'name="done", outcome="Active"': "0+480x30 stale",
        'name="done", outcome="Succeeded"': "_x31 14400x29",
        # Deleted while it held 4 chips.
        'name="deleted", outcome="Active"': "0+240x30 stale",
        # Failed, and deleted afterwards.
        'name="failed", outcome="Active"': "0+60x10 stale",
        'name="failed", outcome="Failed"': "_x11 3600x5 stale",
        # The operator was upgraded: the same series from another pod.
        'name="done", outcome="Succeeded", pod="next"': "_x50 14400x10",
    }
    metric = "loradpo_operator_job_chip_seconds"
    expected = {("Active",): 7200 / 3600, ("Succeeded",): 4.0, ("Failed",): 1.0}
    unit_test = {
        "rule_files": [],
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'{metric}{{namespace="a", {labels}}}', "values": values}
                    for labels, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": board.filled(panel.queries[0].expression),
                        "eval_time": "59m",
                        "exp_samples": [
                            {"labels": f'{{namespace="a", outcome="{outcome}"}}', "value": hours}
                            for (outcome,), hours in expected.items()
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml12.dumps(unit_test))
    promtool(tmp_path, "test", "rules", "test.yaml")


def promtool(folder: Path, *argv: str, rules: list[dict[str, str]] | None = None) -> None:
    debian.ensure_for_prometheus(print)
    if rules is not None:
        (folder / "rules.yaml").write_text(yaml12.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))
    answer = subprocess.run(["promtool", *argv], cwd=folder, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def everything() -> Iterator[tuple[str, str]]:
    for found in BOARDS:
        yield from board.expressions(found)


def sources(node: Any) -> Iterator[dict[str, Any]]:
    """Every data source that is named anywhere in a dashboard."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from sources(child)
    if isinstance(node, dict) and isinstance(node.get("datasource"), dict):
        yield node["datasource"]


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y
