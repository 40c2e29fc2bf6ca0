"""The folder of an adapter as its user gets it: PEFT's files, the tokenizer, a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import chat, engine, peft_io, pretrained, storage
from lora_dpo_trainer.lora import Adapter


def write(machine: engine.Engine, adapter: Adapter, url: str, *, steps: int, metrics: Mapping[str, float]) -> str:
    """Write an adapter; its weights come last, so that their presence means that all is there.

    Args:
        machine: Knows the model and the plan.
        adapter: Whole on this process.
        url: The folder.
        steps: Steps trained.
        metrics: What the model card shows.

    Returns:
        Hex digest of the weights' file.

    Raises:
        NonFinite: the adapter holds NaN or infinities: nothing is written, for it must not count as a result.
    """
    config = machine.config
    for name, content in tokenizer_files(config).items():
        storage.write_bytes(storage.join(url, name), content)
    card = model_card(config, machine.facts(), steps=steps, metrics=metrics)
    storage.write_bytes(storage.join(url, "README.md"), card.encode())
    return peft_io.save(
        url,
        adapter,
        machine.adapted,
        config.lora,
        config.initialize_from_hf,
        config.revision,
        config.output.peft.dtype or "float32",
    )


def tokenizer_files(config: TrainerConfig) -> dict[str, bytes]:
    """The tokenizer that the pairs went through, with the chat template that they were rendered with.

    Serving then renders prompts as training did.

    Returns:
        File name → content.
    """
    own = config.data.tokenizer
    source = pretrained.Pretrained(own or config.initialize_from_hf, None if own else config.revision)
    files = source.read(chat.TOKENIZER_FILES)
    templates = {component.format.chat_template for component in config.data.components.values()}
    if len(templates) == 1 and (template := templates.pop()) is not None:
        files["chat_template.jinja"] = template.encode()
    return files


def model_card(config: TrainerConfig, facts: Mapping[str, str], *, steps: int, metrics: Mapping[str, float]) -> str:
    """The README.md of an adapter: what it is, how it was made, what was measured last.

    Args:
        config: Of the run.
        facts: What the run is known by and what it saw, as label → text.
        steps: Steps trained.
        metrics: Name → last value.
    """
    known = "".join(f"| {label} | {text} |\n" for label, text in facts.items())
    measured = "".join(f"| {name} | {value:.4g} |\n" for name, value in sorted(metrics.items()))
    lora, optimizer, base = config.lora, config.optimizer, config.initialize_from_hf
    reference = f"the adapter `{config.reference.adapter}`" if config.reference.adapter else "the base model itself"
    at = f" at revision `{config.revision}`" if config.revision else ""
    revision = f', revision="{config.revision}"' if config.revision else ""
    start = f"the adapter `{config.adapter.init_from}`" if config.adapter.init_from else "a new adapter"
    smoothing = f", label smoothing {config.loss.label_smoothing:g}" if config.loss.label_smoothing else ""
    sft = f", SFT weight {config.loss.sft_weight:g}" if config.loss.sft_weight else ""
    return (
        "---\n"
        "library_name: peft\n"
        f"base_model: {json.dumps(base)}\n"
        "pipeline_tag: text-generation\n"
        "tags: [dpo, lora, preference-optimization]\n"
        "---\n\n"
        "# LoRA adapter trained with Direct Preference Optimization\n\n"
        f"Base model: `{base}`{at}. Start: {start}. Reference: {reference}.\n\n"
        f"{steps} steps of {config.trainer.train_batch_size} pairs; {config.loss.type.value} loss{smoothing}{sft}, "
        f"beta {config.beta:g}; learning rate {optimizer.learning_rate:g} ({optimizer.lr_schedule}); "
        f"rank {lora.r}, alpha {lora.resolved_alpha:g}, dropout {lora.dropout:g}"
        f"{', rank-stabilised' if lora.rslora else ''}.\n\n"
        "| fact | value |\n|---|---|\n"
        f"{known}\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision})\n'
        'model = PeftModel.from_pretrained(base, "<this folder>")\n'
        "```\n\n"
        "Last values:\n\n"
        "| metric | value |\n|---|---|\n"
        f"{measured}"
    )
