"""Values that a job gets whatever its user wrote, because any other one cannot work.

There is one: LoRA's factor B starts at zero. Otherwise the policy differs from the reference before the first step, the
loss starts near 12 in place of ln 2, and training never recovers (the guide, "B Matrix Initialization"). Its mirror
image, A = 0 with B random, starts at the reference just as well; it has to be asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_dpo_api.config_models import AInit
from lora_dpo_api.notices import Notice

ZERO_INIT_B_FORCED = "ZeroInitBForced"

ZERO_INIT_B_MESSAGE = (
    "false is forced to true: with B random the policy differs from the reference before the first step, and training "
    "never recovers. Set it to true, or start A at zero in its place."
)


@dataclass(frozen=True, slots=True)
class LoraStart:
    """How the adapter starts: exactly one factor is zero."""

    zero_init_b: bool
    a_init_mode: AInit
    notice: Notice | None


def lora_start(zero_init_b: bool, a_init_mode: AInit | None, path: str) -> LoraStart:
    """The adapter's initialisation, with B forced to zero unless A is zero by name.

    Args:
        zero_init_b: as written, or its default.
        a_init_mode: as written; `None` when absent.
        path: of the field `zero_init_b`, for the warning.
    """
    if a_init_mode is AInit.ZERO:
        return LoraStart(zero_init_b=False, a_init_mode=AInit.ZERO, notice=None)
    notice = None
    if not zero_init_b:
        notice = Notice(
            ZERO_INIT_B_FORCED,
            path,
            ZERO_INIT_B_MESSAGE,
        )
    return LoraStart(zero_init_b=True, a_init_mode=AInit.RANDOM, notice=notice)
