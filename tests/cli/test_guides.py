"""The guides in docs/: what they tell people to write is accepted, and what they link to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.spec_running import Capacity, CapacityType

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide: Path) -> None:
    missing = [target for target in LINK.findall(guide.read_text()) if not (guide.parent / target).exists()]
    assert missing == []


def test_every_kind_of_capacity_is_explained_as_it_is_written() -> None:
    written = re.findall(r"`tpu\.capacity: (\{[^`]+\})`", (ROOT / "docs/install-gke.md").read_text())
    explained = {Capacity.model_validate(body).type for text in written for body in yaml12.loads_all(text)}
    assert explained == set(CapacityType) - {CapacityType.ON_DEMAND, CapacityType.QUEUED}
