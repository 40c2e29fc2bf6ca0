"""TRL's DPOTrainer with PEFT on the benchmark's pairs.

Two settings: `default` is what a user gets who sets nothing but model, adapter, batch size and optimizer; `fastest` is
what one gets who knows it well: no gradient checkpointing, a precomputed reference, pairs grouped by length. Both
compute in float32 on all threads: TRL's bfloat16 default is far slower on a CPU without instructions for it. Both take
the pairs in a set order, so that contenders can be compared step by step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.trainer import pairs
from benchmarks.trainer.contender import Channel, Stopwatch


class TimedTrainer(DPOTrainer):  # type: ignore[misc]
    """Adds up what reference forwards take when they are precomputed, and keeps each step's loss and gradient norm."""

    reference_seconds = 0.0
    step_loss = math.nan
    grad_norm = math.nan

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """Time the reference forward of one batch; the first is done twice, and does not pay for a cold start."""
        if self.reference_seconds == 0.0:
            super().compute_ref_log_probs(model, inputs)
        watch = Stopwatch()
        result = super().compute_ref_log_probs(model, inputs)
        self.reference_seconds += watch.read()["seconds"]
        return result

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the loss."""
        result = super().compute_loss(*args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        self.step_loss = float(loss.detach())
        return result

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self.grad_norm = float(norm)
        return norm

    def newest(self, name: str) -> float:
        """The newest value of a metric that TRL averages over the steps between two lines of its log."""
        return float(self._metrics["train"][name][-1])


class OnCommand(TrainerCallback):  # type: ignore[misc]
    """Lets every optimizer step after the first wait for its command."""

    def __init__(self, channel: Channel, trainer: TimedTrainer, facts: dict[str, Any]) -> None:
        self._channel = channel
        self._trainer = trainer
        self._facts = facts
        self._warm = False
        self._watch = Stopwatch()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the command, and start the clock."""
        if self._warm and not self._channel.wait():
            os._exit(0)
        self._watch = Stopwatch()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        trainer = self._trainer
        if self._warm:
            self._channel.took(self._watch, loss=trainer.step_loss, grad_norm=trainer.grad_norm)
            return
        self._warm = True
        # At the first step the policy is the reference.
        margin = trainer.newest("logps/chosen") - trainer.newest("logps/rejected")
        self._channel.ready(
            first_loss=trainer.step_loss,
            first_reference_margin=margin,
            first_grad_norm=trainer.grad_norm,
            **self._facts,
        )


def main() -> None:
    """Train; each step waits for its command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", choices=["default", "fastest"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    channel = Channel()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = pairs.CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    settings: dict[str, Any] = {
        "output_dir": str(options.work),
        "per_device_train_batch_size": options.batch,
        "learning_rate": 5e-6,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1000,
        "beta": 0.1,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 10_000,
        "use_cpu": True,
        "bf16": False,
        "train_sampling_strategy": "sequential",  # the benchmark has grouped the pairs by length for `fastest`
    }
    if options.setting == "fastest":
        settings |= {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
    trainer = TimedTrainer(
        model=model,
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules="all-linear", lora_dropout=0.0),
    )
    facts: dict[str, Any] = {}
    if options.setting == "fastest":
        known = zip(trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"], strict=True)
        facts = {
            "reference_seconds_per_pair": trainer.reference_seconds / len(rows),
            "reference_logprobs": [[float(chosen), float(rejected)] for chosen, rejected in known],
        }
    trainer.add_callback(OnCommand(channel, trainer, facts))
    trainer.train()


if __name__ == "__main__":
    main()
