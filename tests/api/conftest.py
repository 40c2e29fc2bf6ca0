from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.resolve import Resolved, resolve

DATA = Path(__file__).parents[1] / "data" / "api"
MINIMAL = """
apiVersion: training.loradpo.dev/v1alpha1
kind: LoraDpoJob
metadata: {name: tiny, namespace: team-a}
spec:
  initializeFromHf: gs://models/tiny
  data:
    components:
      prefs: {source: {type: url, trainUrls: ["gs://data/train.jsonl"]}}
  output: {path: gs://bucket/runs/tiny}
  cpu: {}
"""

Changes = dict[str, Any]
Resolve = Callable[[Changes], Resolved]
Refuse = Callable[[Changes], list[str]]


def merged(base: Any, changes: Any) -> Any:
    """`base` with `changes` laid over it; a value of None takes the field away."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return copy.deepcopy(changes)
    result = {key: merged(base.get(key), value) for key, value in changes.items() if value is not None}
    return {key: value for key, value in copy.deepcopy(base).items() if key not in changes} | result


@pytest.fixture
def body() -> dict[str, Any]:
    """The smallest valid job."""
    return yaml12.loads(MINIMAL)


@pytest.fixture
def resolved(body: dict[str, Any]) -> Resolve:
    """Resolves the smallest job with changes to its spec."""

    def run(changes: Changes) -> Resolved:
        return resolve(LoraDpoJob.from_body(merged(body, {"spec": changes})))

    return run


@pytest.fixture
def refused(resolved: Resolve) -> Refuse:
    """The sentences with which a changed job is refused."""

    def run(changes: Changes) -> list[str]:
        with pytest.raises(SpecError) as caught:
            resolved(changes)
        return [str(problem) for problem in caught.value.problems]

    return run


@pytest.fixture
def data() -> Path:
    """Folder of the files that these tests read."""
    return DATA
