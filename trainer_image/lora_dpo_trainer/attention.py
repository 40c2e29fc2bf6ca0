"""Attention over packed pairs: who may see whom, and how it is computed.

The mask says only which pair and branch a token belongs to. How the products are computed is one function, `attend`,
so that a kernel can take its place without any model knowing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
from haliax import Axis, NamedArray
from haliax.jax_utils import maybe_rng_split
from levanter.layers.attention import Attention, AttentionConfig
from levanter.layers.rotary import DefaultRotaryEmbeddingsConfig, RotaryEmbeddings, RotaryEmbeddingsConfig
from levanter.models.olmo import Olmo2Attention

from lora_dpo_trainer import linears

_FAR = -1e9
_EVERYTHING = 1 << 30
"""A window that no sequence is longer than."""


@dataclasses.dataclass(frozen=True)
class PairAttentionConfig(AttentionConfig):  # type: ignore[misc]
    """Levanter's description of an attention layer, and how the layers of a stack differ.

    Attributes:
        windows: The sliding window of each layer, in position ids; None sees everything.
        ropes: The rotary embedding of each layer.
    """

    windows: tuple[int | None, ...] = ()
    ropes: tuple[RotaryEmbeddingsConfig, ...] = ()


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

    def dense(self, window: int | jax.Array | None = None) -> NamedArray:
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


class LayerRotary(RotaryEmbeddings):  # type: ignore[misc]
    """A rotary embedding with frequencies of its own in each layer of a stack.

    Attributes:
        frequencies: float32 {layer, half_head}, radians a position.
    """

    frequencies: NamedArray

    def __call__(self, q: NamedArray, position_ids: NamedArray) -> NamedArray:
        """Turn {…, position, head_size} by its positions."""
        head = q.resolve_axis("head_size")
        angles = self.frequencies.rename({"half_head": "head_size"}).broadcast_axis(position_ids.axes) * position_ids
        both = hax.concatenate(head, (angles, angles))
        first, second = q["head_size", : head.size // 2], q["head_size", head.size // 2 :]
        turned = hax.concatenate(head, (-second, first))
        return q * hax.cos(both).astype(q.dtype) + turned * hax.sin(both).astype(q.dtype)


class PairAttention(Attention):  # type: ignore[misc]
    """Levanter's attention layer, but for the products: these are over packed pairs.

    Attributes:
        window: int32 {layer}, where the layers of a stack differ; else the window is `config.sliding_window`.
    """

    window: NamedArray | None = None

    def __call__(
        self, x: NamedArray, mask: PairMask, *, key: Any = None, pos_ids: NamedArray | None = None
    ) -> NamedArray:
        """Attend; {row, position, embed} to the same."""
        key_proj, key_o = maybe_rng_split(key, 2)
        q, k, v = self._compute_qkv(x, key=key_proj, pos_ids=pos_ids)
        config = self.config
        scale = config.scaling_factor or 1 / math.sqrt(q.axis_size("head_size"))
        window = config.sliding_window if self.window is None else self.window.array
        out = attend(q * scale, k, v, mask, window=window, soft_cap=config.logits_soft_cap)
        out = out.flatten_axes(("kv_head", "q_heads_per_group"), "heads").astype(x.dtype)
        return self.o_proj(out, key=key_o)


def attend(
    q: NamedArray,
    k: NamedArray,
    v: NamedArray,
    mask: PairMask,
    *,
    window: int | jax.Array | None = None,
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


def install(module: Any, place: Callable[[np.ndarray], jax.Array] = jnp.asarray) -> Any:
    """Give a Levanter model `PairAttention` in place of its own attention layers.

    Args:
        module: Levanter's model.
        place: Puts an array where the model's own are.

    Raises:
        TypeError: a layer is of a kind that computes something else.
    """

    def change(path: str, layer: Attention, Layers: Axis | None) -> Any:
        if type(layer) not in (Attention, Olmo2Attention) or not isinstance(layer.config, PairAttentionConfig):
            raise TypeError(f"{path} is {type(layer).__name__}, which does not know packed pairs")
        window, rotary = None, layer.rot_embs
        config: Any = layer.config
        if len(set(config.windows)) == 1:
            config = dataclasses.replace(config, sliding_window=config.windows[0])
        elif config.windows:
            sizes = np.asarray([size or _EVERYTHING for size in config.windows], np.int32)
            window = hax.named(place(sizes), Layers)
        if len(set(config.ropes)) > 1:
            Half = Axis("half_head", config.head_size // 2)
            frequencies = np.stack([_frequencies(rope, config.head_size) for rope in config.ropes])
            rotary = LayerRotary(hax.named(place(frequencies), (Layers, Half)))
        return PairAttention(
            config, layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj, layer.q_norm, layer.k_norm, rotary, window
        )

    return linears.replace(module, change, Attention)


def _frequencies(rope: RotaryEmbeddingsConfig, head_size: int) -> np.ndarray:
    """float32 [head_size / 2], rounded where `transformers` rounds."""
    if not isinstance(rope, DefaultRotaryEmbeddingsConfig):
        raise TypeError(f"{type(rope).__name__} cannot differ between layers")
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    base = np.float32(1) / np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    return np.asarray(base / np.float32(rope.factor), np.float32)
