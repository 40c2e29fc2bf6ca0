from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lora_dpo_api import crd

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_references_are_what_the_models_and_the_commands_say(script: ModuleType) -> None:
    for file, text in script.generated().items():
        assert file.read_text() == text, "run scripts/reference.py"


def test_every_field_of_the_definition_is_in_the_reference_with_a_meaning(script: ModuleType) -> None:
    (version,) = crd.definition()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    rows = dict(re.findall(r"^\| \**`([^`]+)`\** \| .* \| (.*) \|$", script.fields(), re.MULTILINE))
    for root in ("spec", "status"):
        assert {f"{root}.{name}" for name in properties[root]["properties"]} <= set(rows)
    # What the trainer reports has names that say enough.
    reported = ("status.prepared.", "status.metrics.", "status.curve", "status.advice", "status.lastCheckpoint.")
    silent = [name for name, meaning in rows.items() if not meaning.strip()]
    assert [name for name in silent if not name.startswith((*reported, "status.artifacts"))] == []
