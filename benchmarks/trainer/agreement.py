"""Whether the contenders did the same work: a comparison of unequal work is worth nothing.

All see the same pairs, batch by batch in the same order (but for TRL's fastest setting, whose batches are grouped by
length). At the first step the policy is the reference, so that every contender must show a loss of ln 2 and the
reference's own margin; which it can only with the same model, template, tokens and loss mask. The gradient's norm
depends on the random start of the adapter, though little in so many parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LOSS = 1e-4
"""How far a first loss may be from ln 2."""
NATS = 0.05
"""How far log-probabilities of whole answers, several hundred nats, may be apart."""
NORM = 1.25
"""How many times as large as another's a gradient norm may be."""
LEVANTER_START = math.sqrt(3)
"""Levanter draws A with a standard deviation of 1/sqrt(inputs), PEFT and this trainer uniformly within that bound."""


def disagreements(
    facts: Mapping[str, Mapping[str, Any]],
    ours: str,
    *,
    starts: Mapping[str, float],
    grouped: Mapping[str, Sequence[int]],
) -> list[str]:
    """What speaks against equal work, a sentence each.

    Args:
        facts: What each contender said about its first step, by name.
        ours: The contender that the others are compared with.
        starts: By how much each one's adapter starts larger, by name; 1 where there is none.
        grouped: The order of pairs in those contenders that have one of their own, as indices of `ours`' order.
    """
    found = [
        f"{name}: the first loss is {one['first_loss']:.6f}, not ln 2"
        for name, one in facts.items()
        if abs(one["first_loss"] - math.log(2)) > LOSS
    ]
    mine = facts.get(ours)
    if mine is None:
        return found
    for name, one in facts.items():
        if name == ours:
            continue
        if name in grouped:
            found += _reference(name, one, mine, grouped[name])
            continue
        apart = abs(one["first_reference_margin"] - mine["first_reference_margin"])
        if apart > NATS:
            found.append(f"{name}: the reference's margin at the first step is off by {apart:.3f} nats")
        ratio = one["first_grad_norm"] / starts.get(name, 1.0) / mine["first_grad_norm"]
        if not 1 / NORM < ratio < NORM:
            found.append(f"{name}: the first gradient's norm is {ratio:.2f} times this trainer's")
    return found


def _reference(name: str, one: Mapping[str, Any], mine: Mapping[str, Any], order: Sequence[int]) -> list[str]:
    known = [mine["reference_logprobs"][mine["order"][index]] for index in order]
    pairs = zip(one["reference_logprobs"], known, strict=True)
    worst = max(abs(theirs - own) for row in pairs for theirs, own in zip(*row, strict=True))
    return [f"{name}: a reference log-probability is off by {worst:.3f} nats"] if worst > NATS else []
