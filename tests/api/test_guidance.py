from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lora_dpo_api import guidance
from lora_dpo_api.config_models import AInit
from lora_dpo_api.guidance import JOB_PATHS, Finding, Hyperparameters, Severity, rank_advice

RECOMMENDED = Hyperparameters(learning_rate=5e-6, r=64, alpha=64, rslora=False, dropout=0.0)


def findings(**changes: Any) -> tuple[Finding, ...]:
    return guidance.findings(dataclasses.replace(RECOMMENDED, **changes), JOB_PATHS)


def codes(**changes: Any) -> list[str]:
    return [finding.notice.code for finding in findings(**changes)]


def test_the_guides_own_values_pass_in_silence() -> None:
    assert findings() == ()


@pytest.mark.parametrize("rate", [1e-6, 5e-6, 1e-5])
def test_the_tuning_range_passes_in_silence(rate: float) -> None:
    assert codes(learning_rate=rate) == []


def test_row_sft_with_lora_is_refused() -> None:
    (finding,) = findings(learning_rate=2e-4)
    assert finding.severity is Severity.REFUSE
    assert str(finding.notice) == (
        "spec.optimizer.learningRate: 0.0002 is above 5e-5, which LoRA-DPO must never exceed: that is a rate for SFT "
        "with LoRA; start at 5e-6"
    )


def test_row_full_fine_tuning_is_advised_against() -> None:
    (finding,) = findings(learning_rate=5e-7)
    assert finding.severity is Severity.ADVISE
    assert "a rate for DPO with full fine-tuning" in finding.notice.message


@pytest.mark.parametrize(("rate", "severity"), [(5e-5, Severity.ADVISE), (5.1e-5, Severity.REFUSE)])
def test_five_e_minus_five_is_the_last_rate_that_is_not_refused(rate: float, severity: Severity) -> None:
    assert [finding.severity for finding in findings(learning_rate=rate)] == [severity]


def test_low_rates_pass_where_a_starts_at_zero() -> None:
    assert codes(learning_rate=5e-7, a_init_mode=AInit.ZERO) == []


@pytest.mark.parametrize(
    ("pairs", "low", "high"), [(4_999, 16, 64), (5_000, 64, 128), (49_999, 64, 128), (50_000, 128, 256)]
)
def test_the_rank_table(pairs: int, low: int, high: int) -> None:
    assert rank_advice(low, pairs) is None
    assert rank_advice(high, pairs) is None
    below, above = rank_advice(low - 1, pairs), rank_advice(high + 1, pairs)
    assert below is not None
    assert "raise it if reward margins plateau" in below.message
    assert above is not None
    assert "lower it if the loss falls below 0.2 quickly" in above.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"alpha": 128.0}, ["AlphaNotRank"]),
        ({"alpha": 128.0, "rslora": True}, []),
        ({"r": 128, "alpha": 128.0}, ["RsLoraAboveRank64"]),
        ({"r": 128, "alpha": 128.0, "rslora": True}, []),
        ({"dropout": 0.1}, []),
        ({"dropout": 0.2}, ["DropoutHigh"]),
    ],
)
def test_alpha_scaling_and_dropout(changes: dict[str, Any], expected: list[str]) -> None:
    assert codes(**changes) == expected
