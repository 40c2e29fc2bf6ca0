"""The arithmetic behind the benchmark's limit, held to hand counts."""

import pytest

from benchmarks.trainer.limit import ModelShape, PairTokens

SHAPE = ModelShape(layers=1, hidden=2, attention=2, key_value=1, inner=3, vocab=5)
WEIGHTS = 2 * 2 + 2 * 1 + 2 * 1 + 2 * 2 + 3 * (2 * 3)
ADAPTER = (2 + 2) + (2 + 1) + (2 + 1) + (2 + 2) + 3 * (2 + 3)


@pytest.mark.parametrize(
    ("whole", "tokens", "targets", "squares"),
    [(True, 7 + 8, 7 + 8, 49 + 64), (False, 4 + 3 + 4, 3 + 4, 49 + 64 - 16)],
)
def test_a_step_counts_a_shared_prompt_once_unless_sides_are_counted_whole(
    whole: bool, tokens: int, targets: int, squares: int
) -> None:
    expected = 4 * WEIGHTS * tokens + 4 * 2 * 5 * targets + 6 * ADAPTER * tokens + 3 * 2 * 2 * squares
    assert SHAPE.step_flops([PairTokens(4, 3, 4)], 1, whole=whole) == expected


def test_the_products_of_a_forward_have_all_its_weights() -> None:
    products = SHAPE.products(10, 6)
    assert sum(inner * columns * count for _, inner, columns, count in products) == WEIGHTS + 2 * 5
    assert products[-1] == (6, 2, 5, 1)
