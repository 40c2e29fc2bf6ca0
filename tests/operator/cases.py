"""Jobs whose manifests are golden files, and are tried on a real API server too."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_dpo_operator import plan
from lora_dpo_operator.blueprint import Blueprint
from lora_dpo_operator.observed import Accepted
from lora_dpo_operator.settings import Settings

from .builders import SETTINGS, a_job, observe, prepared_status


def _tpu(machine_type: str, topology: str, slices: int = 1, **more: Any) -> dict[str, Any]:
    return {"cpu": None, "tpu": {"machineType": machine_type, "topology": topology, "slices": slices, **more}}


JOBS: dict[str, dict[str, Any]] = {
    "cpu-one-host": a_job(),
    "cpu-2x2": a_job({"cpu": {"hosts": 2, "slices": 2, "resources": {"requests": {"cpu": "1"}}}}),
    "v5e-single-host": a_job(_tpu("ct5lp-hightpu-8t", "2x4")),
    "v5e-multi-host": a_job(_tpu("ct5lp-hightpu-4t", "4x4", capacity={"type": "spot"})),
    "v5p-single-host": a_job(_tpu("ct5p-hightpu-4t", "2x2x1", nodePool="pool-1")),
    "v5p-multislice": a_job(_tpu("ct5p-hightpu-4t", "2x2x2", 2)),
    "v6e-multislice": a_job(_tpu("ct6e-standard-4t", "4x4", 2, capacity={"type": "reservation", "reservation": "r-1"})),
    "v6e-queued": a_job(_tpu("ct6e-standard-4t", "2x4") | {"queueName": "tpu-queue"}),
    "v6e-everything": a_job(
        _tpu("ct6e-standard-8t", "2x4", capacity={"type": "flex-start"}, computeClass="tpus")
        | {
            "huggingFace": {"secretRef": "hf"},
            "tracking": {"wandb": {"project": "x", "secretRef": "wandb"}},
            "runPolicy": {"suspend": True, "maxRestarts": 2, "activeDeadline": "1h", "priorityClassName": "high"},
            "prepare": {
                "resources": {"limits": {"memory": "8Gi"}},
                "nodeSelector": {"pool": "cpu"},
                "tolerations": [{"key": "cpu", "operator": "Exists"}],
                "timeout": "30m",
            },
            "podTemplate": {
                "image": "registry.example.com/trainer:2",
                "imagePullSecrets": [{"name": "pull"}],
                "serviceAccountName": "trainer",
                "env": [{"name": "A", "value": "user"}, {"name": "LORADPO_PLATFORM", "value": "mine"}],
                "envFrom": [{"configMapRef": {"name": "settings"}}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "resources": {"limits": {"memory": "100Gi"}, "requests": {"memory": "80Gi"}},
                "labels": {"team": "a"},
                "annotations": {"note": "b"},
                "nodeSelector": {"zone": "z"},
                "tolerations": [{"key": "team", "operator": "Exists"}],
            },
        }
    ),
}

SIMULATED = dataclasses.replace(SETTINGS, simulate_tpu=True, trainer_env=(("A", "operator"), ("B", "operator")))


def blueprint(raw: dict[str, Any], settings: Settings = SETTINGS) -> Blueprint:
    """The blueprint of a job whose rows are prepared."""
    observed = observe(raw, settings=settings, status=prepared_status())
    assert isinstance(observed.verdict, Accepted), observed.verdict
    return plan.blueprint_of(observed, observed.verdict, settings)
