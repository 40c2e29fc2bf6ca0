"""Attention over packed pairs: who may see whom, and how it is computed.

The mask says only which pair and branch a token belongs to. How the products are computed is one function, `attend`,
so that a kernel can take its place without any model knowing.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import haliax as hax
import jax.numpy as jnp
from haliax import NamedArray
from haliax.jax_utils import maybe_rng_split
from levanter.layers.attention import Attention

from lora_dpo_trainer import linears

_FAR = -1e9


class PairMask(eqx.Module):
    """Which tokens a token attends to: earlier ones of its pair, in its own branch or the shared prefix.

    Attributes:
        pair: int32 {row, position}, -1 in the padding.
        branch: int32 {row, position}, 0 shared prefix, 1 chosen, 2 rejected.
        positions: int32 {row, position}, position ids, for models with a sliding window.
    """

    pair: NamedArray
    branch: NamedArray
    positions: NamedArray

    def dense(self, window: int | None = None) -> NamedArray:
        """Bool {row, position, key_position}; a token of the padding sees itself and other padding before it."""
        Pos = self.pair.resolve_axis("position")
        pair, branch, place = (x.rename({"position": "key_position"}) for x in (self.pair, self.branch, self.positions))
        KeyPos = Pos.alias("key_position")
        order = hax.arange(Pos).broadcast_axis(KeyPos) >= hax.arange(KeyPos)
        seen = (self.pair.broadcast_axis(KeyPos) == pair) & order
        seen = seen & ((self.branch.broadcast_axis(KeyPos) == branch) | (branch == 0))
        if window is not None:
            seen = seen & (self.positions.broadcast_axis(KeyPos) - place < window)
        return seen


class PairAttention(Attention):  # type: ignore[misc]
    """Levanter's attention layer, but for the products: these are over packed pairs."""

    def __call__(
        self, x: NamedArray, mask: PairMask, *, key: Any = None, pos_ids: NamedArray | None = None
    ) -> NamedArray:
        """Attend; {row, position, embed} to the same."""
        key_proj, key_o = maybe_rng_split(key, 2)
        q, k, v = self._compute_qkv(x, key=key_proj, pos_ids=pos_ids)
        config = self.config
        scale = config.scaling_factor or 1 / math.sqrt(q.axis_size("head_size"))
        out = attend(q * scale, k, v, mask, window=config.sliding_window, soft_cap=config.logits_soft_cap)
        out = out.flatten_axes(("kv_head", "q_heads_per_group"), "heads").astype(x.dtype)
        return self.o_proj(out, key=key_o)


def attend(
    q: NamedArray,
    k: NamedArray,
    v: NamedArray,
    mask: PairMask,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
) -> NamedArray:
    """Softmax attention of packed pairs.

    Args:
        q: {row, position, kv_head, q_heads_per_group, head_size}, already scaled.
        k: {row, position, kv_head, head_size}.
        v: {row, position, kv_head, head_size}.
        mask: Who sees whom.
        window: Sliding window, in position ids.
        soft_cap: Scores are bent below this bound by tanh.

    Returns:
        The axes of q.
    """
    order = ("row", "kv_head", "q_heads_per_group", "position", "head_size")
    q = q.rearrange(order)
    k = k.rename({"position": "key_position"}).rearrange(("row", "kv_head", "key_position", "head_size"))
    v = v.rename({"position": "key_position"}).rearrange(("row", "kv_head", "key_position", "head_size"))
    scores = hax.dot(q, k, axis="head_size").astype(jnp.float32)
    if soft_cap is not None:
        scores = hax.tanh(scores / soft_cap) * soft_cap
    scores = hax.where(mask.dense(window), scores, _FAR)
    weights = hax.nn.softmax(scores, axis="key_position").astype(v.dtype)
    return hax.dot(weights, v, axis="key_position").rearrange(order)


def install(module: Any) -> Any:
    """Give a Levanter model `PairAttention` in place of its own attention layers."""

    def change(path: str, layer: Attention, Layers: Any) -> Any:
        if type(layer) is not Attention:
            raise TypeError(f"{path} is {type(layer).__name__}, which does not know packed pairs")
        return PairAttention(
            layer.config, layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj, layer.q_norm, layer.k_norm,
            layer.rot_embs,
        )  # fmt: skip

    return linears.replace(module, change, Attention)
