"""The low-rank path `(x A^T) B^T`, with a backward pass that moves no large array about.

Derived automatically, the gradients of A and B transpose the layer's inputs and output gradients, which are many times
larger than anything of rank r; on a CPU that takes longer than the products. Written as `u^T g` and `(g B)^T x` the
small factor is the one that is transposed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lora_dpo_trainer import remat


def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`(x A^T) B^T`.

    Args:
        x: [tokens, inputs].
        a: [rank, inputs].
        b: [outputs, rank].

    Returns:
        [tokens, outputs].
    """
    product: jax.Array = _low_rank(x, a, b)
    return product


def _product(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return _forward(x, a, b)[0]


def _forward(x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    narrow = remat.named(jnp.einsum("ni,ri->nr", x, a), remat.LOW_RANK)
    return jnp.einsum("nr,or->no", narrow, b), (x, narrow, a, b)


def _backward(saved: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, narrow, a, b = saved
    d_narrow = jnp.einsum("no,or->nr", grad, b)
    d_b = jnp.einsum("nr,no->ro", narrow, grad).T
    d_a = jnp.einsum("nr,ni->ri", d_narrow, x)
    return jnp.einsum("nr,ri->ni", d_narrow, a), d_a, d_b


_low_rank = jax.custom_vjp(_product)
_low_rank.defvjp(_forward, _backward)
