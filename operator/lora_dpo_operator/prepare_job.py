"""The Job that checks and tokenises everything before a slice is held."""

from __future__ import annotations

from lora_dpo_api.protocol import Phase
from lora_dpo_operator import batch, names
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest


def build(blueprint: Blueprint) -> Manifest:
    """The manifest."""
    return batch.one_pod_job(blueprint, Phase.PREPARE, name=names.prepare_job(blueprint.name))
