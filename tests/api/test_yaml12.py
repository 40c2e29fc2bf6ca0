from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo_api import yaml12


@pytest.mark.parametrize(
    "text",
    ["y", "No", "on", "OFF", "yes", "1_000", "1:30", "0x1F", "0b1", "012", "1e3", "1E3", "12", "7.", ".5e3", "0o17"],
)
def test_text_that_only_older_yaml_takes_for_something_else_is_text_to_both(text: str) -> None:
    written = yaml12.dumps({text: text})
    assert yaml12.loads(written) == {text: text}
    # PyYAML follows YAML 1.1, as kubectl and Helm do.
    assert yaml.safe_load(written) == {text: text}


@pytest.mark.parametrize("text", ["2x2x1", "v5p-8", "10.0.0.1", "gs://bucket/a", "nobody", "only", "30m"])
def test_other_text_stays_as_people_write_it(text: str) -> None:
    assert yaml12.dumps([text]) == f"- {text}\n"


def test_documents_are_read_one_by_one() -> None:
    assert yaml12.loads_all("a: 1e-3\n---\n- no\n") == ({"a": 1e-3}, ["no"])


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none() | st.floats(), st.lists, max_leaves=5))
def test_what_is_written_is_read_the_same_by_readers_of_either_version(value: Any) -> None:
    written = yaml12.dumps({"a": value})
    for found in (yaml12.loads(written), yaml.safe_load(written)):
        assert _comparable(found) == _comparable({"a": value})


def _comparable(value: Any) -> Any:
    """With what equals itself in place of NaN."""
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else (type(value), value)
