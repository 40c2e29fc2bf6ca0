"""Log-probabilities of answers, with logits only where a token is predicted, and never all of them at once.

A block of predicted tokens at a time meets the whole vocabulary. With a frozen head, the derivative of a token's
log-probability does not depend on what is done with it but for a factor, so that one pass makes both: two products a
token instead of three. With an adapter on the head, the backward pass makes the block's logits again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_BLOCK_BYTES = 64 << 20
_LOWEST_BLOCK = 32
_COARSE = 1024.0


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    low_rank: jax.Array | None = None,
    head_b: jax.Array | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Log-probability of each target token.

    Args:
        hidden: [groups, slots, embed], the hidden states that predict.
        head: [vocab, embed], frozen: it gets no gradient.
        targets: int32 [groups, slots].
        low_rank: [groups, slots, rank], scale * A(hidden) of an adapted head; None without adapter.
        head_b: [vocab, rank], B of an adapted head.
        soft_cap: Logits are bent below this bound by tanh.

    Returns:
        float32 [groups, slots].
    """
    slots = hidden.shape[1]
    block = block_size(hidden.shape[0], slots, head.shape[0])
    pad = -slots % block
    widths = ((0, 0), (0, pad))
    hidden = jnp.pad(hidden, (*widths, (0, 0)))
    targets = jnp.pad(targets, widths)
    if low_rank is None or head_b is None:
        out = _frozen(block, soft_cap, hidden, head, targets)
    else:
        out = _adapted(block, soft_cap, hidden, head, targets, jnp.pad(low_rank, (*widths, (0, 0))), head_b)
    return out[:, :slots]


def block_size(groups: int, slots: int, vocab: int) -> int:
    """How many slots of each group meet the vocabulary at once: a power of two, some 64 MiB of logits."""
    room = max(_LOWEST_BLOCK, _BLOCK_BYTES // (4 * vocab * groups))
    block = 1 << (room.bit_length() - 1)
    return min(block, max(_LOWEST_BLOCK, 1 << (max(slots - 1, 1)).bit_length()))


def answer_sums(values: jax.Array, answers: jax.Array, pairs: int) -> jax.Array:
    """Sum slot values into answers.

    Args:
        values: float32 [groups, slots].
        answers: int32 [groups, slots], 2 * pair + side; 2 * pairs in the padding.
        pairs: Pairs a group.

    Returns:
        float32 [groups, pairs, 2].
    """
    # A product instead of a scatter: exact order on every backend, and quicker on a CPU.
    member = (answers[..., None] == jnp.arange(2 * pairs)).astype(jnp.float32)
    # Rewards are small differences of large sums. Multiples of 1/1024 add up exactly (up to 16,384), so that only the
    # small rests and the last addition are rounded.
    coarse = jnp.round(values * _COARSE) / _COARSE
    halves = jnp.stack([coarse, values - coarse])
    sums = jnp.sum(jnp.einsum("kgs,gsa->kga", halves, member, precision=lax.Precision.HIGHEST), axis=0)
    return sums.reshape(values.shape[0], pairs, 2)


def _blocks(block: int, x: jax.Array) -> jax.Array:
    """[groups, slots, …] → [blocks, groups, block, …]."""
    groups, slots = x.shape[:2]
    return jnp.moveaxis(x.reshape(groups, slots // block, block, *x.shape[2:]), 1, 0)


def _unblock(x: jax.Array) -> jax.Array:
    """The inverse of `_blocks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum("gse,ve->gsv", hidden, head, preferred_element_type=jnp.float32)


class _Normaliser(NamedTuple):
    """Logits become probabilities by `exp(logits - peak) / total`, which is rounded less than one by the logarithm."""

    peak: jax.Array
    total: jax.Array


def _picked(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, _Normaliser]:
    """Log-probability of the targets, and the normaliser, all [groups, block]."""
    peak = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (target - peak) - jnp.log(total), _Normaliser(peak, total)


def _bend(logits: jax.Array, cap: float | None) -> jax.Array:
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def _residue(logits: jax.Array, normaliser: _Normaliser, targets: jax.Array, cap: float | None) -> jax.Array:
    """Derivative of the log-probability with respect to the logits before they were bent.

    Args:
        logits: [groups, block, vocab], bent.
        normaliser: Of the logits.
        targets: int32 [groups, block].
        cap: What they were bent with.

    Returns:
        One-hot minus softmax, times the slope of the bend.
    """
    hot = targets[..., None] == lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    peak, total = (x[..., None] for x in normaliser)
    slope = hot.astype(jnp.float32) - jnp.exp(logits - peak) / total
    return slope if cap is None else slope * (1 - jnp.square(logits / cap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(block: int, cap: float | None, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    def one(parts: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _picked(_bend(_logits(parts[0], head), cap), parts[1])[0]

    return _unblock(lax.map(one, (_blocks(block, hidden), _blocks(block, targets))))


def _frozen_fwd(
    block: int, cap: float | None, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def one(parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = _bend(_logits(parts[0], head), cap)
        logp, normaliser = _picked(logits, parts[1])
        residue = _residue(logits, normaliser, parts[1], cap).astype(head.dtype)
        return logp, jnp.einsum("gsv,ve->gse", residue, head)

    logp, slope = lax.map(one, (_blocks(block, hidden), _blocks(block, targets)))
    return _unblock(logp), _unblock(slope)


def _frozen_bwd(block: int, cap: float | None, slope: jax.Array, grad: jax.Array) -> tuple[jax.Array, None, None]:
    return (grad[..., None] * slope).astype(slope.dtype), None, None


_frozen.defvjp(_frozen_fwd, _frozen_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _adapted(
    block: int,
    cap: float | None,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    low_rank: jax.Array,
    head_b: jax.Array,
) -> jax.Array:
    return _adapted_fwd(block, cap, hidden, head, targets, low_rank, head_b)[0]


def _adapted_fwd(
    block: int,
    cap: float | None,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    low_rank: jax.Array,
    head_b: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    def one(parts: tuple[jax.Array, ...]) -> tuple[jax.Array, _Normaliser]:
        return _picked(_bend(_logits(parts[0], head) + _logits(parts[2], head_b), cap), parts[1])

    logp, (peak, total) = lax.map(one, tuple(_blocks(block, x) for x in (hidden, targets, low_rank)))
    return _unblock(logp), (hidden, head, targets, low_rank, head_b, _unblock(peak), _unblock(total))


def _adapted_bwd(
    block: int, cap: float | None, saved: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, None, None, jax.Array, jax.Array]:
    hidden, head, targets, low_rank, head_b, peak, total = saved

    def one(d_b: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h, y, u, highest, summed, g = parts
        logits = _bend(_logits(h, head) + _logits(u, head_b), cap)
        residue = _residue(logits, _Normaliser(highest, summed), y, cap) * g[..., None]
        d_hidden = jnp.einsum("gsv,ve->gse", residue.astype(head.dtype), head)
        d_low = jnp.einsum("gsv,vr->gsr", residue.astype(head_b.dtype), head_b)
        d_b += jnp.einsum("gsv,gsr->vr", residue, u.astype(jnp.float32))
        return d_b, (d_hidden.astype(hidden.dtype), d_low.astype(low_rank.dtype))

    parts = tuple(_blocks(block, x) for x in (hidden, targets, low_rank, peak, total, grad))
    d_b, (d_hidden, d_low) = lax.scan(one, jnp.zeros(head_b.shape, jnp.float32), parts)
    return _unblock(d_hidden), None, None, _unblock(d_low), d_b.astype(head_b.dtype)


_adapted.defvjp(_adapted_fwd, _adapted_bwd)
