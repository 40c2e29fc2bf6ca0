"""TRL's DPOTrainer with PEFT on the benchmark's pairs.

Two settings: `default` is what a user gets who sets nothing but model, adapter, batch size and learning rate;
`fastest` is what one gets who knows it well: float32, no gradient checkpointing, precomputed reference, pairs grouped
by length, all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.trainer import pairs
from benchmarks.trainer.contender import Channel


class OnCommand(TrainerCallback):
    """Lets every optimizer step after the warm-up wait for its command."""

    def __init__(self, channel: Channel, warmup: int, facts: Callable[[], dict[str, Any]]) -> None:
        self._channel = channel
        self._warmup = warmup
        self._facts = facts
        self._done = 0
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the command, and start the clock."""
        if self._done == self._warmup:
            self._channel.ready(**self._facts())
        if self._done >= self._warmup and not self._channel.wait():
            os._exit(0)
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        if self._done >= self._warmup:
            self._channel.took(time.perf_counter() - self._started)
        self._done += 1


class TimedTrainer(DPOTrainer):
    """Adds up the seconds that reference forwards take when they are precomputed."""

    reference_seconds = 0.0

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """Time the reference forward of one batch."""
        started = time.perf_counter()
        result = super().compute_ref_log_probs(model, inputs)
        self.reference_seconds += time.perf_counter() - started
        return result


def main() -> None:
    """Train; each step waits for its command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", choices=["default", "fastest"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()

    channel = Channel()
    torch.set_num_threads(os.cpu_count() or 1)
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    fastest = options.setting == "fastest"
    if fastest:  # what grouping by length does to the measured pairs, warm-up apart
        cut = options.warmup * options.batch
        rows[cut:] = sorted(rows[cut:], key=lambda row: len(json.dumps(row)))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = pairs.CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    common: dict[str, Any] = {
        "output_dir": str(options.work),
        "per_device_train_batch_size": options.batch,
        "learning_rate": 5e-6,
        "num_train_epochs": 1000,
        "beta": 0.1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
    }
    if fastest:
        common |= {"bf16": False, "gradient_checkpointing": False, "precompute_ref_log_probs": True}
    trainer = TimedTrainer(
        model=model,
        args=DPOConfig(**common),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules="all-linear", lora_dropout=0.0),
    )
    seconds = lambda: {"reference_seconds_per_pair": trainer.reference_seconds / len(rows)}  # noqa: E731
    trainer.add_callback(OnCommand(channel, options.warmup, seconds))
    trainer.train()


if __name__ == "__main__":
    main()
