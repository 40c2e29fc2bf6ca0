"""Which pairs a step trains on, and where their tokens lie: a pure function of lengths, seed and step.

Nothing here needs token data, so that a plan is made before any is read, and a resumed run continues exactly where
the interrupted one stopped. A shuffled order is levelled: within a stretch of it, pairs change places so that all
steps have nearly the same number of tokens. Few shapes, each compiled once, then hold all steps with little padding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from lora_dpo_trainer.pairs import TokenizedPair

ROW_MULTIPLE = 8
"""Array lengths are multiples of this many tokens (128 suits a TPU's lanes: pass it to `BatchPlan.make`)."""
SLOT_MULTIPLE = 64
MAX_SHAPES = 4
WORTH = 1.005
"""So many times the fewest possible positions are accepted for the sake of fewer shapes to compile."""
SIDE_SIZES = 4
"""So many lengths of sides in a shape: attention costs the square of them."""
LEVELLED_STEPS = 64
"""Pairs change places within so many steps."""
_PLANNED_STEPS = 20_000


@dataclasses.dataclass(frozen=True, eq=False)
class PairLengths:
    """What packing must know of each pair of a split.

    Attributes:
        encoded: int64 [pairs], tokens to encode (`TokenizedPair.encoded_length`).
        targets: int64 [pairs], predicted tokens of both sides together.
        sides: int64 [pairs, 2], tokens of chosen and rejected, prompt included.
    """

    encoded: np.ndarray
    targets: np.ndarray
    sides: np.ndarray

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
        sides = lengths.astype(np.int64)
        return cls(sides.sum(axis=1) - shared, targets.astype(np.int64).sum(axis=1), sides)

    @classmethod
    def of(cls, pairs: Iterable[TokenizedPair]) -> PairLengths:
        """Of pairs at hand."""
        rows = [(len(p.chosen_ids), len(p.rejected_ids), p.shared, *p.targets) for p in pairs]
        columns = np.array(rows, np.int64).reshape(-1, 5)
        return cls.make(columns[:, :2], columns[:, 2], columns[:, 3:])


@dataclasses.dataclass(frozen=True, order=True)
class BatchShape:
    """The array sizes of a packed batch.

    A batch has `groups` parts that know nothing of each other: a group is what one data shard computes in one
    microbatch. Everything else is per group.

    Attributes:
        groups: Data shards x microbatches.
        row_length: Tokens.
        slots: Predicted tokens.
        pairs: Preference pairs.
        sides: (count, length), for the attention: so many sides of at most that length, longest first.
    """

    groups: int
    row_length: int
    slots: int
    pairs: int
    sides: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Token positions of the whole batch, padding included."""
        return self.groups * self.row_length

    def holds(self, other: BatchShape) -> bool:
        """Whether a batch of the other shape fits into this one."""
        return (
            (self.groups, self.pairs) == (other.groups, other.pairs)
            and self.row_length >= other.row_length
            and self.slots >= other.slots
            and all(mine[1] >= its[1] for mine, its in zip(self.sides, other.sides, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a pair lies: its group, its index there, and the position of its first token."""

    group: int
    pair: int
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
        row_multiple: Array lengths are multiples of this.
        shapes: The shapes that steps are fitted into, ascending.
    """

    lengths: PairLengths
    pairs_per_step: int
    total_steps: int
    seed: int = 0
    shuffle: bool = True
    repeat: bool = True
    groups: int = 1
    row_multiple: int = ROW_MULTIPLE
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
            row_multiple: Array lengths are multiples of this.
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
        bare = cls(lengths, pairs_per_step, steps, seed, shuffle, repeat, groups, row_multiple)
        needs = [bare._need(bare.keys_of_step(step)) for step in range(min(steps, _PLANNED_STEPS))]
        return dataclasses.replace(bare, shapes=_choose_shapes(needs, max_shapes))

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
        return np.concatenate([self._epoch(int(e))[indices[epochs == e] % count] for e in np.unique(epochs)])

    def epoch_of_step(self, step: int) -> float:
        """Epochs done when `step` steps are complete."""
        return step * self.pairs_per_step / len(self.lengths)

    def shape_of_step(self, step: int) -> BatchShape:
        """The smallest planned shape that holds a step."""
        return self.shape_of(self.keys_of_step(step))

    def shape_of(self, keys: np.ndarray) -> BatchShape:
        """The smallest planned shape that holds these pairs; beyond the planned steps it may be a new one."""
        need = self._need(keys)
        return next((shape for shape in self.shapes if shape.holds(need)), need)

    def _need(self, keys: np.ndarray) -> BatchShape:
        """The smallest shape that holds these pairs."""
        lengths = self.lengths
        group = np.array([spot.group for spot in place(lengths.encoded[keys], self.groups, self.pairs_per_group)])
        tokens = np.bincount(group, lengths.encoded[keys], self.groups)
        slots = np.bincount(group, lengths.targets[keys], self.groups)
        sides = np.zeros((self.groups, 2 * self.pairs_per_group), np.int64)
        for index in range(self.groups):
            own = lengths.sides[keys[group == index]].reshape(-1)
            sides[index, : len(own)] = np.sort(own)[::-1]
        parts = np.array_split(sides.max(axis=0), min(SIDE_SIZES, sides.shape[1]))
        return BatchShape(
            self.groups,
            _round_up(int(tokens.max()), self.row_multiple),
            _round_up(int(slots.max()), SLOT_MULTIPLE),
            self.pairs_per_group,
            tuple((len(part), _round_up(int(part[0]), self.row_multiple)) for part in parts),
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.lengths))
        return _levelled_order(self.lengths, self.pairs_per_step, self.seed, epoch)


def place(encoded: np.ndarray, groups: int, pairs_per_group: int) -> list[Placement]:
    """Lay pairs out one behind the other, in groups that have nearly the same number of tokens.

    Args:
        encoded: [pairs], tokens of each.
        groups: See `BatchShape`.
        pairs_per_group: At most so many pairs in a group.

    Returns:
        A placement for each pair, in the order of `encoded`.

    Raises:
        ValueError: there are more pairs than places.
    """
    if len(encoded) > groups * pairs_per_group:
        raise ValueError(f"{len(encoded)} pairs do not fit in {groups} groups of {pairs_per_group}")
    used, members = [0] * groups, [0] * groups
    places = []
    for length, group in zip(encoded, level(encoded, groups), strict=True):
        places.append(Placement(int(group), members[group], used[group]))
        used[group] += int(length)
        members[group] += 1
    return places


def level(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Distribute items so that all bins hold equally many, and nearly the same total length.

    Longest first, in rounds of one item for each bin: the longest of a round goes to the emptiest bin.

    Returns:
        int64 [items], the bin of each.
    """
    order = np.argsort(-lengths, kind="stable")
    totals, chosen = np.zeros(bins, np.int64), np.zeros(len(lengths), np.int64)
    for first in range(0, len(order), bins):
        items = order[first : first + bins]
        emptiest = np.argsort(totals, kind="stable")[: len(items)]
        chosen[items] = emptiest
        totals[emptiest] += lengths[items]
    return chosen


@functools.lru_cache(maxsize=4)
def _levelled_order(lengths: PairLengths, pairs_per_step: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch; the parts of steps that it shares with its neighbours stay as drawn."""
    count = len(lengths)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    order = generator.permutation(count)
    first = -epoch * count % pairs_per_step
    last = first + max(0, count - first) // pairs_per_step * pairs_per_step
    for start in range(first, last, LEVELLED_STEPS * pairs_per_step):
        window = slice(start, min(start + LEVELLED_STEPS * pairs_per_step, last))
        keys = order[window]
        steps = len(keys) // pairs_per_step
        # The bins are alike but for their numbers: which step gets which is drawn, too.
        step = generator.permutation(steps)[level(lengths.encoded[keys], steps)]
        order[window] = keys[np.argsort(step, kind="stable")]
    return order


def _choose_shapes(needs: Sequence[BatchShape], most: int) -> tuple[BatchShape, ...]:
    """As few shapes as are `WORTH` it, at most `most`; the last one holds every planned step."""
    sizes, counts = np.unique([need.row_length for need in needs], return_counts=True)

    def positions(limits: list[int]) -> int:
        return int((np.asarray(limits)[np.searchsorted(limits, sizes)] * counts).sum())

    offers = [_limits(sizes, counts, number) for number in range(1, most + 1)]
    chosen = next(limits for limits in offers if positions(limits) <= WORTH * positions(offers[-1]))
    return tuple(_largest([need for need in needs if need.row_length <= limit]) for limit in chosen)


def _limits(sizes: np.ndarray, counts: np.ndarray, number: int) -> list[int]:
    """Which sizes to offer, so that rounding each up to an offered one adds the least: dynamic programming.

    Args:
        sizes: int64 [sizes], ascending.
        counts: int64 [sizes], how often each is needed.
        number: How many may be offered.
    """
    behind = np.concatenate([[0], np.cumsum(counts)])
    cost = sizes * behind[1:]  # of holding the first i + 1 sizes, by size i alone
    choices: list[np.ndarray] = []
    for _ in range(min(number, len(sizes)) - 1):
        # table[i, j]: the first j + 1 sizes as well as they were held before, those up to i by size i
        table = cost[None, :] + sizes[:, None] * (behind[1:, None] - behind[None, 1:])
        table = np.where(np.tri(len(sizes), k=-1, dtype=bool), table, np.iinfo(np.int64).max)
        choices.append(np.where(table.min(axis=1) < cost, table.argmin(axis=1), -1))
        cost = np.minimum(cost, table.min(axis=1))
    limits, at = [int(sizes[-1])], len(sizes) - 1
    for choice in reversed(choices):
        if (at := int(choice[at])) < 0:
            break
        limits.append(int(sizes[at]))
    return limits[::-1]


def _largest(needs: Sequence[BatchShape]) -> BatchShape:
    """The smallest shape that holds all of these."""
    sides = np.array([need.sides for need in needs]).max(axis=0)
    return dataclasses.replace(
        needs[0],
        row_length=max(need.row_length for need in needs),
        slots=max(need.slots for need in needs),
        sides=tuple((int(count), int(length)) for count, length in sides),
    )


def _round_up(value: int, multiple: int) -> int:
    return max(multiple, -(-value // multiple) * multiple)
