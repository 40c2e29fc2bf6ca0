"""PEFT adapters that are there before a run: the one it starts from, and the one that its reference keeps.

Both are looked at before a slice is held. An adapter decides its own layers, ranks and scales: with any other scale it
would be another function than the one that its user trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lora_dpo_api.config_file import AdapterConfig, LoraConfig, ReferenceConfig, TrainerConfig
from lora_dpo_api.protocol import Advice
from lora_dpo_trainer import errors, peft_io

START, REFERENCE = "adapter.init_from", "reference.adapter"


@dataclasses.dataclass(frozen=True)
class Settled:
    """A configuration that agrees with the adapters that it names.

    Attributes:
        config: `lora` has the shape of the adapter to start from; equal adapters have equal names.
        digests: Setting → digest of its adapter.
        advice: What the user should hear.
    """

    config: TrainerConfig
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    advice: tuple[Advice, ...] = ()


def settle(config: TrainerConfig) -> Settled:
    """Read the adapters that a configuration names, if any.

    Raises:
        ConfigError: there is none, it is no LoRA adapter, or of a kind that is not supported.
    """
    start, reference = config.adapter.init_from, config.reference.adapter
    if start is None and reference is None:
        return Settled(config)
    digests = {name: _digest(name, folder) for name, folder in ((START, start), (REFERENCE, reference)) if folder}
    if digests.get(START) == digests.get(REFERENCE):
        reference = start
    lora, advice = config.lora, []
    if start is not None:
        lora = _shape_of(start, config.lora)
        advice += _other_shape(config.lora, lora, start)
    advice += _other_start(start, reference)
    settled = config.model_copy(
        update={
            "lora": lora,
            "adapter": AdapterConfig(init_from=start),
            "reference": ReferenceConfig(adapter=reference),
        }
    )
    return Settled(settled, digests, tuple(advice))


def _digest(setting: str, folder: str) -> str:
    try:
        peft_io.load_config(folder)
        return peft_io.digest(folder)
    except FileNotFoundError as error:
        raise errors.ConfigError(
            f"{setting} is {folder}, where there is no PEFT adapter ({peft_io.CONFIG} and {peft_io.WEIGHTS}).",
            hint="An adapter saved as adapter_model.bin has to be saved again: "
            "model.save_pretrained(folder, safe_serialization=True).",
        ) from error


def _shape_of(folder: str, written: LoraConfig) -> LoraConfig:
    """The adapter's own layers, ranks and scales; how it is trained stays as written."""
    kept = {"dropout": written.dropout, "zero_init_b": written.zero_init_b, "a_init_mode": written.a_init_mode}
    return peft_io.load_config(folder).model_copy(update=kept)


def _other_shape(written: LoraConfig, found: LoraConfig, folder: str) -> list[Advice]:
    pairs = {
        "lora.r": (written.r, found.r),
        "lora.alpha": (written.resolved_alpha, found.resolved_alpha),
        "lora.rslora": (written.rslora, found.rslora),
    }
    differing = [f"{name} {there!r} (not {here!r})" for name, (here, there) in pairs.items() if here != there]
    if not differing:
        return []
    text = f"{START} decides the adapter's shape: {folder} has {', '.join(differing)}."
    return [Advice(code="AdapterShapeKept", message=text[:1024])]


def _other_start(start: str | None, reference: str | None) -> list[Advice]:
    if start == reference:
        return []
    if reference is None:
        text = (
            f"Training starts from {start}, and the reference is the base without it: the first loss is not ln 2, and "
            f"beta also holds against what that adapter learned before. Set {REFERENCE} to the same adapter to be "
            "compared with the start."
        )
    else:
        text = (
            f"The reference keeps {reference}, and training starts from {start or 'the base without it'}: the first "
            f"loss is not ln 2. Set {START} to the same adapter to start from the reference."
        )
    return [Advice(code="StartIsNotReference", message=text[:1024])]
