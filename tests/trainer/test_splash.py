from __future__ import annotations

import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haliax import Axis, NamedArray

from lora_dpo_trainer import batch, mesh, packing
from lora_dpo_trainer.attention import PairMask, attend
from lora_dpo_trainer.pairs import TokenizedPair
from lora_dpo_trainer.splash import Splash, padded_length

KV_HEADS, GROUP = 2, 2


def make_pair(key: int, shared: int, chosen: int, rejected: int) -> TokenizedPair:
    prompt = np.arange(shared)
    sides = [np.concatenate([prompt, np.full(length, 7 + side)]) for side, length in enumerate((chosen, rejected))]
    masks = [np.arange(len(side)) >= shared for side in sides]
    return TokenizedPair(key, sides[0], masks[0], sides[1], masks[1])


def packed(*pairs: TokenizedPair) -> batch.PackedBatch:
    plan = packing.BatchPlan.make(packing.PairLengths.of(pairs), len(pairs), shuffle=False)
    return batch.build(pairs, plan.shapes[-1])


# The longest side takes three blocks of the kernel.
PAIRS = packed(make_pair(0, 200, 100, 20), make_pair(1, 5, 4, 9))


def attended(splash: Splash | None, head_size: int, **how: object) -> tuple[np.ndarray, ...]:
    """The result of attention and its three gradients."""
    row, position = Axis("row", 1), Axis("position", PAIRS.tokens.shape[1])
    kv_head, group, size = Axis("kv_head", KV_HEADS), Axis("q_heads_per_group", GROUP), Axis("head_size", head_size)
    keys = jax.random.split(jax.random.key(0), 4)
    q = hax.random.normal(keys[0], (row, position, kv_head, group, size)) * head_size**-0.5
    k, v = (hax.random.normal(key, (row, position, kv_head, size)) for key in keys[1:3])
    weights = hax.random.normal(keys[3], q.axes)
    mask = PairMask.make(PAIRS.sides, PAIRS.cells, splash)

    def value(q: NamedArray, k: NamedArray, v: NamedArray) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, mask, **how)  # type: ignore[arg-type]
        return hax.sum(out * weights).array, out.array

    grads, out = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return (np.asarray(out), *(np.asarray(grad.array) for grad in grads))


@pytest.mark.parametrize(
    ("head_size", "how"),
    [
        (16, {}),
        (64, {"window": 150}),
        (16, {"window": jnp.asarray(150), "windows": (150, None), "soft_cap": 2.0}),
    ],
)
def test_the_kernel_computes_what_the_plain_products_do(head_size: int, how: dict[str, object]) -> None:
    splash = Splash(mesh.make(jax.devices()[:1]), interpret=True)
    ours, plain = attended(splash, head_size, **how), attended(None, head_size, **how)
    np.testing.assert_allclose(ours[0], plain[0], atol=2e-6)
    for mine, its in zip(ours[1:], plain[1:], strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5 * np.abs(its).max())


def test_sides_are_filled_up_to_blocks_that_waste_little() -> None:
    lengths = [1, 128, 200, 1000, 1024, 1153, 2000, 4096]
    assert [padded_length(length) for length in lengths] == [128, 128, 256, 1024, 1024, 1280, 2048, 4096]
    assert all(padded_length(length) <= 1.1 * length for length in range(1280, 8192, 8))
