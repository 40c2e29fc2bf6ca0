"""Causal softmax attention by plain products, with a backward pass that moves no array of scores about.

Scores lie as [key, query] throughout: all products with them then take them as they lie, where autodiff would transpose
them, which on a CPU takes about as long as the products. The forward pass keeps each query's result and normaliser, so
that the backward pass needs no softmax of its own (as in FlashAttention, arXiv:2205.14135, algorithm 4). Queries go in
a few blocks, each with the keys up to its end: what the mask would hide is then mostly not computed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lora_dpo_trainer import remat

_FAR = -1e9
_BLOCK, _BLOCKS = 96, 4
"""Queries go in blocks of at least so many, and in at most so many blocks, each of which is compiled by itself."""

type _Window = int | jax.Array | None
type _Saved = tuple[jax.Array, jax.Array, jax.Array, _Window, jax.Array, jax.Array]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, window: _Window, soft_cap: float | None) -> jax.Array:
    """Attend within sides of one length.

    What lies behind a side's end comes later than all of its tokens, so that the causal mask hides it.

    Args:
        q: [row, side, length, kv_head, group, head_size], already scaled.
        k: [row, side, length, kv_head, head_size].
        v: As k.
        window: Sliding window, in tokens.
        soft_cap: Scores are bent below this bound by tanh.

    Returns:
        As q.
    """
    q, k, v = jnp.einsum("rsqhgd->rshgqd", q), jnp.einsum("rskhd->rshkd", k), jnp.einsum("rskhd->rshkd", v)
    length = q.shape[4]
    block = max(_BLOCK, -(-length // _BLOCKS))
    parts = [
        _attend(q[:, :, :, :, start : start + block], k[:, :, :, : start + block], v[:, :, :, : start + block],
                window, soft_cap)
        for start in range(0, length, block)
    ]  # fmt: skip
    return jnp.einsum("rshgqd->rsqhgd", jnp.concatenate(parts, axis=4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, window: _Window, soft_cap: float | None) -> jax.Array:
    """Of the last queries of those that the keys have: the last query and the last key are of one token."""
    return _forward(q, k, v, window, soft_cap)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, window: _Window, soft_cap: float | None
) -> tuple[jax.Array, _Saved]:
    scores = _scores(q, k, window, soft_cap)
    highest = scores.max(axis=3)
    weights = jnp.exp(scores - highest[:, :, :, None])
    total = weights.sum(axis=3)
    out = jnp.einsum("rshkd,rshkgq->rshdgq", v, weights.astype(v.dtype)) / total[:, :, :, None]
    out = remat.named(jnp.einsum("rshdgq->rshgqd", out).astype(q.dtype), remat.ATTENTION)
    normaliser = remat.named(highest + jnp.log(total), remat.ATTENTION)
    return out, (q, k, v, window, out, normaliser)


def _backward(soft_cap: float | None, saved: _Saved, grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, window, out, normaliser = saved
    scores = _scores(q, k, window, soft_cap)
    weights = jnp.exp(scores - normaliser[:, :, :, None])
    inner = (grad * out).astype(jnp.float32).sum(axis=-1)
    d_scores = weights * (jnp.einsum("rshkd,rshgqd->rshkgq", v, grad) - inner[:, :, :, None])
    if soft_cap is not None:  # unseen scores have no weight, and so no slope
        d_scores = d_scores * jnp.where(scores == _FAR, 0.0, 1.0 - (scores / soft_cap) ** 2)
    d_scores, weights = d_scores.astype(q.dtype), weights.astype(v.dtype)
    d_q = jnp.einsum("rshkd,rshkgq->rshdgq", k, d_scores)
    d_k = jnp.einsum("rshkgq,rshgqd->rshkd", d_scores, q)
    d_v = jnp.einsum("rshkgq,rshgqd->rshkd", weights, grad)
    return jnp.einsum("rshdgq->rshgqd", d_q), d_k, d_v, None


_attend.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, window: _Window, soft_cap: float | None) -> jax.Array:
    """float32 [row, side, kv_head, key, group, query]."""
    scores = jnp.einsum("rshkd,rshgqd->rshkgq", k, q).astype(jnp.float32)
    if soft_cap is not None:
        scores = jnp.tanh(scores / soft_cap) * soft_cap
    queries, keys = q.shape[4], k.shape[3]
    before = jnp.arange(keys - queries, keys) - jnp.arange(keys)[:, None, None]
    seen = before >= 0
    if window is not None:
        seen = seen & (before < window)
    return jnp.where(seen, scores, _FAR)
