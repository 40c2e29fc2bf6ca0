"""The Job that merges and verifies after the slice is released."""

from __future__ import annotations

from lora_dpo_api.protocol import Environment, Phase
from lora_dpo_operator import batch, names, pod
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest


def build(blueprint: Blueprint) -> Manifest:
    """The manifest. Needs the blueprint's `prepared_digest`."""
    digest = pod.value(Environment.PREPARED_DIGEST, blueprint.prepared_digest)
    return batch.one_pod_job(blueprint, Phase.EXPORT, name=names.export_job(blueprint.name), env=(digest,))
