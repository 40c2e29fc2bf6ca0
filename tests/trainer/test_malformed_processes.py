"""Some of the hostile configurations and data of the other tests, against the trainer as it is really started."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import ExitCode, TerminationReport

from . import test_malformed as data

TESTS = Path(__file__).parents[1]
CPU_SECONDS = 2.0
"""Processor time, as the machine's load must not matter."""

HEAVY = {"jax", "jaxlib", "levanter", "haliax", "transformers", "numpy"}


def configurations() -> dict[str, str]:
    """Ten malformed files: five with a wrong value, five that are no configuration."""
    spec = importlib.util.spec_from_file_location("configurations", TESTS / "api" / "test_malformed_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = {}
    for path, wrong in module.VALUES[:: len(module.VALUES) // 5][:5]:
        tree = yaml12.loads(module.FULL)
        here = tree
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = wrong
        found[f"{'.'.join(path)}={wrong}"] = yaml12.dumps(tree)
    names = list(module.FILES)
    return found | {name: module.FILES[name] for name in names[:: len(names) // 5][:5]}


def malformed_data() -> dict[str, tuple[str, bytes]]:
    """Ten malformed files: five of a single wrong row, five that are damaged."""
    rows = {
        f"row-{number}": ("rows.jsonl", json.dumps(data.ROWS[number][1]).encode() + b"\n")
        for number in range(0, len(data.ROWS), len(data.ROWS) // 5)
    }
    names = list(data.FILES)
    files = {name: data.FILES[name] for name in names[:: len(names) // 5][:5]}
    return dict(list(rows.items())[:5]) | files


CONFIGURATIONS, DATA = configurations(), malformed_data()


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    report: TerminationReport
    output: str
    imported: frozenset[str]
    cpu_seconds: float


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., End]:
    def run(text: str, *words: str, traced: bool = False) -> End:
        (tmp_path / "config.yaml").write_text(text)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        flags = ["-X", "importtime"] if traced else []
        done = subprocess.run(
            [sys.executable, *flags, "-m", "lora_dpo_trainer", "--config_path", "config.yaml", *words],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "JAX_PLATFORMS": "cpu",
                "HF_HUB_OFFLINE": "1",
                "LORADPO_TERMINATION_LOG": str(tmp_path / "termination"),
                "LORADPO_RETRY_SECONDS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        imported = {
            line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
        }
        said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        report = TerminationReport.model_validate_json((tmp_path / "termination").read_text())
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return End(done.returncode, report, done.stdout + "\n".join(said), frozenset(imported), used)

    return run


def assert_one_sentence(end: End) -> None:
    assert "Traceback" not in end.output
    assert end.report.exit_code == end.code
    assert "\n" not in end.report.message
    assert end.report.message in end.output


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_malformed_configuration_ends_at_once_with_64(start: Callable[..., End], case: str) -> None:
    end = start(CONFIGURATIONS[case], traced=True)
    assert end.code == ExitCode.CONFIG
    assert_one_sentence(end)
    assert end.report.message.startswith("config.yaml: ")
    if "=" in case:  # the source as a whole is named where its kind decides what it holds
        section = case.split("=")[0].rsplit(".", 1)[0]
        assert section in end.report.message
    assert "lora_dpo_trainer.settings" in end.imported
    assert end.imported.isdisjoint(HEAVY)
    assert end.cpu_seconds < CPU_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("case", DATA)
def test_malformed_data_ends_with_65_and_its_place(
    start: Callable[..., End], make_config: Callable[..., TrainerConfig], tmp_path: Path, case: str
) -> None:
    name, content = DATA[case]
    (tmp_path / name).write_bytes(content)
    source = {"type": "url", "train_urls": [str(tmp_path / name)]}
    config = make_config(data={"components": {"prefs": {"source": source}}}, validation_split_fraction=0.0)
    end = start(config.model_dump_json(exclude_none=True), "--phase", "prepare")
    assert end.code == ExitCode.DATA
    assert_one_sentence(end)
    assert name in end.output
    assert not (tmp_path / "out" / "run.json").exists()


def test_keys_without_a_meaning_are_listed_in_one_warning(
    start: Callable[..., End], make_config: Callable[..., TrainerConfig], tmp_path: Path
) -> None:
    nowhere = make_config(initialize_from_hf=str(tmp_path / "nothing"))
    values: dict[str, Any] = json.loads(nowhere.model_dump_json(exclude_none=True))
    values["trainer"] |= {"tracker": {"type": "wandb"}, "checkpointer": {}, "ray": {}}
    end = start(json.dumps(values), "--phase", "prepare")
    assert end.code == ExitCode.CONFIG  # there is no such model
    (line,) = [line for line in end.output.splitlines() if "mean nothing here" in line]
    assert line.endswith("are ignored: trainer.tracker, trainer.checkpointer, trainer.ray")


def test_there_are_twenty_of_them() -> None:
    assert (len(CONFIGURATIONS), len(DATA)) == (10, 10)
