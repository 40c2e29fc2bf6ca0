"""Names of what is measured: the guide's for people and Prometheus, the protocol's for the operator."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lora_dpo_api.protocol import Metrics

PROTOCOL_FIELDS = {
    "dpo_loss": "loss",
    "dpo_margin_policy": "margin_policy",
    "dpo_margin_ref": "margin_ref",
    "dpo_accuracy": "accuracy",
    "dpo_chosen_reward": "chosen_reward",
    "dpo_rejected_reward": "rejected_reward",
    "reward_margin": "reward_margin",
    "eval_dpo_loss": "eval_loss",
    "eval_dpo_accuracy": "eval_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
    "parameter_count": "parameter_count",
    "trainable_parameter_count": "trainable_parameter_count",
    "fraction_trainable": "fraction_trainable",
}
"""The guide's name → field of `protocol.Metrics`."""

HELP = {
    "dpo_loss": "The DPO training loss.",
    "dpo_margin_policy": "Policy log-probability margin, chosen minus rejected.",
    "dpo_margin_ref": "Reference log-probability margin, chosen minus rejected.",
    "dpo_accuracy": "Fraction of pairs whose policy margin is above their reference margin.",
    "dpo_chosen_reward": "Implicit reward of chosen answers.",
    "dpo_rejected_reward": "Implicit reward of rejected answers.",
    "reward_margin": "dpo_chosen_reward minus dpo_rejected_reward.",
    "eval_dpo_loss": "The DPO loss on the validation split.",
    "eval_dpo_accuracy": "dpo_accuracy on the validation split.",
    "learning_rate": "Learning rate of the last step.",
    "grad_norm": "Global norm of the adapter's gradient before clipping.",
    "tokens_per_second": "Real tokens a second over all devices, shared prompts counted once.",
    "pairs_per_second": "Preference pairs a second over all devices.",
    "parameter_count": "Total model parameters.",
    "trainable_parameter_count": "LoRA parameters.",
    "fraction_trainable": "Ratio of trainable to total parameters.",
}


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those values that are finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def non_finite(values: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the others, as the protocol has them."""
    return tuple(PROTOCOL_FIELDS.get(name, name) for name, value in values.items() if not math.isfinite(value))


def to_protocol(values: Mapping[str, float]) -> Metrics:
    """The protocol's view of values under the guide's names; what is not finite is left out."""
    fields = {PROTOCOL_FIELDS[name]: value for name, value in finite(values).items() if name in PROTOCOL_FIELDS}
    return Metrics.model_validate(fields)
