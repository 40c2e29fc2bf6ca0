"""Which pairs a step trains on, and in which rows their tokens lie: a pure function of lengths, seed and step.

Nothing here needs token data, so that a plan is made before any is read, and a resumed run continues exactly where
the interrupted one stopped. The shapes of all steps come from a small fixed set: each shape is compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

ROW_MULTIPLE = 64
"""Row lengths are multiples of this many tokens (128 suits a TPU's lanes: pass it to `BatchPlan.make`)."""
SLOT_MULTIPLE = 64
MAX_SHAPES = 3
_PLANNED_STEPS = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class PairLengths:
    """What packing must know of each pair of a split.

    Attributes:
        encoded: int64 [pairs], tokens to encode (`TokenizedPair.encoded_length`).
        targets: int64 [pairs], predicted tokens of both sides together.
    """

    encoded: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.encoded)

    @classmethod
    def make(cls, lengths: np.ndarray, shared: np.ndarray, targets: np.ndarray) -> PairLengths:
        """From a split's columns.

        Args:
            lengths: [pairs, 2], tokens of chosen and rejected, prompt included.
            shared: [pairs], leading tokens in common.
            targets: [pairs, 2], predicted tokens of chosen and rejected.
        """
        encoded = lengths.astype(np.int64).sum(axis=1) - shared
        return cls(encoded, targets.astype(np.int64).sum(axis=1))


@dataclasses.dataclass(frozen=True, order=True)
class BatchShape:
    """The array sizes of a packed batch.

    A batch has `groups` parts that know nothing of each other: a group is what one data shard computes in one
    microbatch. Everything else is per group.

    Attributes:
        groups: Data shards x microbatches.
        rows: Rows of tokens.
        row_length: Tokens a row.
        slots: Predicted tokens.
        pairs: Preference pairs.
    """

    groups: int
    rows: int
    row_length: int
    slots: int
    pairs: int

    @property
    def tokens(self) -> int:
        """Token positions of the whole batch, padding included."""
        return self.groups * self.rows * self.row_length


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a pair lies: its group, its index there, its row, and the position of its first token."""

    group: int
    pair: int
    row: int
    start: int


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Keys and shape of every step; made by `BatchPlan.make`.

    Attributes:
        lengths: Of every pair in the split.
        pairs_per_step: Pairs a step, over all groups.
        total_steps: How many steps there are.
        seed: Decides the order of every epoch.
        shuffle: False keeps the split's order.
        repeat: Whether epochs follow one another; else the last step may have fewer pairs.
        groups: See `BatchShape`.
        row_length: Tokens a row.
        shapes: The shapes that steps are fitted into, ascending.
    """

    lengths: PairLengths
    pairs_per_step: int
    total_steps: int
    seed: int = 0
    shuffle: bool = True
    repeat: bool = True
    groups: int = 1
    row_length: int = ROW_MULTIPLE
    shapes: tuple[BatchShape, ...] = ()

    @classmethod
    def make(
        cls,
        lengths: PairLengths,
        pairs_per_step: int,
        *,
        total_steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        groups: int = 1,
        row_multiple: int = ROW_MULTIPLE,
        max_shapes: int = MAX_SHAPES,
    ) -> BatchPlan:
        """Plan a run.

        Args:
            lengths: Of every pair in the split.
            pairs_per_step: Pairs a step; must be a multiple of `groups`.
            total_steps: Steps of the run; None goes through the split once, the last step with what is left.
            seed: Decides the order.
            shuffle: Whether each epoch has its own order.
            groups: Data shards x microbatches.
            row_multiple: Row lengths are multiples of this.
            max_shapes: At most so many shapes are compiled.

        Raises:
            ValueError: there is no pair, or `groups` does not divide `pairs_per_step`.
        """
        if len(lengths) == 0:
            raise ValueError("there is no pair to plan for")
        if pairs_per_step < 1 or pairs_per_step % groups:
            raise ValueError(f"pairs_per_step {pairs_per_step} must be a positive multiple of groups {groups}")
        repeat = total_steps is not None
        steps = total_steps if total_steps is not None else math.ceil(len(lengths) / pairs_per_step)
        bare = cls(lengths, pairs_per_step, steps, seed, shuffle, repeat, groups)
        row_length = _round_up(int(lengths.encoded.max()), row_multiple)
        bare = dataclasses.replace(bare, row_length=row_length)
        needs = np.array([bare._need(bare.keys_of_step(step)) for step in range(min(steps, _PLANNED_STEPS))])
        return dataclasses.replace(bare, shapes=bare._choose_shapes(needs, max_shapes))

    @property
    def pairs_per_group(self) -> int:
        """Pairs in each group."""
        return self.pairs_per_step // self.groups

    def keys_of_step(self, step: int) -> np.ndarray:
        """int64 [pairs]: the pairs of a step, counted from 0, in training order."""
        first = step * self.pairs_per_step
        count = len(self.lengths)
        last = first + self.pairs_per_step if self.repeat else min(first + self.pairs_per_step, count)
        indices = np.arange(first, last)
        epochs = indices // count
        return np.concatenate([_epoch_order(count, self.seed, self.shuffle, int(e))[indices[epochs == e] % count]
                               for e in np.unique(epochs)])  # fmt: skip

    def epoch_of_step(self, step: int) -> float:
        """Epochs done when `step` steps are complete."""
        return step * self.pairs_per_step / len(self.lengths)

    def shape_of_step(self, step: int) -> BatchShape:
        """The smallest planned shape that holds a step."""
        return self.shape_of(self.keys_of_step(step))

    def shape_of(self, keys: np.ndarray) -> BatchShape:
        """The smallest planned shape that holds these pairs; beyond the planned steps it may be a new one."""
        rows, slots = self._need(keys)
        for shape in self.shapes:
            if shape.rows >= rows and shape.slots >= slots:
                return shape
        return self._shape(rows, slots)

    def _need(self, keys: np.ndarray) -> tuple[int, int]:
        """Rows and slots that the fullest group needs."""
        places = place(self.lengths.encoded[keys], self.groups, self.pairs_per_group, self.row_length)
        slots = np.zeros(self.groups, np.int64)
        rows = 0
        for key, spot in zip(keys, places, strict=True):
            slots[spot.group] += self.lengths.targets[key]
            rows = max(rows, spot.row + 1)
        return rows, _round_up(int(slots.max()), SLOT_MULTIPLE)

    def _shape(self, rows: int, slots: int) -> BatchShape:
        return BatchShape(self.groups, rows, self.row_length, slots, self.pairs_per_group)

    def _choose_shapes(self, needs: np.ndarray, count: int) -> tuple[BatchShape, ...]:
        """Shapes at quantiles of the steps' rows; the last one holds every planned step."""
        chosen = []
        ordered = np.sort(needs[:, 0])
        limits = sorted({int(ordered[math.ceil(len(ordered) * (i + 1) / count) - 1]) for i in range(count)})
        for limit in limits:
            chosen.append(self._shape(limit, int(needs[needs[:, 0] <= limit, 1].max())))
        return tuple(chosen)


