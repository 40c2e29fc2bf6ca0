"""Guards and advice: what training must never go on with, and what its user may want to change."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lora_dpo_api.config_file import LossType, TrainerConfig
from lora_dpo_api.protocol import Advice
from lora_dpo_trainer import errors

LN2 = math.log(2.0)
IDENTITY_TOLERANCE = {"float32": 5e-4, "bfloat16": 2e-2}
"""How far the first loss may be from ln 2, by compute type, for the two passes round differently."""

FLAT_AFTER_STEPS = 100
FLAT_MARGIN = 1e-3
SATURATION_SHARE = 0.1
LOW_LOSS = 0.2


def check_first_loss(config: TrainerConfig, loss: float, compute_dtype: str) -> None:
    """Raise BrokenIdentity unless a fresh run starts at ln 2, as policy and reference are then the same.

    Only the plain sigmoid losses without extra terms start there.
    """
    plain = config.loss.type in (LossType.SIGMOID, LossType.SIGMOID_NORM) and config.loss.sft_weight == 0
    if not plain or config.adapter.init_from != config.reference.adapter or config.lora.dropout > 0:
        return
    tolerance = IDENTITY_TOLERANCE.get(compute_dtype, IDENTITY_TOLERANCE["bfloat16"])
    if not abs(loss - LN2) <= tolerance:
        raise errors.BrokenIdentity(
            f"The first loss is {loss:.4f} and should be ln 2 = {LN2:.4f} ± {tolerance}: the adapter does not start "
            "as the identity."
        )


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise NonFinite when the loss or the gradient of a step is not finite."""
    broken = [name for name in ("dpo_loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
    if broken:
        raise errors.NonFinite(f"{' and '.join(broken)} not finite at step {step}.")


@dataclasses.dataclass(frozen=True)
class Signals:
    """What the detectors remember from step to step."""

    saturated_steps: int = 0

    def after(self, values: Mapping[str, float]) -> Signals:
        """The signals with one more step."""
        saturated = values.get("dpo_accuracy", 0.0) >= 1.0
        return Signals(saturated_steps=self.saturated_steps + 1 if saturated else 0)


def advice(step: int, total_steps: int, values: Mapping[str, float], signals: Signals) -> tuple[Advice, ...]:
    """What the guide would say at this step; thresholds are the guide's."""
    found = []
    margin, loss = values.get("reward_margin", math.nan), values.get("dpo_loss", math.nan)
    if step >= FLAT_AFTER_STEPS and abs(margin) < FLAT_MARGIN:
        found.append(
            Advice(
                code="FlatMargins",
                message=f"The reward margin is still {margin:.1e} after {step} steps: raise learning_rate to 1e-5.",
            )
        )
    if step <= SATURATION_SHARE * total_steps and signals.saturated_steps >= 5:
        found.append(
            Advice(
                code="EarlySaturation",
                message="Accuracy is 1.0 within the first tenth of the run: lower lora.r, or check that chosen and "
                "rejected do not differ in something trivial.",
            )
        )
    if loss < LOW_LOSS and step <= total_steps // 2:
        found.append(
            Advice(
                code="LowLoss",
                message=f"The training loss is {loss:.2f}: compare eval_dpo_loss, and halve lora.alpha if it rises.",
            )
        )
    return tuple(found)
