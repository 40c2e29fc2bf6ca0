"""Log-probabilities of a handful of pairs, outside the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lora_dpo_trainer import batch, packing
from lora_dpo_trainer.lora import Adapter
from lora_dpo_trainer.pairs import TokenizedPair
from lora_dpo_trainer.step import LogprobStep


def logprobs(
    forward: LogprobStep,
    adapter: Adapter | None,
    rows: Sequence[TokenizedPair],
    *,
    groups: int = 1,
    place: Callable[[np.ndarray], Any] = lambda array: array,
) -> np.ndarray:
    """Score pairs.

    Args:
        forward: The compiled forward.
        adapter: None for the base alone.
        rows: The pairs, in any order of keys.
        groups: Parts that the batch is split into, one a data shard.
        place: Puts an array where the program wants it.

    Returns:
        float32 [pairs, 2], chosen and rejected, in the order of `rows`.
    """
    lengths = packing.PairLengths.of(rows)
    size = -(-len(rows) // groups) * groups
    plan = packing.BatchPlan.make(lengths, size, shuffle=False, groups=groups, max_shapes=1)
    numbered = [dataclasses.replace(row, key=index) for index, row in enumerate(rows)]
    packed = batch.build(numbered, plan.shapes[-1])
    values = whole(forward(adapter, jax.tree.map(place, packed)))
    found = batch.in_order(values, packed)
    return np.stack([found[index] for index in range(len(rows))])


def whole(array: jax.Array) -> np.ndarray:
    """An array that may be split over processes, whole, on this host; every process must ask."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