def place(encoded: np.ndarray, groups: int, pairs_per_group: int, row_length: int) -> list[Placement]:
    """Lay pairs out: longest first to the emptiest group with room, then to the first row where it fits.

    Args:
        encoded: [pairs], tokens of each.
        groups: See `BatchShape`.
        pairs_per_group: At most so many pairs in a group.
        row_length: Tokens a row.

    Returns:
        A placement for each pair, in the order of `encoded`.

    Raises:
        ValueError: a pair is longer than a row, or there are more pairs than places.
    """
    if len(encoded) > groups * pairs_per_group:
        raise ValueError(f"{len(encoded)} pairs do not fit in {groups} groups of {pairs_per_group}")
    if len(encoded) and int(encoded.max()) > row_length:
        raise ValueError(f"a pair of {int(encoded.max())} tokens does not fit in a row of {row_length}")
    free: list[list[int]] = [[] for _ in range(groups)]
    used = [0] * groups
    members = [0] * groups
    places: dict[int, Placement] = {}
    for index in np.argsort(-encoded, kind="stable"):
        length = int(encoded[index])
        group = min((g for g in range(groups) if members[g] < pairs_per_group), key=lambda g: (used[g], g))
        row = next((r for r, room in enumerate(free[group]) if room >= length), None)
        if row is None:
            row = len(free[group])
            free[group].append(row_length)
        places[int(index)] = Placement(group, members[group], row, row_length - free[group][row])
        free[group][row] -= length
        used[group] += length
        members[group] += 1
    return [places[index] for index in range(len(encoded))]


def pairs_lengths(encoded: Sequence[int], targets: Sequence[int]) -> PairLengths:
    """`PairLengths` from plain numbers."""
    return PairLengths(np.asarray(encoded, np.int64), np.asarray(targets, np.int64))


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, shuffle: bool, epoch: int) -> np.ndarray:
    if not shuffle:
        return np.arange(count)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch)))).permutation(count)


def _round_up(value: int, multiple: int) -> int:
    return max(multiple, -(-value // multiple) * multiple)
