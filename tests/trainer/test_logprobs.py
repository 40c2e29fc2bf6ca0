import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_trainer import logprobs

GROUPS, SLOTS, EMBED, VOCAB, RANK = 2, 70, 16, 50, 4


def arrays() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    return {
        "hidden": jax.random.normal(keys[0], (GROUPS, SLOTS, EMBED)),
        "head": jax.random.normal(keys[1], (VOCAB, EMBED)),
        "targets": jax.random.randint(keys[2], (GROUPS, SLOTS), 0, VOCAB),
        "low_rank": jax.random.normal(keys[3], (GROUPS, SLOTS, RANK)),
        "head_b": jax.random.normal(keys[4], (VOCAB, RANK)),
    }


def whole(hidden: jax.Array, low_rank: jax.Array | None, head_b: jax.Array | None) -> jax.Array:
    given = arrays()
    logits = hidden @ given["head"].T
    if low_rank is not None and head_b is not None:
        logits = logits + low_rank @ head_b.T
    return jnp.take_along_axis(jax.nn.log_softmax(logits), given["targets"][..., None], -1)[..., 0]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_BLOCK_BYTES", 1)


def test_a_frozen_head_gives_the_log_softmax_and_its_gradient() -> None:
    given = arrays()
    weights = jnp.arange(SLOTS, dtype=jnp.float32)

    def ours(hidden: jax.Array) -> jax.Array:
        return jnp.sum(weights * logprobs.token_logprobs(hidden, given["head"], given["targets"]))

    def theirs(hidden: jax.Array) -> jax.Array:
        return jnp.sum(weights * whole(hidden, None, None))

    np.testing.assert_allclose(ours(given["hidden"]), theirs(given["hidden"]), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(given["hidden"]), jax.grad(theirs)(given["hidden"]), rtol=1e-3, atol=1e-3)


def test_an_adapted_head_gives_the_gradients_of_both_factors() -> None:
    given = arrays()
    weights = jnp.sin(jnp.arange(SLOTS, dtype=jnp.float32))

    def ours(hidden: jax.Array, low: jax.Array, head_b: jax.Array) -> jax.Array:
        return jnp.sum(weights * logprobs.token_logprobs(hidden, given["head"], given["targets"], low, head_b))

    def theirs(hidden: jax.Array, low: jax.Array, head_b: jax.Array) -> jax.Array:
        return jnp.sum(weights * whole(hidden, low, head_b))

    inputs = given["hidden"], given["low_rank"], given["head_b"]
    for mine, other in zip(jax.grad(ours, (0, 1, 2))(*inputs), jax.grad(theirs, (0, 1, 2))(*inputs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_slots_add_up_to_answers_and_padding_to_none() -> None:
    values = jnp.array([[1.0, 2.0, 4.0, 8.0]])
    answers = jnp.array([[0, 3, 3, 4]])
    np.testing.assert_array_equal(logprobs.answer_sums(values, answers, 2), [[[1.0, 0.0], [0.0, 6.0]]])


def test_a_block_of_logits_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_BLOCK_BYTES", 64 << 20)
    assert logprobs.block_size(1, 4096, 128_256) == 128
    assert logprobs.block_size(1, 100, 1000) == 128


@pytest.mark.parametrize("adapted", [False, True])
def test_a_soft_cap_bends_the_logits_and_their_gradient(adapted: bool) -> None:
    given = arrays()
    cap = 2.5
    weights = jnp.sin(jnp.arange(SLOTS, dtype=jnp.float32))

    def ours(hidden: jax.Array, low: jax.Array, head_b: jax.Array) -> jax.Array:
        factors = (low, head_b) if adapted else (None, None)
        found = logprobs.token_logprobs(hidden, given["head"], given["targets"], *factors, soft_cap=cap)
        return jnp.sum(weights * found)

    def theirs(hidden: jax.Array, low: jax.Array, head_b: jax.Array) -> jax.Array:
        logits = hidden @ given["head"].T + (low @ head_b.T if adapted else 0.0)
        logp = jax.nn.log_softmax(cap * jnp.tanh(logits / cap))
        return jnp.sum(weights * jnp.take_along_axis(logp, given["targets"][..., None], -1)[..., 0])

    inputs = given["hidden"], given["low_rank"], given["head_b"]
    np.testing.assert_allclose(ours(*inputs), theirs(*inputs), rtol=1e-5, atol=1e-4)
    for mine, other in zip(jax.grad(ours, (0, 1, 2))(*inputs), jax.grad(theirs, (0, 1, 2))(*inputs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)


def test_sums_are_rounded_once_and_differentiate_to_one() -> None:
    values = -3 * jax.random.uniform(jax.random.key(0), (1, 600))
    answers = jnp.tile(jnp.array([0, 1, 2]), 200)[None]
    found = np.asarray(logprobs.answer_sums(values, answers, 2)).reshape(-1)[:3]
    exact = np.array([np.asarray(values, np.float64)[0, side::3].sum() for side in range(3)])
    last_place = np.spacing(np.abs(exact).astype(np.float32))
    np.testing.assert_array_less(np.abs(found - exact), 0.51 * last_place)
    slope = jax.grad(lambda x: jnp.sum(logprobs.answer_sums(x, answers, 2)))(values)
    np.testing.assert_array_equal(slope, jnp.ones_like(values))
