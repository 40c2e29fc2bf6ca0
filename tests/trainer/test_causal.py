"""Attention by plain products against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_trainer import causal

SIDES, LENGTH, KV_HEADS, GROUPS, HEAD = 2, 221, 2, 3, 4  # three blocks, the last one shorter


def definition(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | jax.Array | None, soft_cap: float | None
) -> jax.Array:
    scores = jnp.einsum("rsqhgd,rskhd->rshgqk", q, k)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    behind = jnp.arange(LENGTH)[:, None] - jnp.arange(LENGTH)
    seen = (behind >= 0) & (behind < (LENGTH if window is None else window))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("rshgqk,rskhd->rsqhgd", weights, v)


def inputs() -> tuple[jax.Array, ...]:
    shapes = [(1, SIDES, LENGTH, KV_HEADS, GROUPS, HEAD)] + 2 * [(1, SIDES, LENGTH, KV_HEADS, HEAD)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 4, jnp.asarray(130)])
def test_value_and_every_gradient_are_those_of_the_definition(
    window: int | jax.Array | None, soft_cap: float | None
) -> None:
    given = inputs()
    weight = jax.random.normal(jax.random.key(1), given[0].shape)

    def loss(attend, *arrays):
        return jnp.sum(jnp.sin(attend(*arrays, window, soft_cap)) * weight)

    np.testing.assert_allclose(
        causal.attend(*given, window, soft_cap), definition(*given, window, soft_cap), rtol=1e-5, atol=1e-6
    )
    slopes = [jax.grad(loss, argnums=(1, 2, 3))(attend, *given) for attend in (definition, causal.attend)]
    for expected, actual in zip(*slopes, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_token_is_the_same_whatever_comes_after_it() -> None:
    q, k, v = inputs()
    short = causal.attend(q[:, :, :75], k[:, :, :75], v[:, :, :75], None, None)
    np.testing.assert_allclose(causal.attend(q, k, v, None, None)[:, :, :75], short, rtol=1e-5, atol=1e-6)
