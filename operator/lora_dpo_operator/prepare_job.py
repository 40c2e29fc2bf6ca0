"""The Job that checks and tokenises everything before a slice is held."""

from __future__ import annotations

from lora_dpo_api.protocol import Environment, Phase
from lora_dpo_operator import batch, names, pod
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.gateway import Manifest


def build(blueprint: Blueprint) -> Manifest:
    """The manifest."""
    tpu = blueprint.placement.hardware.tpu
    env = (pod.value(Environment.TPU, f"{tpu.machine.generation}:{tpu.topology}"),) if tpu is not None else ()
    return batch.one_pod_job(blueprint, Phase.PREPARE, name=names.prepare_job(blueprint.name), env=env)
