"""The chart, rendered by the real Helm."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_localcluster import tools

CHART = Path(__file__).parents[2] / "helm" / "lora-dpo-operator"
RELEASE = "lora-dpo-operator"
NAMESPACE = "lora-dpo-system"

Manifest = dict[str, Any]
Values = Mapping[str, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-rendered", action="store_true", help="write the rendered charts anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a machine with empty caches, the first test builds Helm."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))


@dataclasses.dataclass(frozen=True, slots=True)
class Helm:
    """The program, and a folder for values."""

    program: Path
    folder: Path

    def run(self, *argv: str, values: Values | None = None) -> subprocess.CompletedProcess[str]:
        """Run Helm on the chart, whatever comes of it."""
        file = self.folder / "values.yaml"
        file.write_text(yaml12.dumps(dict(values or {})))
        return subprocess.run(
            [str(self.program), *argv, str(CHART), f"--values={file}", f"--namespace={NAMESPACE}"],
            capture_output=True,
            text=True,
            env={"HOME": str(self.folder), "HELM_CACHE_HOME": str(self.folder)},
            timeout=120,
        )

    def render(self, values: Values | None = None, *, show: str = "") -> list[Manifest]:
        """The chart's objects, or those of one template; the test fails where Helm refuses."""
        answer = self.run("template", RELEASE, *([f"--show-only={show}"] if show else []), values=values)
        if answer.returncode != 0:
            pytest.fail(answer.stderr)
        return [manifest for manifest in yaml12.loads_all(answer.stdout) if manifest]

    def refusal(self, values: Values) -> str:
        """Why Helm refuses these values; the test fails where it takes them."""
        answer = self.run("template", RELEASE, values=values)
        if answer.returncode == 0:
            pytest.fail(f"Helm takes {values}")
        return answer.stderr


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm, built from its module."""
    program = tools.ensure(print, (tools.HELM,)).program(tools.HELM, "helm")
    return Helm(program, tmp_path_factory.mktemp("helm"))


@pytest.fixture
def write_rendered(request: pytest.FixtureRequest) -> bool:
    """Whether the committed renderings are to be written, in place of compared."""
    return bool(request.config.getoption("--write-rendered"))


def installed(manifests: list[Manifest]) -> list[Manifest]:
    """Without what is there for `helm test` alone."""
    return [found for found in manifests if "helm.sh/hook" not in found["metadata"].get("annotations", {})]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The one object of a kind."""
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, [manifest["kind"] for manifest in manifests]
    return found[0]
