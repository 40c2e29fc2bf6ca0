import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_dpo_trainer import packing
from lora_dpo_trainer.packing import BatchPlan

LENGTHS = packing.pairs_lengths(range(20, 120), [10] * 100)


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
    plan = BatchPlan.make(packing.pairs_lengths([30] * 5, [3] * 5), 4, total_steps=5, shuffle=False)
    assert plan.keys_of_step(1).tolist() == [4, 0, 1, 2]


def test_without_steps_the_split_is_gone_through_once_and_the_last_batch_is_short() -> None:
    plan = BatchPlan.make(packing.pairs_lengths([30] * 5, [3] * 5), 4, shuffle=False)
    assert [plan.keys_of_step(step).tolist() for step in range(plan.total_steps)] == [[0, 1, 2, 3], [4]]


def test_all_steps_fit_into_few_shapes() -> None:
    plan = BatchPlan.make(LENGTHS, 8, total_steps=100, max_shapes=3)
    assert len(plan.shapes) <= 3
    assert {plan.shape_of_step(step) for step in range(100)} <= set(plan.shapes)


def test_pairs_that_cannot_be_split_evenly_over_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of groups 3"):
        BatchPlan.make(LENGTHS, 8, total_steps=1, groups=3)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(1, 4))
def test_no_two_pairs_overlap(encoded: list[int], groups: int) -> None:
    per_group = -(-len(encoded) // groups)
    places = packing.place(np.array(encoded), groups, per_group, 64)
    taken: set[tuple[int, int, int]] = set()
    for length, spot in zip(encoded, places, strict=True):
        cells = {(spot.group, spot.row, spot.start + offset) for offset in range(length)}
        assert not cells & taken
        assert spot.start + length <= 64
        taken |= cells
    assert len({(spot.group, spot.pair) for spot in places}) == len(encoded)
