"""Upstream Levanter's own LoRA-DPO on the benchmark's pairs: its program `train_dpo`, unchanged, as its guide sets it.

Its guide's settings but for what follows, none of which slows a step down:

- `a_init_mode: random` beside the guide's `zero_init_b: true`, without which today's Levanter refuses to start.
- float32 instead of bfloat16 in the computation, as everybody here: a CPU computes nothing faster in less.
- `watch` is off. By default every tenth step computes the gradients of the frozen base as well, in a program of its
  own; leaving it out favours Levanter.
- Gradients are not clipped, so that their norm can be read from Adam's state.
- No weights & biases, no dumps of programs, no validation, no accelerator required, one device in the mesh.
- Batches come in the file's order and the learning rate is constant, so that contenders can be compared step by step.

Rematerialisation is on, which is its default. Each side is padded to `train_seq_len`, which must hold the longest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import draccus
import jax
import jax.numpy as jnp
import optax
from levanter.main import train_dpo
from levanter.tracker.tracker import NoopTracker, Tracker, TrackerConfig
from levanter.trainer import Trainer

from benchmarks.trainer import pairs
from benchmarks.trainer.contender import Channel, Stopwatch

BETA1 = 0.9


class LastMetrics(NoopTracker):  # type: ignore[misc]
    """Keeps the newest value of each metric of training."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, metrics: Any, *, step: Any, commit: Any = None) -> None:
        """Keep them."""
        self.values |= {name: float(value) for name, value in metrics.items() if name.startswith("train/")}


METRICS = LastMetrics()


@TrackerConfig.register_subclass("last")
@dataclasses.dataclass
class LastMetricsConfig(TrackerConfig):  # type: ignore[misc]
    """`tracker: {type: last}`."""

    def init(self, run_id: str | None) -> Tracker:
        """The one that there is."""
        return METRICS


def main() -> None:
    """Train; each step waits for its command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--length", type=int, required=True, help="tokens that each side is padded to")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    _on_command(Channel())
    file = options.work / "levanter.yaml"
    file.write_text(json.dumps(_config(options)))
    train_dpo.main(draccus.parse(train_dpo.TrainDpoConfig, config_path=str(file), args=[]))


def _on_command(channel: Channel) -> None:
    """Let `Trainer.train_step` wait for commands after the first step, and leave when there are no more."""
    original = Trainer.train_step
    warm = False

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal warm
        if warm and not channel.wait():
            os._exit(0)  # its other threads have nothing to save
        watch = Stopwatch()
        info = original(self, *args, **kwargs)
        if warm:
            channel.took(watch, loss=float(info.loss))
        else:
            channel.ready(
                first_loss=float(info.loss),
                first_reference_margin=METRICS.values["train/dpo_margin_ref"],
                first_grad_norm=_first_grad_norm(info.state.opt_state),
            )
        warm = True
        return info

    Trainer.train_step = train_step


def _first_grad_norm(opt_state: Any) -> float:
    """Adam's first moment after one step is 1 - beta1 of the gradients, here not clipped."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    return math.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(found[0].mu))) / (1 - BETA1)


def _config(options: argparse.Namespace) -> dict[str, Any]:
    component = {
        "source": {"type": "url", "train_urls": [str(options.data)]},
        "format": {"type": "preference_chat", "chat_template": pairs.CHAT_TEMPLATE, "slice_strategy": "raise"},
        "cache_dir": str(options.work / "cache"),
    }
    return {
        "data": {
            "tokenizer": options.model,
            "components": {"prefs": component},
            "train_weights": {"prefs": 1.0},
            "shuffle": False,
            "mixture_block_size": options.batch,  # its mixture changes the order within blocks, even of one component
        },
        "initialize_from_hf": options.model,
        "use_hf_model_config": True,
        "model": {"type": "llama", "reference_checkpoint": options.model, "tokenizer": options.model},
        "train_seq_len": options.length,
        "validation_split_fraction": None,
        "beta": 0.1,
        "optimizer": {
            "type": "adam",
            "learning_rate": 5e-6,
            "lr_schedule": "constant",
            "warmup": 0,
            "weight_decay": 0.0,
            "beta1": BETA1,
            "beta2": 0.999,
            "max_grad_norm": None,
        },
        "adapter": {
            "type": "lora",
            "r": options.rank,
            "alpha": float(options.rank),
            "dropout": 0.0,
            "a_init_mode": "random",
            "zero_init_b": True,
            "target_modules": None,
        },
        "reference": {"type": "adapter_base"},
        "trainer": {
            "mp": "p=f32,c=f32",
            "train_batch_size": options.batch,
            "num_train_steps": 10_000,
            "tracker": {"type": "last"},
            "watch": {"watch_targets": []},
            "require_accelerator": False,
            "log_jaxprs": False,
            "log_xla_hlo": False,
            "log_dir": str(options.work / "logs"),
            "checkpointer": {"base_path": str(options.work / "checkpoints"), "save_interval": "10h"},
        },
    }


if __name__ == "__main__":
    main()
