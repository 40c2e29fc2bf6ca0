"""The validation split through the policy and the reference."""

from __future__ import annotations

from typing import Any

import jax

from lora_dpo_trainer import engine, preemption


def run(machine: engine.Engine, state: Any, *, max_pairs: int, watch: preemption.Watch) -> dict[str, float] | None:
    """Average the metrics of the validation pairs, each pair counted once.

    Args:
        machine: The compiled steps and the pairs.
        state: The training state.
        max_pairs: At most so many pairs.
        watch: Polled after each batch.

    Returns:
        `eval_dpo_loss`, `eval_dpo_accuracy`, `eval_reward_margin`, … and `eval_pairs`; None when it is time to go.
    """
    sums: dict[str, float] = {}
    pairs = 0
    for batch, count in machine.validation_batches(max_pairs):
        values = jax.device_get(machine.evaluate(state, batch))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value) * count
        pairs += count
        if watch.reached():
            return None
    return {f"eval_{name}": total / pairs for name, total in sums.items()} | {"eval_pairs": float(pairs)}
