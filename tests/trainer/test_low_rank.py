"""The low-rank path against its plain definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lora_dpo_trainer.low_rank import low_rank


def plain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return (x @ a.T) @ b.T


def test_value_and_every_gradient_are_those_of_the_plain_products() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x, a, b = (jax.random.normal(key, shape) for key, shape in zip(keys, ((7, 5), (2, 5), (3, 2)), strict=False))
    weight = jax.random.normal(keys[3], (7, 3))

    def loss(path, *arrays):
        return jnp.sum(jnp.sin(path(*arrays)) * weight)

    np.testing.assert_allclose(low_rank(x, a, b), plain(x, a, b), rtol=1e-6)
    expected = jax.grad(lambda *arrays: loss(plain, *arrays), argnums=(0, 1, 2))(x, a, b)
    actual = jax.grad(lambda *arrays: loss(low_rank, *arrays), argnums=(0, 1, 2))(x, a, b)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
