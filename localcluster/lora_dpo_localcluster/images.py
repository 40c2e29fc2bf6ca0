"""Images of this project, built without a registry."""

from __future__ import annotations

from pathlib import Path

from lora_dpo_localcluster.provider import Image
from lora_dpo_localcluster.tools import Report


def build(target: str, context: Path, report: Report) -> Image:
    """Build a target."""
    raise NotImplementedError
