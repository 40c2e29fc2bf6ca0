"""The LoRA-DPO guide's advice as code: learning rate, rank, alpha, scaling, dropout.

Each rule gives a `Finding`. One of severity `REFUSE` stops a job under `guidance: enforce`, and is advice under
`guidance: ignore`; all others are advice always.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lora_dpo_api.config_models import MAX_LEARNING_RATE, AInit, TrainerConfig
from lora_dpo_api.notices import Notice

START_LEARNING_RATE = 5e-6
LOWEST_LEARNING_RATE = 5e-7
"""Full fine-tuning's rate, and the lowest that the guide goes to when margins diverge."""
HIGHEST_TUNING_RATE = 1e-5
"""Where the guide goes to when margins stay flat."""
RSLORA_RANK = 64
"""Above it, alpha/r shrinks the update too much."""
HIGHEST_DROPOUT = 0.1


class Severity(enum.StrEnum):
    """How strongly the guide means it."""

    REFUSE = "refuse"
    ADVISE = "advise"


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule of the guide that a job does not follow."""

    severity: Severity
    notice: Notice


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the guide has an opinion on."""

    learning_rate: float
    r: int
    alpha: float
    rslora: bool
    dropout: float
    a_init_mode: AInit = AInit.RANDOM


@dataclass(frozen=True, slots=True)
class Paths:
    """Names of the fields, in the schema that the user wrote."""

    learning_rate: str
    r: str
    alpha: str
    rslora: str
    dropout: str


JOB_PATHS = Paths(
    "spec.optimizer.learningRate", "spec.lora.r", "spec.lora.alpha", "spec.lora.rsLora", "spec.lora.dropout"
)
FILE_PATHS = Paths("optimizer.learning_rate", "lora.r", "lora.alpha", "lora.rslora", "lora.dropout")


@dataclass(frozen=True, slots=True)
class RankRow:
    """A row of the guide's table "Choosing Rank"."""

    below_pairs: int | None
    ranks: tuple[int, int]
    note: str


RANK_TABLE = (
    RankRow(5_000, (16, 64), "lower capacity avoids overfitting"),
    RankRow(50_000, (64, 128), "a good balance of capacity and efficiency"),
    RankRow(None, (128, 256), "many pairs need capacity; use rsLoRA above rank 64"),
)


def findings(job: Hyperparameters, paths: Paths) -> tuple[Finding, ...]:
    """Everything that the guide has to say before the data is known."""
    found = (
        _learning_rate(job, paths.learning_rate),
        _alpha(job, paths.alpha),
        _scaling(job, paths.rslora),
        _dropout(job, paths.dropout),
    )
    return tuple(finding for finding in found if finding is not None)


def of_config(config: TrainerConfig) -> Hyperparameters:
    """The part of a configuration that the guide has an opinion on."""
    lora = config.lora
    return Hyperparameters(
        learning_rate=config.optimizer.learning_rate,
        r=lora.r,
        alpha=lora.resolved_alpha,
        rslora=lora.rslora,
        dropout=lora.dropout,
        a_init_mode=lora.a_init_mode or AInit.RANDOM,
    )


def rank_advice(r: int, pairs: int, path: str = JOB_PATHS.r) -> Notice | None:
    """The guide's word on a rank, once the number of training pairs is known."""
    row = next(row for row in RANK_TABLE if row.below_pairs is None or pairs < row.below_pairs)
    low, high = row.ranks
    if low <= r <= high:
        return None
    side = "below" if r < low else "above"
    return Notice(
        "RankForPairs",
        path,
        f"{r} is {side} the guide's {low} to {high} for {pairs:,} pairs ({row.note}); "
        + ("raise it if reward margins plateau" if r < low else "lower it if the loss falls below 0.2 quickly"),
    )


def _learning_rate(job: Hyperparameters, path: str) -> Finding | None:
    rate = job.learning_rate
    start = "start at 5e-6"
    if rate > MAX_LEARNING_RATE:
        why = "that is a rate for SFT with LoRA" if rate >= 1e-4 else "DPO diverges there"
        return Finding(
            Severity.REFUSE,
            Notice(
                "LearningRateTooHigh", path, f"{rate:g} is above 5e-5, which LoRA-DPO must never exceed: {why}; {start}"
            ),
        )
    if rate > HIGHEST_TUNING_RATE:
        return _advice("LearningRateHigh", path, f"{rate:g} is above the guide's range of 5e-7 to 1e-5; {start}")
    # With A at zero the best rates are lower, and the guide's were not measured there.
    if rate <= LOWEST_LEARNING_RATE and job.a_init_mode is not AInit.ZERO:
        return _advice(
            "LearningRateLow",
            path,
            f"{rate:g} is a rate for DPO with full fine-tuning; LoRA needs about ten times more: {start}, and go this "
            "low only where reward margins diverge",
        )
    return None


def _alpha(job: Hyperparameters, path: str) -> Finding | None:
    if job.rslora or job.alpha == job.r:
        return None
    return _advice("AlphaNotRank", path, f"{job.alpha:g} differs from r={job.r}; alpha = r is the safe choice")


def _scaling(job: Hyperparameters, path: str) -> Finding | None:
    if job.rslora or job.r <= RSLORA_RANK:
        return None
    return _advice(
        "RsLoraAboveRank64", path, f"rank {job.r} is above 64, where rank-stabilised scaling (alpha/√r) learns better"
    )


def _dropout(job: Hyperparameters, path: str) -> Finding | None:
    if job.dropout <= HIGHEST_DROPOUT:
        return None
    return _advice("DropoutHigh", path, f"{job.dropout:g} is above the guide's 0.05 to 0.1 against overfitting")


def _advice(code: str, path: str, message: str) -> Finding:
    return Finding(Severity.ADVISE, Notice(code, path, message))
