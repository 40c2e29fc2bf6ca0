"""Preference losses over log-probabilities, and the metrics that go with them.

Formulas follow TRL's `DPOTrainer`; `delta` below is (chosen - rejected reward)/beta.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lora_dpo_api.config_file import LossType

METRICS = (
    "loss",
    "dpo_loss",
    "dpo_margin_policy",
    "dpo_margin_ref",
    "dpo_accuracy",
    "dpo_chosen_reward",
    "dpo_rejected_reward",
    "logps/chosen",
    "logps/rejected",
)
"""Means over the pairs of a step; `loss` is what is minimised: `dpo_loss`, plus the SFT term where there is one."""

QUANTILES = {"reward_margin_p10": 0.1, "reward_margin_p50": 0.5, "reward_margin_p90": 0.9}
"""Metric → which quantile of a step's reward margins it is."""

SAME_LOGPROB = 1e-4
"""Log-probabilities of a sequence that differ by no more are the same, computed twice in float32."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        type: The preference loss.
        beta: DPO's temperature.
        label_smoothing: Probability that a label is wrong.
        sft_weight: Weight of the chosen answers' mean negative log-likelihood a token.
    """

    type: LossType = LossType.SIGMOID
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Totals:
    """What sums are divided by: of the whole step, while a microbatch sees a part.

    Attributes:
        pairs: Number of pairs.
        chosen_tokens: Predicted tokens of chosen answers.
    """

    pairs: jax.Array
    chosen_tokens: jax.Array


def evaluate(
    objective: Objective, policy: jax.Array, reference: jax.Array, counts: jax.Array, valid: jax.Array, totals: Totals
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a (micro)batch.

    Args:
        objective: What is minimised.
        policy: float32 [pairs, 2], log-probabilities of chosen and rejected answers.
        reference: float32 [pairs, 2], the same under the reference.
        counts: float32 [pairs, 2], predicted tokens of each.
        valid: bool [pairs]; others count nowhere.
        totals: Of the whole step; the parts that microbatches return add up to its means.

    Returns:
        The loss, and `METRICS`, all float32 scalars.
    """
    weight = valid.astype(jnp.float32) / totals.pairs

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(valid, values, 0.0) * weight)

    dpo_loss = mean(pair_losses(objective, policy, reference, counts))
    loss = dpo_loss
    if objective.sft_weight:
        nll = -jnp.sum(jnp.where(valid, policy[:, 0], 0.0)) / totals.chosen_tokens
        loss = loss + objective.sft_weight * nll
    rewards = objective.beta * (policy - reference)
    margin_policy, margin_ref = policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1]
    metrics = {
        "loss": loss,
        "dpo_loss": dpo_loss,
        "dpo_margin_policy": mean(margin_policy),
        "dpo_margin_ref": mean(margin_ref),
        "dpo_accuracy": mean(_right(policy, reference)),
        "dpo_chosen_reward": mean(rewards[:, 0]),
        "dpo_rejected_reward": mean(rewards[:, 1]),
        "logps/chosen": mean(policy[:, 0]),
        "logps/rejected": mean(policy[:, 1]),
    }
    return loss, {name: jax.lax.stop_gradient(metrics[name]) for name in METRICS}


def reward_margins(objective: Objective, policy: jax.Array, reference: jax.Array, valid: jax.Array) -> jax.Array:
    """Chosen minus rejected reward of each pair, float32 [pairs], NaN where there is none; arguments as of `evaluate`.

    Pairs may lie along several axes, before that of the sides.
    """
    rewards = objective.beta * (policy - reference)
    return jax.lax.stop_gradient(jnp.where(valid, rewards[..., 0] - rewards[..., 1], jnp.nan))


def quantiles(margins: jax.Array) -> dict[str, jax.Array]:
    """`QUANTILES` of the pairs' reward margins, interpolated linearly; NaN stands for no pair."""
    found = jnp.nanquantile(margins.reshape(-1), jnp.array(list(QUANTILES.values())))
    return dict(zip(QUANTILES, found, strict=True))


def _right(policy: jax.Array, reference: jax.Array) -> jax.Array:
    """1 where the policy's margin is strictly greater, as TRL and Levanter count; equal but for rounding is not.

    A cached reference comes from another program than the policy, so that at step 0 they differ by rounding: in every
    token by some units in the last place of a logit, and in four sums by half a unit each. Below `SAME_LOGPROB` or that
    (1e-4 for answers of -500) is no gain.
    """
    sums = 0.5 * jnp.finfo(jnp.float32).eps * jnp.sum(jnp.abs(policy) + jnp.abs(reference), axis=1)
    rounding = jnp.maximum(sums, SAME_LOGPROB)
    gain = policy - reference
    return (gain[:, 0] - gain[:, 1] > rounding).astype(jnp.float32)


def pair_losses(objective: Objective, policy: jax.Array, reference: jax.Array, counts: jax.Array) -> jax.Array:
    """The preference loss of each pair, float32 [pairs]; arguments as of `evaluate`."""
    beta, smoothing = objective.beta, objective.label_smoothing
    scores = policy - reference
    if objective.type in (LossType.IPO, LossType.SIGMOID_NORM):
        scores = scores / jnp.maximum(counts, 1.0)
    delta = scores[:, 0] - scores[:, 1]
    right, wrong = jax.nn.softplus(-beta * delta), jax.nn.softplus(beta * delta)
    match objective.type:
        case LossType.SIGMOID | LossType.SIGMOID_NORM:
            return (1 - smoothing) * right + smoothing * wrong
        case LossType.ROBUST:
            return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
        case LossType.IPO:
            return jnp.square(delta - 1 / (2 * beta))
        case LossType.HINGE:
            return jax.nn.relu(1 - beta * delta)
