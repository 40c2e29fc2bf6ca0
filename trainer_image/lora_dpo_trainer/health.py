"""Guards and advice: what training must never go on with, and what its user may want to change.

The guards end a run. A detector only advises: it is a pure function of a `Window` of the last steps, and its remedies
are those of the LoRA-DPO guide.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping

from lora_dpo_api.config_file import LossType, TrainerConfig
from lora_dpo_api.protocol import Advice
from lora_dpo_trainer import errors

LN2 = math.log(2.0)
IDENTITY_TOLERANCE = {"float32": 5e-4, "bfloat16": 2e-2}
"""How far the first loss may be from ln 2, by compute type, for the two passes round differently."""

WINDOW_STEPS = 20
FLAT_AFTER_STEPS = 100
FLAT_MARGIN = 1e-3
SATURATION_SHARE = 0.1
SATURATED_STEPS = 5
LOW_LOSS = 0.2
RISEN = 1.05
"""A held-out loss that is so many times its best has risen."""
DIVERGED = 2.0
"""So many times the loss of a policy that knows nothing is worse than any noise of a batch."""
JUMPED_MARGIN = 1.0
COLLAPSED_REWARD = -1.0
"""With beta 0.1, answers that are e¹⁰ times less likely than under the reference."""
BASIN_STEPS = range(2, 11)
BASIN_WIDTH = 0.05
BASIN_SPREAD = 0.04
"""Runs in the bad basin had 0.686 at step 2 and 0.661 at step 9; the same ones outside of it 0.335 and 0.27. Where
losses are near ln 2, but differ by more than the spread, the policy moves, and only the batches disagree."""
BASIN_GRADIENT = (1e-2, 1e3)
BASIN_LEARNING = 2e-5
"""Learning rates of those steps, summed: below it no run leaves ln 2 so soon."""
BASIN_WARMED_UP = 0.75
"""Their mean over optimizer.learning_rate: below it the warm-up takes more than five steps."""


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
    """Raise NonFinite when the loss or the gradient of a step, or the loss after it, is not finite."""
    broken = [name for name in ("dpo_loss", "grad_norm", "eval_dpo_loss") if not math.isfinite(values.get(name, 0.0))]
    if broken:
        raise errors.NonFinite(f"{' and '.join(broken)} not finite at step {step}.")


@dataclasses.dataclass(frozen=True)
class Window:
    """What the detectors look at.

    Attributes:
        total_steps: Steps of the whole run.
        held_out: Whether there are validation pairs.
        chance: Loss of a policy that equals its reference; None where the thresholds, which are the sigmoid loss's,
            do not apply.
        peak_learning_rate: What the warm-up rises to; 0 where there is none.
        steps: The last `WINDOW_STEPS` completed steps and their values under the guide's names.
        evaluations: Losses of the validation pairs so far.
    """

    total_steps: int
    held_out: bool = False
    chance: float | None = LN2
    peak_learning_rate: float = 0.0
    steps: tuple[tuple[int, Mapping[str, float]], ...] = ()
    evaluations: tuple[float, ...] = ()

    @staticmethod
    def of(config: TrainerConfig, total_steps: int, *, held_out: bool) -> Window:
        """The window of a run before its first step."""
        sigmoid = config.loss.type in (LossType.SIGMOID, LossType.SIGMOID_NORM, LossType.ROBUST)
        return Window(total_steps, held_out, LN2 if sigmoid else None, config.optimizer.learning_rate)

    def after(self, step: int, values: Mapping[str, float]) -> Window:
        """The window with one more step."""
        return dataclasses.replace(self, steps=(*self.steps[1 - WINDOW_STEPS :], (step, values)))

    def evaluated(self, loss: float) -> Window:
        """The window with one more evaluation."""
        return dataclasses.replace(self, evaluations=(*self.evaluations, loss))

    @property
    def step(self) -> int:
        """The last completed step; 0 before the first."""
        return self.steps[-1][0] if self.steps else 0

    def last(self, name: str, count: int = WINDOW_STEPS) -> tuple[float, ...]:
        """A metric in the last steps, oldest first."""
        return tuple(values.get(name, math.nan) for _, values in self.steps[-count:])


def advice(window: Window) -> tuple[Advice, ...]:
    """What the guide would say after the window's last step or evaluation."""
    found = {code: remedy(window) for code, remedy in DETECTORS.items()} if window.steps else {}
    return tuple(Advice(code=code, message=message) for code, message in found.items() if message)


