"""The manifests, whole, as files: `pytest tests/operator --write-golden` writes them anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_operator import configmap, export_job, jobset, network_policy, prepare_job

from .builders import SETTINGS
from .cases import JOBS, SIMULATED, blueprint

GOLDEN = Path(__file__).parent / "golden"


def compare(name: str, manifest: dict[str, Any], write_golden: bool) -> None:
    file = GOLDEN / f"{name}.yaml"
    if write_golden:
        file.write_text(yaml12.dumps(manifest))
    assert manifest == yaml12.loads(file.read_text())


@pytest.mark.parametrize("name", JOBS)
def test_the_jobset_is_as_committed(name: str, write_golden: bool) -> None:
    compare(f"jobset-{name}", jobset.build(blueprint(JOBS[name])), write_golden)


@pytest.mark.parametrize("name", ["cpu-one-host", "v6e-everything"])
def test_the_prepare_job_is_as_committed(name: str, write_golden: bool) -> None:
    compare(f"prepare-{name}", prepare_job.build(blueprint(JOBS[name])), write_golden)


@pytest.mark.parametrize("name", ["cpu-one-host", "v6e-everything"])
def test_the_export_job_is_as_committed(name: str, write_golden: bool) -> None:
    compare(f"export-{name}", export_job.build(blueprint(JOBS[name])), write_golden)


def test_the_config_map_is_as_committed(write_golden: bool) -> None:
    compare("configmap-cpu-one-host", configmap.build(blueprint(JOBS["cpu-one-host"])), write_golden)


def test_the_network_policy_is_as_committed(write_golden: bool) -> None:
    peers = ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "lora-dpo-system"}}},)
    made = blueprint(JOBS["cpu-one-host"], dataclasses.replace(SETTINGS, progress_peers=peers))
    compare("networkpolicy-cpu-one-host", network_policy.build(made), write_golden)


def test_a_simulated_slice_is_as_committed(write_golden: bool) -> None:
    compare("jobset-v5e-multi-host-simulated", jobset.build(blueprint(JOBS["v5e-multi-host"], SIMULATED)), write_golden)


def test_no_golden_file_is_left_over() -> None:
    wanted = {f"jobset-{name}" for name in JOBS}
    wanted |= {f"{kind}-{name}" for kind in ("prepare", "export") for name in ("cpu-one-host", "v6e-everything")}
    wanted |= {"configmap-cpu-one-host", "networkpolicy-cpu-one-host", "jobset-v5e-multi-host-simulated"}
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == wanted
