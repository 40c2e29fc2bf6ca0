"""The validation split through the policy and the reference."""

from __future__ import annotations

from lora_dpo_trainer import engine, metrics, preemption
from lora_dpo_trainer.step import TrainState


def run(
    machine: engine.Engine, state: TrainState, *, max_pairs: int, watch: preemption.Watch
) -> dict[str, float] | None:
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
    for placed in machine.validation_batches(max_pairs):
        for name, value in machine.evaluate(state, placed).items():
            sums[name] = sums.get(name, 0.0) + value
        if watch.reached():
            return None
    pairs = sums.pop("pairs")
    means = {f"{metrics.EVAL}{name}": total / pairs for name, total in sums.items()}
    return means | metrics.derived(means, machine.config.beta, metrics.EVAL) | {"eval_pairs": pairs}