def bad_basin(window: Window) -> str | None:
    """The loss stays near ln 2 over steps 2 to 10, though the gradient and the learning rate could move it."""
    if window.chance is None or window.step != BASIN_STEPS[-1] or window.steps[0][0] > BASIN_STEPS[0]:
        return None
    count = len(BASIN_STEPS)
    losses, norms = window.last("dpo_loss", count), window.last("grad_norm", count)
    near = all(abs(loss - window.chance) < BASIN_WIDTH for loss in losses)
    stuck = near and max(losses) - min(losses) < BASIN_SPREAD
    normal = all(BASIN_GRADIENT[0] <= norm <= BASIN_GRADIENT[1] for norm in norms)
    learning = sum(window.last("learning_rate", count))
    could_move = learning >= max(BASIN_LEARNING, BASIN_WARMED_UP * count * window.peak_learning_rate)
    if not (stuck and normal and could_move):
        return None
    return (
        f"The loss is still {losses[-1]:.3f}, near ln 2, after {window.step} steps with a gradient norm of "
        f"{norms[-1]:.2g}: set lora.a_init_mode to zero (A = 0, B random), and check that labels do not contradict "
        "one another."
    )


def flat_margins(window: Window) -> str | None:
    """The reward margin is about 0 after 100 steps."""
    margin = statistics.fmean(window.last("reward_margin"))
    if window.step < FLAT_AFTER_STEPS or not abs(margin) < FLAT_MARGIN:
        return None
    return (
        f"The reward margin is still {margin:.1e} after {window.step} steps: raise learning_rate to 1e-5 (never above "
        "5e-5); if that does not help, lower beta or raise lora.r."
    )


def margin_divergence(window: Window) -> str | None:
    """Margins jumped, and the loss rose far above that of a policy that knows nothing."""
    if window.chance is None:
        return None
    margins, loss = window.last("reward_margin"), window.last("dpo_loss", 1)[0]
    if not loss > DIVERGED * window.chance or not max(margins) - min(margins) > JUMPED_MARGIN:
        return None
    return (
        f"The loss is {loss:.2f} at step {window.step}, after reward margins between {min(margins):.2f} and "
        f"{max(margins):.2f}: lower learning_rate to a fifth, set warmup to 0.1, or raise beta."
    )


def early_saturation(window: Window) -> str | None:
    """Every pair is ranked right within the first tenth of the run, and stays so for some steps."""
    accuracies = window.last("dpo_accuracy", SATURATED_STEPS)
    early = window.step <= SATURATION_SHARE * window.total_steps
    if not early or len(accuracies) < SATURATED_STEPS or not min(accuracies) >= 1.0:
        return None
    return (
        "Accuracy is 1.0 within the first tenth of the run: lower lora.r, set loss.label_smoothing or loss.type to "
        "ipo, or check that chosen and rejected do not differ in something trivial."
    )


def low_loss(window: Window) -> str | None:
    """The training loss is below 0.2, and no held-out loss says that this is well."""
    if window.chance is None or len(window.steps) < WINDOW_STEPS:
        return None
    loss = statistics.fmean(window.last("dpo_loss"))
    if not loss < LOW_LOSS:
        return None
    if not window.held_out:
        return (
            f"The training loss is {loss:.2f} and no pairs are held out to tell learning from memorising: set "
            "validation_split_fraction; if the held-out loss rises, halve lora.alpha or stop earlier."
        )
    if not window.evaluations or window.evaluations[-1] <= max(RISEN * min(window.evaluations), LOW_LOSS):
        return None
    return (
        f"The training loss is {loss:.2f} while the held-out loss rose from {min(window.evaluations):.2f} to "
        f"{window.evaluations[-1]:.2f}: halve lora.alpha, or stop earlier."
    )


def logprob_collapse(window: Window) -> str | None:
    """Chosen and rejected answers are both far less likely than under the reference, and ever less so."""
    if len(window.steps) < WINDOW_STEPS:
        return None
    half = WINDOW_STEPS // 2
    for name in ("dpo_chosen_reward", "dpo_rejected_reward"):
        values = window.last(name)
        before, now = statistics.fmean(values[:half]), statistics.fmean(values[half:])
        if not (now < before and now < COLLAPSED_REWARD):
            return None
    return (
        f"Chosen and rejected answers both become less likely (rewards "
        f"{window.last('dpo_chosen_reward', 1)[0]:.2f} and {window.last('dpo_rejected_reward', 1)[0]:.2f}): set "
        "loss.sft_weight to 0.5 or 1."
    )


DETECTORS: Mapping[str, Callable[[Window], str | None]] = {
    "BadBasin": bad_basin,
    "MarginDivergence": margin_divergence,
    "FlatMargins": flat_margins,
    "EarlySaturation": early_saturation,
    "LowLoss": low_loss,
    "LogProbCollapse": logprob_collapse,
}
"""Code of an advice → its detector: what to say about a window with at least one step, or None."""
