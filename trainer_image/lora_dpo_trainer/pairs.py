"""A preference pair as the numerical core sees it: token ids and which of them are predicted."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TokenizedPair:
    """One prompt with two answers, tokenised.

    Attributes:
        key: Stable index of the pair in its prepared split.
        chosen_ids: int32 [chosen length], prompt and answer.
        chosen_mask: bool [chosen length], True = this token is predicted, and counts in the loss.
        rejected_ids: int32 [rejected length].
        rejected_mask: bool [rejected length].
    """

    key: int
    chosen_ids: np.ndarray
    chosen_mask: np.ndarray
    rejected_ids: np.ndarray
    rejected_mask: np.ndarray

    def __post_init__(self) -> None:
        for side, ids, mask in (
            ("chosen", self.chosen_ids, self.chosen_mask),
            ("rejected", self.rejected_ids, self.rejected_mask),
        ):
            if ids.ndim != 1 or ids.shape != mask.shape or len(ids) == 0:
                raise ValueError(f"pair {self.key}: {side} ids {ids.shape} and mask {mask.shape} must be equal and 1-D")

    @property
    def shared(self) -> int:
        """Leading tokens that both sides have in common; they are encoded once."""
        length = min(len(self.chosen_ids), len(self.rejected_ids))
        different = np.flatnonzero(self.chosen_ids[:length] != self.rejected_ids[:length])
        return int(different[0]) if len(different) else length

    @property
    def encoded_length(self) -> int:
        """Tokens that are run through the model: the shared prefix once, then what differs of each side."""
        return len(self.chosen_ids) + len(self.rejected_ids) - self.shared

    @property
    def targets(self) -> tuple[int, int]:
        """Predicted tokens of the chosen and of the rejected side; nothing predicts a sequence's first token."""
        return int(self.chosen_mask[1:].sum()), int(self.rejected_mask[1:].sum())
