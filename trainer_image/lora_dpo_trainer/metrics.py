"""What is measured: names, units and meanings, for people, Prometheus, TRL's users and the operator.

A metric has one name here, the guide's where the guide has one; `exported` adds TRL's names beside it. docs/metrics.md
lists all of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from lora_dpo_api.protocol import Metrics

PREFIX = "loradpo_train_"
"""Of every name in Prometheus."""

EVAL = "eval_"
"""Of a metric over the held-out pairs, as in TRL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One thing that is measured.

    Attributes:
        name: In `metrics.jsonl`, TensorBoard and W&B; in Prometheus as `prometheus_name` says.
        unit: What one of it is.
        meaning: A sentence.
        formula: How it is computed.
        field: Of `protocol.Metrics`, and so of the job's status.
        trl: The name that TRL gives the same quantity.
        held_out: Whether it is measured on the held-out pairs too, as `eval_<name>`.
        exact: Whether the same run gives the same value again, on any machine of the same kind.
    """

    name: str
    unit: str
    meaning: str
    formula: str
    field: str | None = None
    trl: str | None = None
    held_out: bool = False
    exact: bool = True


TRAINING = (
    Metric(
        name="dpo_loss",
        unit="nats",
        meaning="The DPO training loss.",
        formula="mean over pairs of loss.type",
        field="loss",
        held_out=True,
    ),
    Metric(
        name="loss",
        unit="nats",
        meaning="What is minimised.",
        formula="dpo_loss + loss.sft_weight * mean negative log-likelihood of a chosen token",
        trl="loss",
        held_out=True,
    ),
    Metric(
        name="dpo_margin_policy",
        unit="nats",
        meaning="Policy log-probability margin, chosen minus rejected.",
        formula="mean(log π(chosen) - log π(rejected))",
        field="margin_policy",
        held_out=True,
    ),
    Metric(
        name="dpo_margin_ref",
        unit="nats",
        meaning="Reference log-probability margin, chosen minus rejected.",
        formula="mean(log π_ref(chosen) - log π_ref(rejected))",
        field="margin_ref",
        held_out=True,
    ),
    Metric(
        name="dpo_accuracy",
        unit="fraction",
        meaning="Fraction of pairs whose policy margin is above their reference margin.",
        formula="mean(chosen reward > rejected reward); a difference of rounding's size is none",
        field="accuracy",
        trl="rewards/accuracies",
        held_out=True,
    ),
    Metric(
        name="dpo_chosen_reward",
        unit="reward",
        meaning="Implicit reward of chosen answers.",
        formula="mean(beta * (log π(chosen) - log π_ref(chosen)))",
        field="chosen_reward",
        trl="rewards/chosen",
        held_out=True,
    ),
    Metric(
        name="dpo_rejected_reward",
        unit="reward",
        meaning="Implicit reward of rejected answers.",
        formula="mean(beta * (log π(rejected) - log π_ref(rejected)))",
        field="rejected_reward",
        trl="rewards/rejected",
        held_out=True,
    ),
    Metric(
        name="reward_margin",
        unit="reward",
        meaning="How much more chosen answers are rewarded than rejected ones.",
        formula="dpo_chosen_reward - dpo_rejected_reward",
        field="reward_margin",
        trl="rewards/margins",
        held_out=True,
    ),
    *(
        Metric(
            name=f"reward_margin_p{percent}",
            unit="reward",
            meaning=f"Reward margin that {percent} % of the step's pairs stay below.",
            formula=f"{percent} % quantile over the step's pairs, interpolated linearly",
        )
        for percent in (10, 50, 90)
    ),
    Metric(
        name="logps/chosen",
        unit="nats",
        meaning="Log-probability of chosen answers under the policy.",
        formula="mean(log π(chosen)), each summed over the answer's tokens",
        trl="logps/chosen",
        held_out=True,
    ),
    Metric(
        name="logps/rejected",
        unit="nats",
        meaning="Log-probability of rejected answers under the policy.",
        formula="mean(log π(rejected)), each summed over the answer's tokens",
        trl="logps/rejected",
        held_out=True,
    ),
    Metric(
        name="kl",
        unit="nats",
        meaning="Estimate of the divergence of the policy from the reference, KL(π_ref ‖ π), an answer.",
        formula="mean over all answers of log π_ref - log π = -(dpo_chosen_reward + dpo_rejected_reward) / (2 * beta)",
        held_out=True,
    ),
    Metric(
        name="grad_norm",
        unit="1",
        meaning="Global norm of the adapter's gradient before clipping.",
        formula="‖∇ loss‖₂ over all factors",
        field="grad_norm",
        trl="grad_norm",
    ),
    Metric(
        name="learning_rate",
        unit="1",
        meaning="Learning rate of the last step.",
        formula="optimizer.lr_schedule at the step",
        field="learning_rate",
        trl="learning_rate",
    ),
    Metric(
        name="pad_fraction",
        unit="fraction",
        meaning="Part of the step's token positions that hold no token.",
        formula="1 - real tokens / positions",
    ),
    Metric(
        name="eval_pairs",
        unit="pairs",
        meaning="Held-out pairs of the last evaluation.",
        formula="min(held-out pairs, eval.max_pairs)",
    ),
)

SIZE = (
    Metric(
        name="parameter_count",
        unit="parameters",
        meaning="Total model parameters.",
        formula="base + adapter; tied weights once",
        field="parameter_count",
    ),
    Metric(
        name="trainable_parameter_count",
        unit="parameters",
        meaning="LoRA parameters.",
        formula="sum over adapted layers of r * (inputs + outputs)",
        field="trainable_parameter_count",
    ),
    Metric(
        name="fraction_trainable",
        unit="fraction",
        meaning="Ratio of trainable to total parameters.",
        formula="trainable_parameter_count / parameter_count",
        field="fraction_trainable",
    ),
)

MACHINE = (
    Metric(
        name="tokens_per_second",
        unit="tokens/s",
        meaning="Real tokens a second over all devices, shared prompts counted once.",
        formula="mean tokens a step / median seconds a step, of the last 20 steps",
        field="tokens_per_second",
        exact=False,
    ),
    Metric(
        name="pairs_per_second",
        unit="pairs/s",
        meaning="Preference pairs a second over all devices.",
        formula="mean pairs a step / median seconds a step, of the last 20 steps",
        exact=False,
    ),
    Metric(
        name="mfu",
        unit="fraction",
        meaning="LoRA-DPO model FLOPs utilisation: necessary FLOPs over the devices' bfloat16 peak; absent on CPU.",
        formula="mean necessary FLOPs a step / median seconds a step / (devices * peak)",
        field="mfu",
        exact=False,
    ),
    Metric(
        name="step_seconds",
        unit="seconds",
        meaning="Time of the last step, without evaluation and saving.",
        formula="from the completion of the step before to its own",
        exact=False,
    ),
    Metric(
        name="data_seconds",
        unit="seconds",
        meaning="How long the last step waited for its batch.",
        formula="from asking for the batch until it was placed",
        exact=False,
    ),
    Metric(
        name="save_seconds",
        unit="seconds",
        meaning="How long the last checkpoint held training back.",
        formula="copying the state to the host, and waiting for the write before",
        exact=False,
    ),
    Metric(
        name="memory_rss_bytes",
        unit="bytes",
        meaning="Memory of the leading host's trainer process.",
        formula="resident set size",
        exact=False,
    ),
    Metric(
        name="memory_device_bytes",
        unit="bytes",
        meaning="Memory in use on the fullest device of the leading host; absent where the device does not tell.",
        formula="max over local devices of bytes_in_use",
        exact=False,
    ),
    Metric(
        name="memory_device_peak_bytes",
        unit="bytes",
        meaning="Most memory ever in use on such a device; absent where the device does not tell.",
        formula="max over local devices of peak_bytes_in_use",
        exact=False,
    ),
    Metric(
        name="memory_device_limit_bytes",
        unit="bytes",
        meaning="Memory that such a device can give; absent where the device does not tell.",
        formula="max over local devices of bytes_limit",
        exact=False,
    ),
)

ALL = (*TRAINING, *SIZE, *MACHINE)

PROTOCOL_FIELDS = {metric.name: metric.field for metric in ALL if metric.field} | {
    "eval_dpo_loss": "eval_loss",
    "eval_dpo_accuracy": "eval_accuracy",
}
"""Name → field of `protocol.Metrics`."""

_TRL = {
    prefix + metric.name: prefix + metric.trl
    for metric in ALL
    for prefix in ("", *((EVAL,) if metric.held_out else ()))
    if metric.trl and metric.trl != metric.name
}

_MEANINGS = {metric.name: metric.meaning for metric in ALL} | {
    EVAL + metric.name: f"On the held-out pairs: {metric.meaning}" for metric in ALL if metric.held_out
}

HELP = _MEANINGS | {theirs: _MEANINGS[ours] for ours, theirs in _TRL.items()}
"""Every exported name → its meaning."""

INEXACT = frozenset(metric.name for metric in ALL if not metric.exact)
"""Names of what is different on each machine."""


def exported(values: Mapping[str, float]) -> dict[str, float]:
    """The values under all their names, TRL's beside ours."""
    return {**values, **{_TRL[name]: value for name, value in values.items() if name in _TRL}}


def prometheus_name(name: str) -> str:
    """A metric's name in Prometheus: the prefix, and `_` for what it does not allow."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", name)


def derived(values: Mapping[str, float], beta: float, prefix: str = "") -> dict[str, float]:
    """What follows from other means: the reward margin, and the estimate of the divergence.

    The estimate is k1 of http://joschu.net/blog/kl-approx.html, the mean log ratio, with the data's answers in the
    place of samples of the reference: unbiased where they were drawn from it, else only a measure of the drift on them.
    """
    chosen, rejected = values[f"{prefix}dpo_chosen_reward"], values[f"{prefix}dpo_rejected_reward"]
    return {f"{prefix}reward_margin": chosen - rejected, f"{prefix}kl": (0.0 - chosen - rejected) / (2 * beta)}


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
