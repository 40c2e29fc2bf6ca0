from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors, health
from lora_dpo_trainer.health import LN2, Signals

type MakeConfig = Callable[..., TrainerConfig]


@pytest.mark.parametrize("loss", [LN2, LN2 + 4e-4])
def test_a_fresh_run_starts_at_ln_2(make_config: MakeConfig, loss: float) -> None:
    health.check_first_loss(make_config(), loss, "float32")


@pytest.mark.parametrize("loss", [12.0, LN2 + 1e-3, math.nan])
def test_any_other_start_is_a_broken_identity(make_config: MakeConfig, loss: float) -> None:
    with pytest.raises(errors.BrokenIdentity, match=r"should be ln 2 = 0\.6931"):
        health.check_first_loss(make_config(), loss, "float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"type": "ipo"}},
        {"loss": {"sft_weight": 0.5}},
        {"adapter": {"init_from": "gs://bucket/adapter"}},
        {"lora": {"r": 8, "dropout": 0.1}},
    ],
)
def test_losses_that_start_elsewhere_are_not_judged(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    health.check_first_loss(make_config(**changes), 5.0, "float32")


@pytest.mark.parametrize("name", ["dpo_loss", "grad_norm"])
def test_what_is_not_finite_ends_the_run_with_its_step(name: str) -> None:
    with pytest.raises(errors.NonFinite, match=f"{name} not finite at step 5"):
        health.check_finite(5, {"dpo_loss": 0.5, "grad_norm": 1.0} | {name: math.inf})


def codes(step: int, values: dict[str, float], signals: Signals = Signals()) -> list[str]:  # noqa: B008
    return [advice.code for advice in health.advice(step, 1000, values, signals)]


def test_flat_margins_are_named_after_100_steps() -> None:
    assert codes(99, {"reward_margin": 1e-5, "dpo_loss": 0.69}) == []
    assert codes(100, {"reward_margin": 1e-5, "dpo_loss": 0.69}) == ["FlatMargins"]
    assert codes(100, {"reward_margin": 0.1, "dpo_loss": 0.65}) == []


def test_early_saturation_needs_several_steps_in_the_first_tenth() -> None:
    signals = Signals()
    for _ in range(5):
        signals = signals.after({"dpo_accuracy": 1.0})
    values = {"reward_margin": 1.0, "dpo_loss": 0.4}
    assert codes(50, values, signals) == ["EarlySaturation"]
    assert codes(500, values, signals) == []
    assert codes(50, values, signals.after({"dpo_accuracy": 0.9})) == []


def test_a_low_loss_is_advice_and_not_an_end() -> None:
    assert codes(200, {"reward_margin": 3.0, "dpo_loss": 0.1}) == ["LowLoss"]
