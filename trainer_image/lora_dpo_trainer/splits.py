"""Which pairs are held out: decided by their prompt alone.

The same prompt always falls on the same side, whatever the order, number or names of the files, so no prompt is both
trained and evaluated on. (Splitting by row makes evaluation look better than it is.)
"""

from __future__ import annotations

import dataclasses

_RANGE = float(2**64)


@dataclasses.dataclass(frozen=True)
class PromptSplit:
    """Hold out a fraction of the prompts.

    Attributes:
        fraction: Share of prompts that go to validation, in [0, 1).
    """

    fraction: float

    def holds_out(self, prompt_hash: int) -> bool:
        """Whether pairs with this prompt (64-bit hash) belong to validation."""
        # The hash also serves as an identity elsewhere: mixing it keeps the two uses independent.
        mixed = (prompt_hash * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
        mixed ^= mixed >> 29
        return mixed / _RANGE < self.fraction
