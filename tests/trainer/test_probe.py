from __future__ import annotations

import math

import numpy as np
import pytest

from lora_dpo_trainer import export, probe
from lora_dpo_trainer.pairs import TokenizedPair


def test_probe_rows_come_back(memory: str) -> None:
    ids, mask = np.arange(5, dtype=np.int32), np.array([False, False, True, True, True])
    rows = (TokenizedPair(0, ids, mask, ids[:4], mask[:4]), TokenizedPair(1, ids[1:], mask[1:], ids, mask))
    written = probe.Probe(rows, np.array([[-1.0, -2.0], [-3.0, -4.0]]), np.zeros((2, 2)), "float32", "d1")
    probe.write(memory, written)
    read = probe.read(memory)
    assert (read.compute_dtype, read.adapter_digest) == ("float32", "d1")
    np.testing.assert_array_equal(read.policy, written.policy)
    for pair, other in zip(read.pairs, rows, strict=True):
        np.testing.assert_array_equal(pair.rejected_ids, other.rejected_ids)
        np.testing.assert_array_equal(pair.chosen_mask, other.chosen_mask)


def test_a_difference_that_is_no_number_is_never_small() -> None:
    assert export.largest_difference(np.array([1.0, math.nan]), np.array([1.0, 1.0])) == math.inf
    assert export.largest_difference(np.array([1.0, -2.0]), np.array([1.5, -2.0])) == 0.5


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 0.002), ("bfloat16", 4.0)])
def test_the_allowed_difference_grows_with_the_size(dtype: str, allowed: float) -> None:
    assert export.allowed_difference(np.array([-200.0]), dtype) == pytest.approx(allowed)
    assert export.allowed_difference(np.array([-1.0]), dtype) == pytest.approx(allowed / 2)
