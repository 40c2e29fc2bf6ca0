"""Token arrays of one step: pairs one behind the other, the prefix of a pair encoded once for both answers.

A pair occupies consecutive positions: the common prefix, what is left of the chosen side, what is left of the rejected
side. A position id counts from the start of its own side. Everything that treats tokens alone runs over these
positions; attention runs over sides, gathered into cells: a token of the prefix has a cell in both, and each side
computes exactly what it would alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lora_dpo_trainer import packing
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.pairs import TokenizedPair


class PackedBatch(NamedTuple):
    """A batch as a pytree of arrays; see `BatchShape` for the sizes.

    Attributes:
        tokens: int32 [groups, row_length], token ids, 0 in the padding.
        positions: int32 [groups, row_length], position ids, counted from the start of each side.
        sides: For each of `BatchShape.sides`, int32 [groups, count, length]: the positions of a side's tokens,
            row_length behind its end. All of them, one behind the other, are the group's cells.
        cells: int32 [groups, row_length, 2], the cells of a position; the number of cells where there is none.
        slot_source: int32 [groups, slots], the position whose hidden state predicts.
        slot_target: int32 [groups, slots], the token predicted.
        slot_answer: int32 [groups, slots], 2 * pair + side (0 chosen, 1 rejected); 2 * pairs in the padding.
        key: int32 [groups, pairs], `TokenizedPair.key`, -1 where there is no pair.
        valid: bool [groups, pairs], whether there is a pair.
        reference: float32 [groups, pairs, 2], log-probabilities of both answers under the reference, or None.
    """

    tokens: np.ndarray
    positions: np.ndarray
    sides: tuple[np.ndarray, ...]
    cells: np.ndarray
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
    tokens, positions = (np.zeros((shape.groups, shape.row_length), np.int32) for _ in range(2))
    source, target = (np.zeros((shape.groups, shape.slots), np.int32) for _ in range(2))
    answer = np.full((shape.groups, shape.slots), 2 * shape.pairs, np.int32)
    key = np.full((shape.groups, shape.pairs), -1, np.int32)
    cached = None if reference is None else np.zeros((shape.groups, shape.pairs, 2), np.float32)
    filled = [0] * shape.groups
    sides: list[list[np.ndarray]] = [[] for _ in range(shape.groups)]

    encoded = np.array([pair.encoded_length for pair in pairs], np.int64)
    for index, (pair, spot) in enumerate(zip(pairs, packing.place(encoded, shape.groups, shape.pairs), strict=True)):
        shared, chosen, rejected = pair.shared, len(pair.chosen_ids), len(pair.rejected_ids)
        span = slice(spot.start, spot.start + pair.encoded_length)
        if span.stop > shape.row_length:
            raise ValueError(f"pair {pair.key} needs position {span.stop} of {shape}")
        tokens[spot.group, span] = np.concatenate([pair.chosen_ids, pair.rejected_ids[shared:]])
        positions[spot.group, span] = np.concatenate([np.arange(chosen), np.arange(shared, rejected)])
        key[spot.group, spot.pair] = pair.key
        if cached is not None and reference is not None:
            cached[spot.group, spot.pair] = reference[index]
        for side, (ids, mask) in enumerate(
            ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask))
        ):
            place = spot.start + np.arange(len(ids))
            # Behind the prefix, the rejected side lies after the whole chosen one.
            place[shared:] += (chosen - shared) * side
            sides[spot.group].append(place)
            predicted = np.flatnonzero(mask[1:]) + 1
            slots = slice(filled[spot.group], filled[spot.group] + len(predicted))
            if slots.stop > shape.slots:
                raise ValueError(f"pair {pair.key} needs slot {slots.stop} of {shape}")
            source[spot.group, slots] = place[predicted - 1]
            target[spot.group, slots] = ids[predicted]
            answer[spot.group, slots] = 2 * spot.pair + side
            filled[spot.group] = slots.stop
    parts, cells = _cells(sides, shape)
    return PackedBatch(tokens, positions, parts, cells, source, target, answer, key, key >= 0, cached)


def describe(shape: BatchShape, place: jax.sharding.Sharding, *, reference: bool = True) -> PackedBatch:
    """A batch that is not there, as `jax.ShapeDtypeStruct`, to compile programs for it.

    Args:
        shape: The array sizes.
        place: Of every array.
        reference: Whether the reference's log-probabilities come with it.
    """

    def array(*sizes: int, dtype: type[np.generic] = np.int32) -> Any:
        return jax.ShapeDtypeStruct((shape.groups, *sizes), dtype, sharding=place)

    tokens, slots, pairs = shape.row_length, shape.slots, shape.pairs
    return PackedBatch(
        array(tokens),
        array(tokens),
        tuple(array(*size) for size in shape.sides),
        array(tokens, 2),
        array(slots),
        array(slots),
        array(slots),
        array(pairs),
        array(pairs, dtype=np.bool_),
        array(pairs, 2, dtype=np.float32) if reference else None,
    )


def _cells(sides: Sequence[Sequence[np.ndarray]], shape: BatchShape) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """`PackedBatch.sides` and `PackedBatch.cells`, from the positions of each group's sides.

    Raises:
        ValueError: the sides do not fit into the shape.
    """
    parts = tuple(np.full((shape.groups, *size), shape.row_length, np.int32) for size in shape.sides)
    number = sum(count * length for count, length in shape.sides)
    cells = np.full((shape.groups, shape.row_length, 2), number, np.int32)
    rooms = [(part, row) for part, (count, _) in enumerate(shape.sides) for row in range(count)]
    first = np.cumsum([0] + [length for count, length in shape.sides for _ in range(count)])
    for group, places in enumerate(sides):
        longest_first = sorted(places, key=len, reverse=True)
        for (part, row), start, place in zip(rooms, first, longest_first, strict=False):
            if len(place) > shape.sides[part][1]:
                raise ValueError(f"a side of {len(place)} tokens does not fit in {shape}")
            parts[part][group, row, : len(place)] = place
            again = (cells[group, place, 0] != number).astype(int)
            cells[group, place, again] = start + np.arange(len(place))
    return parts, cells


def in_order(values: np.ndarray, batch: PackedBatch) -> dict[int, np.ndarray]:
    """Per-pair results by key.

    Args:
        values: [groups, pairs, …], such as log-probabilities.
        batch: What they were computed from.
    """
    flat = np.asarray(values).reshape(-1, *values.shape[2:])
    return {int(key): flat[index] for index, key in enumerate(batch.key.reshape(-1)) if key >= 0}
