"""Token arrays of one step: pairs packed into rows, the prefix of a pair encoded once for both answers.

A pair occupies consecutive positions of one row: the common prefix (branch 0), what is left of the chosen side
(branch 1), what is left of the rejected side (branch 2). A token attends to earlier tokens of its pair that belong to
its own branch or to branch 0, and its position id counts from the start of its own side, so that each side computes
exactly what it would alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lora_dpo_trainer import packing
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.pairs import TokenizedPair

PREFIX, CHOSEN, REJECTED = 0, 1, 2
"""Branch ids."""
NO_PAIR = -1


class PackedBatch(NamedTuple):
    """A batch as a pytree of arrays; see `BatchShape` for the sizes.

    Attributes:
        tokens: int32 [groups, rows, row_length], token ids, 0 in the padding.
        positions: int32 [groups, rows, row_length], position ids, counted from the start of each side.
        pair: int32 [groups, rows, row_length], index of the pair in its group, `NO_PAIR` in the padding.
        branch: int32 [groups, rows, row_length], 0 shared prefix, 1 chosen, 2 rejected.
        slot_source: int32 [groups, slots], the hidden state that predicts: row * row_length + position.
        slot_target: int32 [groups, slots], the token predicted.
        slot_answer: int32 [groups, slots], 2 * pair + side (0 chosen, 1 rejected); 2 * pairs in the padding.
        key: int32 [groups, pairs], `TokenizedPair.key`, -1 where there is no pair.
        valid: bool [groups, pairs], whether there is a pair.
        reference: float32 [groups, pairs, 2], log-probabilities of both answers under the reference, or None.
    """

    tokens: np.ndarray
    positions: np.ndarray
    pair: np.ndarray
    branch: np.ndarray
    slot_source: np.ndarray
    slot_target: np.ndarray
    slot_answer: np.ndarray
    key: np.ndarray
    valid: np.ndarray
    reference: np.ndarray | None


def build(pairs: Sequence[TokenizedPair], shape: BatchShape, reference: np.ndarray | None = None) -> PackedBatch:
    """Pack pairs.

    Args:
        pairs: At most `shape.groups * shape.pairs`.
        shape: The array sizes, from `BatchPlan.shape_of_step`.
        reference: float32 [pairs, 2], in the order of `pairs`.

    Raises:
        ValueError: the pairs do not fit into the shape.
    """
    grid = (shape.groups, shape.rows, shape.row_length)
    tokens, positions, branch = (np.zeros(grid, np.int32) for _ in range(3))
    owner = np.full(grid, NO_PAIR, np.int32)
    source, target = (np.zeros((shape.groups, shape.slots), np.int32) for _ in range(2))
    answer = np.full((shape.groups, shape.slots), 2 * shape.pairs, np.int32)
    key = np.full((shape.groups, shape.pairs), -1, np.int32)
    cached = None if reference is None else np.zeros((shape.groups, shape.pairs, 2), np.float32)
    filled = [0] * shape.groups

    encoded = np.array([pair.encoded_length for pair in pairs], np.int64)
    places = packing.place(encoded, shape.groups, shape.pairs, shape.row_length)
    for index, (pair, spot) in enumerate(zip(pairs, places, strict=True)):
        if spot.row >= shape.rows:
            raise ValueError(f"pair {pair.key} needs row {spot.row + 1} of {shape}")
        shared, chosen, rejected = pair.shared, len(pair.chosen_ids), len(pair.rejected_ids)
        where = spot.group, spot.row, slice(spot.start, spot.start + pair.encoded_length)
        tokens[where] = np.concatenate([pair.chosen_ids, pair.rejected_ids[shared:]])
        positions[where] = np.concatenate([np.arange(chosen), np.arange(shared, rejected)])
        branch[where] = np.repeat((PREFIX, CHOSEN, REJECTED), (shared, chosen - shared, rejected - shared))
        owner[where] = spot.pair
        key[spot.group, spot.pair] = pair.key
        if cached is not None and reference is not None:
            cached[spot.group, spot.pair] = reference[index]
        base = spot.row * shape.row_length + spot.start
        for side, (ids, mask) in enumerate(
            ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask))
        ):
            predicted = np.flatnonzero(mask[1:]) + 1
            before = predicted - 1
            # Behind the prefix, the rejected side lies after the whole chosen one.
            offset = np.where(before < shared, 0, (chosen - shared) * side)
            slots = slice(filled[spot.group], filled[spot.group] + len(predicted))
            if slots.stop > shape.slots:
                raise ValueError(f"pair {pair.key} needs slot {slots.stop} of {shape}")
            source[spot.group, slots] = base + before + offset
            target[spot.group, slots] = ids[predicted]
            answer[spot.group, slots] = 2 * spot.pair + side
            filled[spot.group] = slots.stop
    return PackedBatch(tokens, positions, owner, branch, source, target, answer, key, key >= 0, cached)


def in_order(values: np.ndarray, batch: PackedBatch) -> dict[int, np.ndarray]:
    """Per-pair results by key.

    Args:
        values: [groups, pairs, …], such as log-probabilities.
        batch: What they were computed from.
    """
    flat = np.asarray(values).reshape(-1, *values.shape[2:])
    return {int(key): flat[index] for index, key in enumerate(batch.key.reshape(-1)) if key >= 0}
