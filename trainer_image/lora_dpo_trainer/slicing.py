"""Pairs longer than `train_seq_len`, with Levanter's meanings of the strategies."""

from __future__ import annotations

from lora_dpo_api.config_file import SliceStrategy
from lora_dpo_trainer.chat import Tokens
from lora_dpo_trainer.rows import Problem


def fit(chosen: Tokens, rejected: Tokens, limit: int, strategy: SliceStrategy) -> tuple[Tokens, Tokens] | Problem:
    """Bring both sides to at most `limit` tokens, or say why the pair cannot be used.

    `LEFT` keeps the beginning of each side. `RIGHT` keeps the end: both sides lose the same number of tokens, so that
    the prompt that they share stays the same.

    Returns:
        The two sides, or the problem: `TOO_LONG` under `RAISE` and `DROP`, `CUT_AWAY` when a side has no answer token
        left (its log-probability would be 0 whatever the policy does).
    """
    excess = max(len(chosen.ids), len(rejected.ids)) - limit
    if excess > 0:
        match strategy:
            case SliceStrategy.RAISE | SliceStrategy.DROP:
                return Problem.TOO_LONG
            case SliceStrategy.LEFT:
                chosen, rejected = _slice(chosen, slice(0, limit)), _slice(rejected, slice(0, limit))
            case SliceStrategy.RIGHT:
                chosen, rejected = _slice(chosen, slice(excess, None)), _slice(rejected, slice(excess, None))
    # Nothing predicts the first token.
    if not chosen.mask[1:].any() or not rejected.mask[1:].any():
        return Problem.CUT_AWAY
    return chosen, rejected


def _slice(side: Tokens, part: slice) -> Tokens:
    return Tokens(side.ids[part], side.mask[part])
