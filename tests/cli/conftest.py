"""The command line, run in this process on files of the test's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest
from typer.testing import CliRunner

from ldj.main import app
from lora_dpo_api import yaml12

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(__file__).parents[1] / "data" / "api"


TOLD = Path(__file__).parent / "told"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-told", action="store_true", help="write anew what the commands tell people")


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with a committed one; writes it with `--write-told`."""

    def compare(name: str, text: str) -> None:
        file = TOLD / f"{name}.txt"
        if request.config.getoption("--write-told"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert text == file.read_text()

    return compare


@dataclasses.dataclass(frozen=True, slots=True)
class Ldj:
    """The command `ldj`, and a folder for its files."""

    folder: Path

    def __call__(self, *argv: str | Path, stdin: str = "") -> click.testing.Result:
        """Run a command to its end; an exception that it lets out fails the test."""
        return CliRunner().invoke(app, [str(word) for word in argv], input=stdin, catch_exceptions=False)

    def file(self, *documents: Any, name: str = "job.yaml") -> Path:
        """A file with these documents; text is written as it is."""
        file = self.folder / name
        file.write_text("---\n".join(each if isinstance(each, str) else yaml12.dumps(each) for each in documents))
        return file


@pytest.fixture
def ldj(tmp_path: Path) -> Ldj:
    """The command line."""
    return Ldj(tmp_path)


@pytest.fixture
def job() -> dict[str, Any]:
    """A small valid job; every test may change its own."""
    return copy.deepcopy(JOB)


JOB: dict[str, Any] = {
    "apiVersion": "training.loradpo.dev/v1alpha1",
    "kind": "LoraDpoJob",
    "metadata": {"name": "tiny", "namespace": "team-a"},
    "spec": {
        "initializeFromHf": "gs://models/tiny",
        "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": ["gs://data/train.jsonl"]}}}},
        "lora": {"r": 16},
        "output": {"path": "gs://bucket/runs/tiny"},
        "cpu": {},
    },
}
