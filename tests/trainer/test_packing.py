from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trainer import pairs as benchmark_pairs
from lora_dpo_trainer import packing
from lora_dpo_trainer.packing import BatchPlan, PairLengths


def lengths_of(encoded: Iterable[int]) -> PairLengths:
    whole = np.array(list(encoded))
    sides = np.stack([whole // 2 + 2, whole - whole // 2], axis=1)
    return PairLengths.make(sides, np.full(len(whole), 2), sides - 2)


LENGTHS = lengths_of(range(20, 120))


def test_every_epoch_trains_on_every_pair_once() -> None:
    plan = BatchPlan.make(LENGTHS, 10, total_steps=20, seed=3)
    for epoch in range(2):
        keys = np.concatenate([plan.keys_of_step(epoch * 10 + step) for step in range(10)])
        assert sorted(keys) == list(range(100))


def test_the_order_depends_on_seed_and_step_only() -> None:
    plan, again = (BatchPlan.make(LENGTHS, 8, total_steps=30, seed=5) for _ in range(2))
    other = BatchPlan.make(LENGTHS, 8, total_steps=30, seed=6)
    assert np.array_equal(plan.keys_of_step(17), again.keys_of_step(17))
    assert not np.array_equal(plan.keys_of_step(17), other.keys_of_step(17))


def test_a_batch_may_span_two_epochs() -> None:
    plan = BatchPlan.make(lengths_of([30] * 5), 4, total_steps=5, shuffle=False)
    assert plan.keys_of_step(1).tolist() == [4, 0, 1, 2]


def test_without_steps_the_split_is_gone_through_once_and_the_last_batch_is_short() -> None:
    plan = BatchPlan.make(lengths_of([30] * 5), 4, shuffle=False)
    assert [plan.keys_of_step(step).tolist() for step in range(plan.total_steps)] == [[0, 1, 2, 3], [4]]


def test_all_steps_fit_into_few_shapes() -> None:
    plan = BatchPlan.make(LENGTHS, 8, total_steps=100, max_shapes=3)
    assert len(plan.shapes) <= 3
    assert {plan.shape_of_step(step) for step in range(100)} <= set(plan.shapes)


def test_pairs_that_cannot_be_split_evenly_over_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of groups 3"):
        BatchPlan.make(LENGTHS, 8, total_steps=1, groups=3)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_nearly_all_positions_of_the_benchmark_hold_a_token(share: float, batch_size: int) -> None:
    lengths = benchmark_lengths(share)
    plan = BatchPlan.make(lengths, batch_size, total_steps=2 * len(lengths) // batch_size)
    steps = range(plan.total_steps)
    real = sum(int(lengths.encoded[plan.keys_of_step(step)].sum()) for step in steps)
    assert real >= 0.97 * sum(plan.shape_of_step(step).tokens for step in steps)
    assert len(plan.shapes) <= 4


def test_levelling_keeps_the_draw_fair() -> None:
    longest = 99
    plan = BatchPlan.make(LENGTHS, 10, total_steps=200, seed=1)
    steps = [step % 10 for step in range(200) if longest in plan.keys_of_step(step)]
    assert len(steps) == 20
    assert len(set(steps)) > 5


def test_the_order_of_a_split_that_is_not_shuffled_is_kept() -> None:
    plan = BatchPlan.make(LENGTHS, 10, total_steps=10, shuffle=False)
    assert plan.keys_of_step(3).tolist() == list(range(30, 40))


def test_the_planned_shapes_waste_the_least() -> None:
    plan = BatchPlan.make(lengths_of([8] * 6 + [16] * 1 + [80] * 2 + [96] * 1), 1, shuffle=False, max_shapes=2)
    assert [shape.row_length for shape in plan.shapes] == [16, 96]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(1, 4))
def test_no_two_pairs_overlap(encoded: list[int], groups: int) -> None:
    per_group = -(-len(encoded) // groups)
    places = packing.place(np.array(encoded), groups, per_group)
    taken: set[tuple[int, int]] = set()
    for length, spot in zip(encoded, places, strict=True):
        cells = {(spot.group, spot.start + offset) for offset in range(length)}
        assert not cells & taken
        taken |= cells
    assert len({(spot.group, spot.pair) for spot in places}) == len(encoded)
    assert all(spot.pair < per_group for spot in places)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 8))
def test_levelled_bins_hold_equally_many_and_differ_by_less_than_the_longest(lengths: list[int], bins: int) -> None:
    chosen = packing.level(np.array(lengths), bins)
    members = np.bincount(chosen, minlength=bins)
    assert members.max() - members.min() <= 1
    totals = np.bincount(chosen, lengths, bins)
    assert totals.max() - totals.min() <= max(lengths)


def benchmark_lengths(share: float) -> PairLengths:
    rows = benchmark_pairs.preference_pairs(2048, prompt_share=share, seed=0)
    words = np.array(
        [[len(message["content"].split()) for message in (*row["chosen"], row["rejected"][1])] for row in rows]
    )
    prompts = words[:, 0] + benchmark_pairs.PROMPT_TEMPLATE_TOKENS
    answers = words[:, 1:] + 1
    return PairLengths.make(prompts[:, None] + answers, prompts, answers)
