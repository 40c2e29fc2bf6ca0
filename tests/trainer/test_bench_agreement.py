"""What the benchmark says when contenders did not do the same work."""

import math
from typing import Any

from benchmarks.trainer import agreement, bench
from benchmarks.trainer import pairs as benchmark_pairs

OURS = {
    "first_loss": math.log(2),
    "first_reference_margin": -10.0,
    "first_grad_norm": 0.4,
    "reference_logprobs": [[-100.0, -200.0], [-300.0, -400.0]],
    "order": [1, 0],
}


def found(other: dict[str, Any], grouped: list[int] | None = None, start: float = 1.0) -> list[str]:
    order = {} if grouped is None else {"other": grouped}
    return agreement.disagreements({"ours": OURS, "other": other}, "ours", starts={"other": start}, grouped=order)


def test_equal_first_steps_agree() -> None:
    assert found(OURS) == []
    assert found(OURS | {"first_grad_norm": 0.4 * math.sqrt(3)}, start=math.sqrt(3)) == []


def test_a_first_loss_that_is_not_ln_2_is_told() -> None:
    assert found(OURS | {"first_loss": 0.7}) == ["other: the first loss is 0.700000, not ln 2"]


def test_another_reference_is_told() -> None:
    assert "margin at the first step is off by 1.000 nats" in found(OURS | {"first_reference_margin": -9.0})[0]


def test_another_gradient_is_told() -> None:
    assert "norm is 2.00 times" in found(OURS | {"first_grad_norm": 0.8})[0]


def test_pairs_in_an_order_of_their_own_are_compared_pair_by_pair() -> None:
    same = OURS | {"reference_logprobs": [[-100.0, -200.0], [-300.0, -400.0]]}
    assert found(same, grouped=[1, 0]) == []
    assert "a reference log-probability is off by 200.000 nats" in found(same, grouped=[0, 1])[0]


def test_grouping_by_length_keeps_every_pair_and_puts_like_ones_together() -> None:
    rows = benchmark_pairs.preference_pairs(24, prompt_share=0.3, seed=0)
    order = bench.grouped_by_length(rows, 4)
    assert sorted(order) == list(range(24))
    lengths = [bench.tokens([rows[index]])[0].longest_side for index in order]
    assert lengths == sorted(lengths, reverse=True)
