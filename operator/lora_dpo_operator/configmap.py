"""The ConfigMap with the trainer's configuration, fully resolved."""

from __future__ import annotations

from lora_dpo_operator import names
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest


def build(blueprint: Blueprint) -> Manifest:
    """The manifest. Immutable: another content has another name, so a running job never changes under its pods."""
    metadata = blueprint.metadata(blueprint.config_map, blueprint.labels())
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "data": {names.CONFIG_KEY: blueprint.config},
    }
