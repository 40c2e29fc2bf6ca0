"""Attention over packed pairs: tokens are gathered into sides, and each side attends within itself, causally.

How the products are computed is one function, `attend`, so that a kernel can take its place without any model knowing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
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

from lora_dpo_trainer import causal, linears
from lora_dpo_trainer.splash import Splash

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
    """Where the sides of the pairs lie, each of which is attended to by itself.

    Attributes:
        sides: int32 {row, side, place} each, positions of a side's tokens; see `batch.PackedBatch`.
        cells: int32 {row, position, occurrence}, where in the sides a position occurs.
        splash: The TPU's kernel; None computes with plain products.
    """

    # Named, because Haliax's scan over layers would take bare arrays apart.
    sides: tuple[NamedArray, ...]
    cells: NamedArray
    splash: Splash | None = eqx.field(static=True, default=None)

    @classmethod
    def make(cls, sides: Sequence[jax.Array], cells: jax.Array, splash: Splash | None = None) -> PairMask:
        """From the arrays of a `PackedBatch`."""
        return cls(
            tuple(hax.named(side, ("row", "side", "place")) for side in sides),
            hax.named(cells, ("row", "position", "occurrence")),
            splash,
        )


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
        given = {"window": window, "windows": config.windows, "soft_cap": config.logits_soft_cap}
        out = attend(q * scale, k, v, mask, **given)
        out = out.flatten_axes(("kv_head", "q_heads_per_group"), "heads").astype(x.dtype)
        return self.o_proj(out, key=key_o)


def attend(
    q: NamedArray,
    k: NamedArray,
    v: NamedArray,
    mask: PairMask,
    *,
    window: int | jax.Array | None = None,
    windows: tuple[int | None, ...] = (),
    soft_cap: float | None = None,
) -> NamedArray:
    """Softmax attention of packed pairs.

    Args:
        q: {row, position, kv_head, q_heads_per_group, head_size}, already scaled.
        k: {row, position, kv_head, head_size}.
        v: {row, position, kv_head, head_size}.
        mask: Where the sides are.
        window: Sliding window, in position ids.
        windows: What `window` may be, where it is an array.
        soft_cap: Scores are bent below this bound by tanh.

    Returns:
        The axes of q, 0 in the padding.
    """
    axes = tuple(q.resolve_axis(name) for name in ("row", "position", "kv_head", "q_heads_per_group", "head_size"))
    order = ("row", "position", "kv_head", "head_size")
    given = tuple(x.array for x in (q.rearrange(axes), k.rearrange(order), v.rearrange(order)))
    sides, cells = tuple(side.array for side in mask.sides), mask.cells.array
    if mask.splash is None:
        plain = functools.partial(causal.attend, soft_cap=soft_cap)
        return hax.named(_by_sides(plain, window, given, sides, cells), axes)
    kernel = functools.partial(mask.splash.attend, windows=windows, soft_cap=soft_cap)
    return hax.named(mask.splash.on_each_device(_by_sides, kernel, window, given, sides, cells), axes)


def _by_sides(
    inner: Callable[..., jax.Array],
    window: int | jax.Array | None,
    given: tuple[jax.Array, ...],
    sides: tuple[jax.Array, ...],
    cells: jax.Array,
) -> jax.Array:
    """Gather q, k and v from positions into sides, attend within each by `inner`, and put the results back."""
    sources = jnp.concatenate([side.reshape(side.shape[0], -1) for side in sides], axis=1)
    in_cells = [_into_cells(x, sources, cells) for x in given]
    results, start = [], 0
    for rows, count, length in (side.shape for side in sides):
        part = slice(start, start + count * length)
        qs, ks, vs = (x[:, part].reshape(rows, count, length, *x.shape[2:]) for x in in_cells)
        out = inner(qs, ks, vs, window)
        results.append(out.reshape(rows, count * length, *out.shape[3:]))
        start = part.stop
    return _from_cells(jnp.concatenate(results, axis=1), sources, cells)


# Autodiff would make scatters of the gathers' derivatives; where each value came from is known, so gathers do.


@functools.partial(jax.custom_vjp)
def _into_cells(x: jax.Array, sources: jax.Array, cells: jax.Array) -> jax.Array:
    """[row, position, …] → [row, cell, …], 0 in empty cells."""
    return _take(x, sources)


def _into_cells_fwd(
    x: jax.Array, sources: jax.Array, cells: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _take(x, sources), (sources, cells)


def _into_cells_bwd(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, None, None]:
    _, cells = saved
    return _take(grad, cells[..., 0]) + _take(grad, cells[..., 1]), None, None


_into_cells.defvjp(_into_cells_fwd, _into_cells_bwd)


@functools.partial(jax.custom_vjp)
def _from_cells(x: jax.Array, sources: jax.Array, cells: jax.Array) -> jax.Array:
    """[row, cell, …] → [row, position, …], 0 in the padding; both cells of a prefix hold the same."""
    return _take(x, cells[..., 0])


def _from_cells_fwd(
    x: jax.Array, sources: jax.Array, cells: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _take(x, cells[..., 0]), (sources, cells)


def _from_cells_bwd(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, None, None]:
    sources, cells = saved
    read = _take(cells[..., 0], sources) == jnp.arange(sources.shape[1])
    nowhere = jnp.int32(cells.shape[1])
    return _take(grad, jnp.where(read, sources, nowhere)), None, None


_from_cells.defvjp(_from_cells_fwd, _from_cells_bwd)


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
    """[row, n, …] at [row, m] → [row, m, …], 0 beyond the end."""
    return jax.vmap(lambda values, places: values.at[places].get(mode="fill", fill_value=0))(x, indices)


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
