"""What the forward pass keeps for the backward pass, and what is computed again instead.

Values are known by name: linear layers by the last part of theirs. A backward pass through a frozen layer needs no
input of it, so keeping the outputs of all products is enough to repeat none.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import haliax as hax
import haliax.nn as hnn
import jax
from haliax.nn.scan import ScanCheckpointPolicy
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"
LOW_RANK = "low_rank"

_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj", ATTENTION, LOW_RANK)
_WIDE = ("gate_proj", "up_proj")


class Remat(enum.StrEnum):
    """From the least recomputation to the least memory.

    Attributes:
        NONE: Everything is kept, elementwise results too.
        PRODUCTS: All products are kept.
        NARROW_PRODUCTS: The products as wide as the model; those of the MLP's inner width are repeated.
        FULL: Only each layer's input is kept; the whole layer is repeated.
    """

    NONE = "none"
    PRODUCTS = "products"
    NARROW_PRODUCTS = "narrow-products"
    FULL = "full"

    @property
    def policy(self) -> ScanCheckpointPolicy:
        """As Haliax's stacks of layers take it."""
        match self:
            case Remat.NONE:
                return ScanCheckpointPolicy._mk(False)
            case Remat.PRODUCTS:
                return ScanCheckpointPolicy(save_block_internals=(*_PRODUCTS, *_WIDE))
            case Remat.NARROW_PRODUCTS:
                return ScanCheckpointPolicy(save_block_internals=_PRODUCTS)
            case Remat.FULL:
                return ScanCheckpointPolicy._mk(True)


def named[T: (jax.Array, hax.NamedArray)](value: T, name: str) -> T:
    """Give a value the name by which it is kept."""
    out: Any = jax.tree.map(lambda leaf: checkpoint_name(leaf, name), value)
    return out


def apply(module: Any, choice: Remat) -> Any:
    """A Levanter model whose layers keep what is chosen."""

    def visit(node: Any) -> Any:
        return dataclasses.replace(node, gradient_checkpointing=choice.policy) if is_stack(node) else node

    def is_stack(node: Any) -> bool:
        return isinstance(node, hnn.Stacked)

    return jax.tree.map(visit, module, is_leaf=is_stack)
