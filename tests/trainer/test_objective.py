import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_api.config_file import LossType
from lora_dpo_trainer import objective
from lora_dpo_trainer.objective import Objective, Totals

POLICY = jnp.array([[-10.0, -12.0], [-20.0, -18.0], [-5.0, -5.0]])
REFERENCE = jnp.array([[-11.0, -11.0], [-19.0, -18.5], [-5.0, -5.0]])
COUNTS = jnp.array([[4.0, 6.0], [5.0, 5.0], [2.0, 2.0]])
ALL = jnp.array([True, True, True])
DELTA = np.array([2.0, -1.5, 0.0])


def evaluate(goal: Objective, valid: jnp.ndarray = ALL) -> tuple[float, dict[str, float]]:
    totals = Totals(jnp.sum(valid), jnp.sum(jnp.where(valid, COUNTS[:, 0], 0)))
    loss, metrics = objective.evaluate(goal, POLICY, REFERENCE, COUNTS, valid, totals)
    return float(loss), {name: float(value) for name, value in metrics.items()}


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


def test_sigmoid_is_the_dpo_loss() -> None:
    assert evaluate(Objective(beta=0.5))[0] == pytest.approx(np.mean(-log_sigmoid(0.5 * DELTA)), rel=1e-6)


def test_smoothing_mixes_in_the_swapped_label() -> None:
    expected = np.mean(-0.8 * log_sigmoid(0.5 * DELTA) - 0.2 * log_sigmoid(-0.5 * DELTA))
    assert evaluate(Objective(beta=0.5, label_smoothing=0.2))[0] == pytest.approx(expected, rel=1e-6)


def test_robust_is_unbiased_under_label_noise() -> None:
    expected = np.mean(-0.8 * log_sigmoid(0.5 * DELTA) + 0.2 * log_sigmoid(-0.5 * DELTA)) / 0.6
    found = evaluate(Objective(LossType.ROBUST, beta=0.5, label_smoothing=0.2))[0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_hinge_stops_at_the_margin() -> None:
    assert evaluate(Objective(LossType.HINGE, beta=0.5))[0] == pytest.approx(np.mean([0.0, 1.75, 1.0]), rel=1e-6)


def test_ipo_and_sigmoid_norm_average_over_tokens() -> None:
    delta = np.array([1 / 4 + 1 / 6, -1 / 5 - 0.5 / 5, 0.0])
    ipo = evaluate(Objective(LossType.IPO, beta=0.5))[0]
    norm = evaluate(Objective(LossType.SIGMOID_NORM, beta=0.5))[0]
    assert ipo == pytest.approx(np.mean((delta - 1.0) ** 2), rel=1e-5)
    assert norm == pytest.approx(np.mean(-log_sigmoid(0.5 * delta)), rel=1e-5)


def test_the_sft_term_is_the_chosen_answers_loss_a_token() -> None:
    plain, _ = evaluate(Objective(beta=0.5))
    with_sft, metrics = evaluate(Objective(beta=0.5, sft_weight=2.0))
    assert with_sft - plain == pytest.approx(2.0 * 35 / 11, rel=1e-6)
    assert metrics["dpo_loss"] == pytest.approx(plain)


def test_metrics_have_the_guides_names_and_meaning() -> None:
    _, metrics = evaluate(Objective(beta=0.5))
    assert tuple(metrics) == objective.METRICS
    assert metrics["dpo_margin_policy"] == pytest.approx(0.0)
    assert metrics["dpo_margin_ref"] == pytest.approx(-0.5 / 3)
    assert metrics["dpo_accuracy"] == pytest.approx(1 / 3)
    assert metrics["dpo_chosen_reward"] == pytest.approx(0.0)
    assert metrics["dpo_rejected_reward"] == pytest.approx(0.5 * (-0.5) / 3)


def test_rounding_does_not_count_as_accuracy() -> None:
    # 6e-5: seen at step 0 of a real model, with answers of -30 and -200
    policy = REFERENCE + jnp.array([[6e-5, 0.0], [1e-6, 0.0], [0.0, 0.0]])
    totals = Totals(jnp.array(3.0), jnp.array(11.0))
    _, metrics = objective.evaluate(Objective(), policy, REFERENCE, COUNTS, ALL, totals)
    assert float(metrics["dpo_accuracy"]) == 0.0


@pytest.mark.parametrize(
    ("gain", "accuracy"), [(0.0, 0.0), (2.0**-15, 0.0), (2.0**-14, 0.0), (2.0**-12, 1.0), (1e-3, 1.0), (-1e-3, 0.0)]
)
def test_a_real_gain_of_long_answers_counts(gain: float, accuracy: float) -> None:
    reference = jnp.array([[-500.0, -520.0]])
    totals = Totals(jnp.array(1.0), jnp.array(300.0))
    counts, valid = jnp.array([[300.0, 310.0]]), jnp.array([True])
    _, metrics = objective.evaluate(Objective(), reference + jnp.array([[gain, 0.0]]), reference, counts, valid, totals)
    assert float(metrics["dpo_accuracy"]) == accuracy


def test_places_without_a_pair_count_nowhere() -> None:
    loss, metrics = evaluate(Objective(beta=0.5), jnp.array([True, False, False]))
    assert loss == pytest.approx(-log_sigmoid(np.array(1.0)), rel=1e-6)
    assert metrics["dpo_accuracy"] == 1.0


RECORDED = json.loads((Path(__file__).parents[1] / "data" / "losses.json").read_text())


@pytest.mark.parametrize(
    "case", RECORDED["cases"], ids=lambda case: "-".join(str(value) for value in case["settings"].values())
)
def test_every_loss_is_trls_on_the_same_log_probabilities(case: dict[str, Any]) -> None:
    settings = case["settings"]
    goal = Objective(**settings | {"type": LossType(settings["type"])})
    policy, reference, counts = (jnp.array(RECORDED[name], jnp.float32) for name in ("policy", "reference", "counts"))
    totals = Totals(jnp.array(float(len(counts))), jnp.sum(counts[:, 0]))
    loss, metrics = objective.evaluate(goal, policy, reference, counts, jnp.ones(len(counts), bool), totals)
    expected = case["expected"]
    assert float(loss) == pytest.approx(expected["loss"], rel=2e-6)
    for name in ("dpo_chosen_reward", "dpo_rejected_reward", "dpo_accuracy", "logps/chosen", "logps/rejected"):
        assert float(metrics[name]) == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


def test_every_loss_type_is_compared_with_trl() -> None:
    assert {case["settings"]["type"] for case in RECORDED["cases"]} == set(LossType)
