from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api import yaml12

from .conftest import CHART, Helm

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml12.loads((CHART / "values.yaml").read_text())
WRONG = {"string": 7, "boolean": "yes", "integer": "many", "number": "many", "array": {"a": "b"}, "object": "text"}


def sections(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Objects whose keys the schema lists."""
    if "properties" in schema:
        yield path
        for key, child in schema["properties"].items():
            yield from sections(child, (*path, key))


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Single values."""
    if "properties" not in schema:
        yield path, schema
        return
    for key, child in schema["properties"].items():
        yield from leaves(child, (*path, key))


def at(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


LEAVES = {".".join(path): (path, schema) for path, schema in leaves(SCHEMA)}


def test_what_is_generated_is_up_to_date() -> None:
    script = CHART.parents[1] / "scripts" / "chart.py"
    answer = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_schema_and_values_name_the_same_values() -> None:
    for name, (path, schema) in LEAVES.items():
        here = VALUES
        for key in path:
            assert name == "enabled" or key in here, name
            here = here.get(key)
        assert schema.get("description"), f"{name} has no comment in values.yaml"


def test_every_section_but_global_is_closed() -> None:
    for path in sections(SCHEMA):
        here = SCHEMA
        for key in path:
            here = here["properties"][key]
        assert path == ("global",) or here["additionalProperties"] is False, path


@pytest.mark.parametrize("path", [path for path in sections(SCHEMA) if path != ("global",)], ids=".".join)
def test_an_unknown_key_is_refused(path: tuple[str, ...], helm: Helm) -> None:
    assert "nonsense" in helm.refusal(at((*path, "nonsense"), True))


@pytest.mark.parametrize("name", LEAVES)
def test_a_value_of_the_wrong_type_is_refused(name: str, helm: Helm) -> None:
    path, schema = LEAVES[name]
    refusal = helm.refusal(at(path, WRONG[schema.get("type", "string")]))
    assert path[-1] in refusal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicaCount", 4),
        ("image.digest", "sha256:abc"),
        ("image.repository", "registry.example.com/operator@sha256:0"),
        ("trainer.env", {"1A": "x"}),
        ("trainer.env", {"A": "two\nlines"}),
        ("trainer.env", {"A": 1}),
        ("watch.namespaces", ["Team A"]),
        ("operator.resyncSeconds", 601),
        ("operator.port", 80),
        ("operator.logLevel", "info"),
        ("prometheus.serviceMonitor.interval", "half a minute"),
    ],
)
def test_a_value_that_the_operator_would_not_take_is_refused(name: str, value: Any, helm: Helm) -> None:
    path = tuple(name.split("."))
    assert path[-1] in helm.refusal(at(path, value))
