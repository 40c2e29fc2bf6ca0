"""The jitted programs: train step, evaluation, log-probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lora_dpo_trainer.batch import PackedBatch
from lora_dpo_trainer.lora import Adapter, LoraPlan
from lora_dpo_trainer.model import BaseModel
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer

type Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a checkpoint holds of the computation.

    Attributes:
        adapter: `lora.Adapter`, float32.
        opt_state: Optax's state, same layout.
        step: int32 scalar, steps completed.
        key: Root key of dropout; step n uses `fold_in(key, n)`, so that resuming is exact.
    """

    adapter: Adapter
    opt_state: Any
    step: jax.Array
    key: jax.Array


class TrainStep:
    """`state, metrics = train_step(state, batch)`; the state given is donated."""

    def __call__(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, Metrics]:
        """One optimizer step.

        Returns:
            The new state, and float32 scalars: `objective.METRICS`, `grad_norm` (before clipping), `learning_rate`.
        """
        raise NotImplementedError


def init_state(adapter: Adapter, optimizer: Optimizer, seed: int) -> TrainState:
    """The state before the first step."""
    raise NotImplementedError


def make_train_step(
    base: BaseModel, plan: LoraPlan, objective: Objective, optimizer: Optimizer, *, microbatches: int = 1
) -> TrainStep:
    """Build the train step.

    The reference log-probabilities are taken from the batch, or, when `batch.reference` is None, computed by an
    adapter-less forward of the same program. Groups of a batch are `data shards x microbatches`.
    """
    raise NotImplementedError
