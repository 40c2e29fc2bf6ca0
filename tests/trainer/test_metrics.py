from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_api.protocol import Metrics
from lora_dpo_trainer import metrics, objective


def test_trls_names_stand_beside_the_guides() -> None:
    values = {"dpo_chosen_reward": 1.0, "eval_reward_margin": 2.0, "kl": 3.0}
    assert metrics.exported(values) == values | {"rewards/chosen": 1.0, "eval_rewards/margins": 2.0}


def test_every_name_is_one_of_prometheus() -> None:
    names = {metrics.prometheus_name(name) for name in metrics.HELP}
    assert all(name.isascii() and name.isidentifier() for name in names)
    assert "loradpo_train_rewards_chosen" in names


def test_every_field_of_the_protocol_is_filled() -> None:
    assert set(metrics.PROTOCOL_FIELDS.values()) == set(Metrics.model_fields)


def test_the_divergence_is_the_mean_log_ratio_of_the_reference_to_the_policy() -> None:
    policy, reference = np.array([[-12.0, -30.0], [-9.0, -21.0]]), np.array([[-10.0, -22.0], [-10.0, -20.0]])
    rewards = 0.5 * (policy - reference).mean(axis=0)
    values = {"dpo_chosen_reward": rewards[0], "dpo_rejected_reward": rewards[1]}
    assert metrics.derived(values, beta=0.5)["kl"] == pytest.approx((reference - policy).mean())


def test_quantiles_leave_out_places_without_a_pair() -> None:
    policy = jnp.array([[float(number), 0.0] for number in range(11)] + [[1e6, 0.0]])
    valid = jnp.arange(12) < 11
    margins = objective.reward_margins(objective.Objective(beta=0.1), policy, jnp.zeros((12, 2)), valid)
    found = objective.quantiles(margins.reshape(3, 4))
    assert {name: float(value) for name, value in found.items()} == {
        "reward_margin_p10": pytest.approx(0.1),
        "reward_margin_p50": pytest.approx(0.5),
        "reward_margin_p90": pytest.approx(0.9),
    }


def test_what_is_not_finite_is_named_and_left_out() -> None:
    values = {"dpo_loss": math.nan, "kl": math.inf, "dpo_accuracy": 1.0}
    assert metrics.non_finite(values) == ("loss", "kl")
    assert metrics.to_protocol(values) == Metrics(accuracy=1.0)
