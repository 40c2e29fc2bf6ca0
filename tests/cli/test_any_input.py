"""Whatever a file holds, the answer is a verdict: never an exception."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ldj import manifests, validate
from ldj.jobfiles import Document
from lora_dpo_api import yaml12
from lora_dpo_api.errors import SpecError
from lora_dpo_operator.settings import Settings

from .conftest import EXAMPLES, JOB

GUIDES_RUN = yaml12.loads((EXAMPLES / "ultrafeedback-llama3-8b" / "job.yaml").read_text())
ODD = st.sampled_from([None, "", "no", 0, -1, 1e308, True, [], {}, [None], {"": None}, "\n", "x" * 5000, "gs://", "/"])
VALUES = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def paths(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from paths(child, (*here, key))


def with_value(tree: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(tree)
    here: Any = changed
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return changed


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, Any]:
    """A valid job in which one value is replaced, or one key is added."""
    job = draw(st.sampled_from([JOB, GUIDES_RUN]))
    path = draw(st.sampled_from(list(paths(job))[1:]))
    added = draw(st.booleans()) and isinstance(path[-1], str)
    return with_value(job, (*path[:-1], draw(st.text(max_size=10))) if added else path, draw(VALUES))


@settings(max_examples=300, deadline=None)
@given(mangled())
def test_every_object_gets_a_verdict(body: dict[str, Any]) -> None:
    verdict = validate.judge(Document(Path("job.yaml"), body))
    assert all(str(problem).strip() for problem in verdict.problems)


@settings(max_examples=150, deadline=None)
@given(mangled())
def test_what_is_valid_can_be_rendered_and_nothing_else(body: dict[str, Any]) -> None:
    document = Document(Path("job.yaml"), body)
    try:
        manifests.of_job(document, Settings())
        rendered = True
    except SpecError:
        rendered = False
    assert rendered == validate.judge(document).valid
