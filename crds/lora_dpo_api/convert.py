"""From the guide's YAML to a LoraDpoJob manifest.

A user who trained with Levanter on a machine of their own gets the job that does the same on a cluster, and the list of
what has no counterpart there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from lora_dpo_api import config_file, config_models, wire
from lora_dpo_api.config_models import AInit, Section, TrainerConfig
from lora_dpo_api.job import LoraDpoJob

DEFAULT_HARDWARE: Mapping[str, Any] = {"tpu": {"acceleratorType": "v5p-8"}}
NO_CLIPPING = 1e6
"""Gradient norm that is never reached."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A manifest, and what its user should know.

    Attributes:
        manifest: ready for `kubectl apply`.
        dropped: keys of the file that have no meaning on a cluster.
        notes: values that moved, were forced, or have to be filled in; a sentence each.
    """

    manifest: dict[str, Any]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def to_job(
    text: str,
    *,
    name: str,
    namespace: str | None = None,
    hardware: Mapping[str, Any] = DEFAULT_HARDWARE,
    overrides: Sequence[str] = (),
) -> Conversion:
    """Convert a trainer configuration.

    Args:
        text: the guide's YAML.
        name: of the job.
        namespace: of the job; left to `kubectl` when absent.
        hardware: `{"tpu": …}` or `{"cpu": …}`: the file does not say it.
        overrides: as for `config_file.load`.

    Raises:
        ConfigError: the file is wrong.
        SpecError: the file asks for something that no LoraDpoJob may have, such as a learning rate above 5e-5.
    """
    loaded = config_file.load(text, overrides)
    notes = list(loaded.warnings)
    spec = _spec(loaded.config, name, notes) | dict(hardware)
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    manifest = {"apiVersion": wire.API_VERSION, "kind": wire.KIND, "metadata": metadata, "spec": spec}
    LoraDpoJob.from_body(manifest)
    return Conversion(manifest, loaded.ignored, tuple(notes))


def _spec(config: TrainerConfig, name: str, notes: list[str]) -> dict[str, Any]:
    parts = {
        "initializeFromHf": config.initialize_from_hf,
        "revision": config.revision,
        "data": _data(config.data),
        **_written(config, "train_seq_len", "validation_split_fraction", "beta", "run_id"),
        "eval": _section(config.eval),
        "trainer": _section(config.trainer),
        "optimizer": _optimizer(config.optimizer),
        "lora": _lora(config.lora),
        "loss": _section(config.loss),
        "adapter": _section(config.adapter),
        "reference": _section(config.reference),
        "output": _output(config.output, name, notes),
        "cache": _section(config.cache),
        "tracking": _tracking(config.tracking, notes),
    }
    return {key: value for key, value in parts.items() if value not in (None, {})}


def _written(section: Section, *names: str) -> dict[str, Any]:
    """The named fields that the file has a value for, in camelCase."""
    found = {name: getattr(section, name) for name in names if name in section.model_fields_set}
    return {to_camel(name): _plain(value) for name, value in found.items() if value is not None}


def _section(section: Section, *without: str) -> dict[str, Any]:
    return _written(section, *(name for name in type(section).model_fields if name not in without))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _section(value)
    return value.value if hasattr(value, "value") else value


def _data(data: config_models.DataConfig) -> dict[str, Any]:
    components = {
        name: {"source": {"type": component.source.type, **_section(component.source)}, **_written(component, "format")}
        for name, component in data.components.items()
    }
    return {**_section(data, "components"), "components": components}


def _optimizer(optimizer: config_models.OptimizerConfig) -> dict[str, Any]:
    found = _section(optimizer, "warmup")
    if "warmup" in optimizer.model_fields_set:
        share = optimizer.warmup < 1
        found |= {"warmupRatio": optimizer.warmup} if share else {"warmupSteps": int(optimizer.warmup)}
    if optimizer.max_grad_norm is None:
        found["maxGradNorm"] = NO_CLIPPING
    return found


def _lora(lora: config_models.LoraConfig) -> dict[str, Any]:
    found = _section(lora, "a_init_mode", "rslora", "target_modules", "zero_init_b")
    if lora.a_init_mode is AInit.ZERO:
        found["aInitMode"] = AInit.ZERO.value
    elif "zero_init_b" in lora.model_fields_set:
        found["zeroInitB"] = lora.zero_init_b
    if lora.rslora:
        found["rsLora"] = True
    if lora.target_modules is not None:
        found["targetModulesRegex" if isinstance(lora.target_modules, str) else "targetModules"] = lora.target_modules
    return found


def _output(output: config_models.OutputConfig, name: str, notes: list[str]) -> dict[str, Any]:
    found = _section(output, "checkpoint")
    if re.fullmatch(wire.STORAGE, output.path) is None:
        found["path"] = f"gs://your-bucket/{name}"
        notes.append(f"spec.output.path: {output.path} is not reachable from a cluster; fill in your own bucket")
    checkpoint = _section(output.checkpoint, "every_seconds")
    if "every_seconds" in output.checkpoint.model_fields_set:
        checkpoint["every"] = f"{max(1, round(output.checkpoint.every_seconds))}s"
    return found | ({"checkpoint": checkpoint} if checkpoint else {})


def _tracking(tracking: config_models.TrackingConfig, notes: list[str]) -> dict[str, Any]:
    found = _section(tracking, "wandb")
    if tracking.wandb is not None:
        found["wandb"] = {**_section(tracking.wandb), "secretRef": "wandb"}
        notes.append(
            "spec.tracking.wandb.secretRef: make the Secret wandb with the key WANDB_API_KEY, or name your own"
        )
    return found
