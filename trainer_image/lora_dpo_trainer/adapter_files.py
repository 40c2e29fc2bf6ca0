"""The folder of an adapter as its user gets it: PEFT's files, the tokenizer, a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import chat, engine, peft_io, pretrained, storage
from lora_dpo_trainer.lora import Adapter


def write(machine: engine.Engine, adapter: Adapter, url: str, *, steps: int, metrics: Mapping[str, float]) -> None:
    """Write an adapter; its weights come last, so that their presence means that all is there.

    Args:
        machine: Knows the model and the plan.
        adapter: Whole on this process.
        url: The folder.
        steps: Steps trained.
        metrics: What the model card shows.

    Raises:
        NonFinite: the adapter holds NaN or infinities: nothing is written, for it must not count as a result.
    """
    config = machine.config
    source = pretrained.Pretrained(
        config.data.tokenizer or config.initialize_from_hf, None if config.data.tokenizer else config.revision
    )
    for name, content in source.read(chat.TOKENIZER_FILES).items():
        storage.write_bytes(storage.join(url, name), content)
    card = model_card(config, steps=steps, metrics=metrics)
    storage.write_bytes(storage.join(url, "README.md"), card.encode())
    peft_io.save(url, adapter, machine.adapted, config.lora, config.initialize_from_hf, config.revision)


def model_card(config: TrainerConfig, *, steps: int, metrics: Mapping[str, float]) -> str:
    """The README.md of an adapter: what it is, how it was made, what was measured last."""
    measured = "".join(f"| {name} | {value:.4g} |\n" for name, value in sorted(metrics.items()))
    lora, optimizer, base = config.lora, config.optimizer, config.initialize_from_hf
    reference = f"the adapter `{config.reference.adapter}`" if config.reference.adapter else "the base model itself"
    return (
        "---\n"
        "library_name: peft\n"
        f"base_model: {json.dumps(base)}\n"
        "pipeline_tag: text-generation\n"
        "tags: [dpo, lora, preference-optimization]\n"
        "---\n\n"
        "# LoRA adapter trained with Direct Preference Optimization\n\n"
        f"Base model: `{base}`. Reference: {reference}.\n\n"
        f"{steps} steps of {config.trainer.train_batch_size} pairs; {config.loss.type.value} loss, "
        f"beta {config.beta:g}; learning rate {optimizer.learning_rate:g} ({optimizer.lr_schedule}); "
        f"rank {lora.r}, alpha {lora.resolved_alpha:g}, dropout {lora.dropout:g}"
        f"{', rank-stabilised' if lora.rslora else ''}.\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "<this folder>")\n'
        "```\n\n"
        "Last values:\n\n"
        "| metric | value |\n|---|---|\n"
        f"{measured}"
    )
