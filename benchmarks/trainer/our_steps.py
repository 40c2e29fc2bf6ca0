"""This trainer on the benchmark's pairs: its own phases' code, in its defaults but for a constant learning rate."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.trainer import pairs
from benchmarks.trainer.contender import Channel
from lora_dpo_api import config_file, yaml12
from lora_dpo_trainer import engine, identity, prepare, prepared, reference, sources

_COMPILED = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Prepare, compute the reference, compile all shapes, then step on command."""
    options = read_options()
    channel = Channel()

    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiles.append(seconds) if name == _COMPILED else None
    )
    machine = prepared_engine(options)
    scorer = machine.reference_scorer()
    reference.compute(machine.pairs.train, scorer)  # compiles
    started = time.perf_counter()
    known = reference.compute(machine.pairs.train, scorer)
    reference_seconds = time.perf_counter() - started
    machine = dataclasses.replace(machine, reference_logprobs={sources.TRAIN: known})

    steps = range(machine.total_steps)
    state = machine.fresh_state()
    for number in sorted({machine.plan.shape_of_step(number): number for number in steps}.values()):
        state, _ = machine.train(state, machine.batch(number))
    warm = len(compiles)
    order = [machine.keys[machine.plan.keys_of_step(number)] for number in steps]
    del state  # a run has one
    state, first = machine.train(machine.fresh_state(), machine.batch(0))
    real = sum(machine.batch(number).tokens for number in steps)
    channel.ready(
        reference_seconds_per_pair=reference_seconds / len(known),
        reference_logprobs=known.tolist(),
        order=np.concatenate(order).tolist(),
        shapes=len(machine.plan.shapes),
        real_tokens=real / sum(machine.plan.shape_of_step(number).tokens for number in steps),
        first_loss=first["dpo_loss"],
        first_reference_margin=float((known[order[0], 0] - known[order[0], 1]).mean()),
        first_grad_norm=first["grad_norm"],
    )
    numbers = itertools.cycle((*steps[1:], 0))

    def step() -> dict[str, Any]:
        nonlocal state
        batch = machine.batch(next(numbers))
        state, values = machine.train(state, batch)
        return {"pairs": batch.pairs, "tokens": batch.tokens, "loss": values["dpo_loss"],
                "grad_norm": values["grad_norm"], "compiles": len(compiles) - warm}  # fmt: skip

    channel.serve(step)


def read_options() -> argparse.Namespace:
    """What the benchmark says on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    return parser.parse_args()


def prepared_engine(options: argparse.Namespace) -> engine.Engine:
    """The prepare phase, and the train phase up to its first step."""
    component = {
        "source": {"type": "url", "train_urls": [str(options.data)]},
        "format": {"type": "preference_chat", "chat_template": pairs.CHAT_TEMPLATE},
    }
    values = {
        "data": {"components": {"prefs": component}},
        "initialize_from_hf": options.model,
        "train_seq_len": pairs.MAX_PAIR,
        "trainer": {"train_batch_size": options.batch, "num_epochs": 1, "mp": "p=f32,c=f32"},
        "optimizer": {"learning_rate": 5e-6, "lr_schedule": "constant", "warmup": 0, "weight_decay": 0.0},
        "lora": {"r": options.rank, "alpha": options.rank},
        "output": {"path": str(options.work / "out")},
    }
    config = config_file.load(yaml12.dumps(values)).config
    prepare.run(config)
    owner = identity.read(config.output.path)
    assert owner is not None
    return engine.build(config, prepared.load(config.cache_path, owner.data), owner)


if __name__ == "__main__":
    main()
