from __future__ import annotations

import numpy as np
import pytest

from lora_dpo_trainer import errors, mixture

COMPONENT = np.array([0] * 6 + [1] * 2 + [2] * 4, np.int32)
NAMES = ("a", "b", "c")


def counts(weights: dict[str, float] | None) -> list[int]:
    keys = mixture.keys_of_epoch(COMPONENT, NAMES, weights)
    return np.bincount(COMPONENT[keys], minlength=3).tolist()


def test_without_weights_every_pair_comes_once() -> None:
    assert mixture.keys_of_epoch(COMPONENT, NAMES, None).tolist() == list(range(12))


def test_weights_give_the_proportions() -> None:
    assert counts({"a": 1, "b": 1, "c": 1}) == [4, 4, 4]


def test_weight_zero_is_only_evaluated_on() -> None:
    assert counts({"a": 1, "b": 0, "c": 1}) == [5, 0, 5]
    assert counts({"a": 1}) == [6, 0, 0]


def test_a_repeated_component_uses_all_its_pairs() -> None:
    keys = mixture.keys_of_epoch(COMPONENT, NAMES, {"b": 5, "a": 1})
    assert {6, 7} <= set(keys.tolist())


@pytest.mark.parametrize(("weights", "message"), [({"x": 1.0}, "names x"), ({"a": 0.0}, "above 0")])
def test_impossible_weights_are_configuration_errors(weights: dict[str, float], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        mixture.keys_of_epoch(COMPONENT, NAMES, weights)
