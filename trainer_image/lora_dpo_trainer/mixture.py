"""One virtual data set out of several components, in the proportions of `data.train_weights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lora_dpo_trainer import errors


def keys_of_epoch(component: np.ndarray, names: Sequence[str], weights: Mapping[str, float] | None) -> np.ndarray:
    """The pairs of one epoch: every pair once, or components repeated and thinned to their weights.

    The size of an epoch stays the number of pairs with a weight above 0. A component of weight 0 is only evaluated on.

    Args:
        component: int32 [pairs], index of each pair's component.
        names: Names of the components.
        weights: Name → relative weight; None takes every pair once.

    Returns:
        int64 [epoch], keys of the split; a permutation is for the plan to choose.

    Raises:
        ConfigError: weights for unknown components, or none above 0.
    """
    if weights is None:
        return np.arange(len(component), dtype=np.int64)
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise errors.ConfigError(f"data.train_weights names {', '.join(unknown)}; components are {', '.join(names)}.")
    members = {name: np.flatnonzero(component == index) for index, name in enumerate(names)}
    share = {name: weights.get(name, 0.0) for name in names if len(members[name])}
    total_weight = sum(share.values())
    if total_weight <= 0:
        raise errors.ConfigError("data.train_weights gives no component with training pairs a weight above 0.")
    size = sum(len(members[name]) for name, weight in share.items() if weight > 0)
    counts = {name: round(size * weight / total_weight) for name, weight in share.items()}
    return np.concatenate([np.resize(members[name], count) for name, count in counts.items() if count]).astype(np.int64)
