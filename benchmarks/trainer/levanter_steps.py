"""Upstream Levanter's own LoRA-DPO on the benchmark's pairs: its program `train_dpo`, unchanged, in its defaults."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import draccus
from levanter.main import train_dpo
from levanter.trainer import Trainer

from benchmarks.trainer import pairs
from benchmarks.trainer.contender import Channel


def main() -> None:
    """Train; each step waits for its command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--length", type=int, required=True, help="tokens that each side is padded to")
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    _on_command(Channel(), options.warmup)
    file = options.work / "levanter.yaml"
    file.write_text(json.dumps(_config(options)))
    train_dpo.main(draccus.parse(train_dpo.TrainDpoConfig, config_path=str(file), args=[]))


def _on_command(channel: Channel, warmup: int) -> None:
    """Let `Trainer.train_step` wait for commands after the warm-up, and leave when there are no more."""
    original = Trainer.train_step
    done = 0

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        if done == warmup:
            channel.ready()
        if done >= warmup and not channel.wait():
            os._exit(0)  # its other threads have nothing to save
        started = time.perf_counter()
        info = original(self, *args, **kwargs)
        if done >= warmup:
            channel.took(time.perf_counter() - started, loss=float(info.loss))
        done += 1
        return info

    Trainer.train_step = train_step


def _config(options: argparse.Namespace) -> dict[str, Any]:
    component = {
        "source": {"type": "url", "train_urls": [str(options.data)]},
        "format": {"type": "preference_chat", "chat_template": pairs.CHAT_TEMPLATE},
        "cache_dir": str(options.work / "cache"),
    }
    return {
        "data": {
            "tokenizer": options.model,
            "components": {"prefs": component},
            "train_weights": {"prefs": 1.0},
            "shuffle": True,
        },
        "initialize_from_hf": options.model,
        "use_hf_model_config": True,
        "model": {"type": "llama", "reference_checkpoint": options.model, "tokenizer": options.model},
        "train_seq_len": options.length,
        "validation_split_fraction": None,
        "beta": 0.1,
        "optimizer": {"type": "adam", "learning_rate": 5e-6},
        "adapter": {"type": "lora", "r": options.rank, "alpha": float(options.rank)},
        "reference": {"type": "adapter_base"},
        "trainer": {
            "mp": "p=f32,c=f32",
            "train_batch_size": options.batch,
            "num_train_steps": 10_000,
            "tracker": {"type": "noop"},
            "require_accelerator": False,
            "log_jaxprs": False,
            "log_xla_hlo": False,
            "log_dir": str(options.work / "logs"),
            "checkpointer": {"base_path": str(options.work / "checkpoints"), "save_interval": "10h"},
        },
    }


if __name__ == "__main__":
    main()
