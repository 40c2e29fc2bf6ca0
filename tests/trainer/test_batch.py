import numpy as np
import pytest

from lora_dpo_trainer import batch
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.pairs import TokenizedPair


def pair(key: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedPair:
    sides = [np.array(prompt + answer, np.int32) for answer in (chosen, rejected)]
    masks = [np.arange(len(ids)) >= len(prompt) for ids in sides]
    return TokenizedPair(key, sides[0], masks[0], sides[1], masks[1])


SHAPE = BatchShape(groups=1, row_length=32, slots=16, pairs=2, sides=((2, 16), (2, 8)))


def test_the_common_prefix_is_encoded_once() -> None:
    packed = batch.build([pair(0, [1, 2, 3], [4, 5], [6, 7, 8])], SHAPE)
    assert packed.tokens[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packed.positions[0, :8].tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert (packed.tokens[0, 8:] == 0).all()


def test_each_side_is_found_whole_and_longest_first() -> None:
    packed = batch.build([pair(0, [1, 2, 3], [4, 5], [6, 7, 8])], SHAPE)
    longer, shorter = packed.sides[0][0]
    assert longer.tolist() == [0, 1, 2, 5, 6, 7] + [32] * 10
    assert shorter.tolist() == [0, 1, 2, 3, 4] + [32] * 11
    assert (packed.sides[1] == 32).all()


def test_every_cell_leads_back_to_its_position() -> None:
    pairs = [pair(0, [1, 2, 3], [4, 5], [6, 7, 8]), pair(1, [9], [2], [3, 4])]
    packed = batch.build(pairs, SHAPE)
    sources = np.concatenate([side.reshape(-1) for side in packed.sides])
    for position in range(32):
        cells = packed.cells[0, position]
        assert (sources[cells[cells < len(sources)]] == position).all()
    assert (packed.cells < len(sources)).sum() == (sources < 32).sum() == 5 + 6 + 2 + 3


def test_the_first_token_of_both_answers_is_predicted_by_the_end_of_the_prefix() -> None:
    packed = batch.build([pair(0, [1, 2, 3], [4, 5], [6, 7, 8])], SHAPE)
    used = packed.slot_answer[0] < 4
    assert packed.slot_source[0, used].tolist() == [2, 3, 2, 5, 6]
    assert packed.slot_target[0, used].tolist() == [4, 5, 6, 7, 8]
    assert packed.slot_answer[0, used].tolist() == [0, 0, 1, 1, 1]


def test_predicted_tokens_within_the_prefix_count_for_both_sides() -> None:
    packed = batch.build([pair(0, [1, 2], [9, 4], [9, 5])], SHAPE)
    used = packed.slot_answer[0] < 4
    assert packed.slot_source[0, used].tolist() == [1, 2, 1, 2]
    assert packed.slot_target[0, used].tolist() == [9, 4, 9, 5]


def test_an_answer_that_begins_like_the_other_one_keeps_its_tokens() -> None:
    packed = batch.build([pair(0, [1], [2], [2, 3])], SHAPE)
    assert packed.tokens[0, :3].tolist() == [1, 2, 3]
    assert [side.tolist() for side in packed.sides[0][0, :, :3]] == [[0, 1, 2], [0, 1, 32]]


def test_reference_values_and_results_follow_their_pair() -> None:
    pairs = [pair(7, [1], [2], [3]), pair(9, [1, 2, 3], [4, 5], [6])]
    values = np.array([[-1, -2], [-3, -4]], np.float32)
    packed = batch.build(pairs, SHAPE, values)
    assert packed.reference is not None
    found = batch.in_order(packed.reference, packed)
    assert found[7].tolist() == [-1, -2]
    assert found[9].tolist() == [-3, -4]


def test_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs position 41"):
        batch.build([pair(0, list(range(1, 40)), [1], [2])], SHAPE)


def test_a_side_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a side of 20 tokens"):
        batch.build([pair(0, [1] * 18, [2, 3], [4])], SHAPE)
