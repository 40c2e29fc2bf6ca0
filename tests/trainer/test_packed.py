"""Packing and shared prompts change nothing: held to Levanter's own forward over each side alone."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haliax import Axis
from levanter.layers.attention import AttentionMask
from levanter.models.llama import LlamaConfig

from lora_dpo_api.config_file import LoraConfig, OptimizerConfig
from lora_dpo_trainer import batch, lora, mesh, model, packing, parity, step
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.pairs import TokenizedPair

CASE = parity.Case(Path(__file__).parents[1] / "data" / "parity" / "llama-r8")
PAIRS = CASE.recorded_pairs()
LENGTH = max(len(ids) for pair in PAIRS for ids in (pair.chosen_ids, pair.rejected_ids))
SETTINGS = LoraConfig(r=8)


@functools.cache
def base() -> model.BaseModel:
    return model.load_base(str(CASE.folder / "base"))


@functools.cache
def plain_model() -> Any:
    """The same base as Levanter reads and runs it."""
    folder = str(CASE.folder / "base")
    converter = LlamaConfig().hf_checkpoint_converter(folder)
    config = converter.config_from_hf_checkpoint(folder)
    with hax.partitioning.set_mesh(mesh.make(jax.devices()[:1])):
        return converter.load_pretrained(config.model_type, config=config, ref=folder, dtype=jnp.float32)


def padded(pairs: list[TokenizedPair]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss masks of all sides, each in a row of its own: [2 * pairs, LENGTH], the chosen sides first."""
    sides = [(pair.chosen_ids, pair.chosen_mask) for pair in pairs]
    sides += [(pair.rejected_ids, pair.rejected_mask) for pair in pairs]
    tokens, masks = np.zeros((len(sides), LENGTH), np.int32), np.zeros((len(sides), LENGTH), np.bool_)
    for row, (ids, mask) in enumerate(sides):
        tokens[row, : len(ids)], masks[row, : len(ids)] = ids, mask
    return tokens, masks


def plain_logprobs(module: Any, tokens: np.ndarray | jax.Array) -> jax.Array:
    """[rows, LENGTH]: the log-probability of each token but a row's first, from whole logits."""
    axes = (Axis("batch", tokens.shape[0]), Axis("position", LENGTH))
    logits = module(hax.named(tokens, axes), attn_mask=AttentionMask.causal()).rearrange((*axes, "vocab")).array
    logps = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return jnp.pad(jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))


def packed(pairs: list[TokenizedPair]) -> batch.PackedBatch:
    lengths = packing.PairLengths.of(pairs)
    return batch.build(pairs, packing.BatchPlan.make(lengths, len(pairs), shuffle=False).shapes[-1])


def test_every_token_has_the_log_probability_that_it_has_unpacked() -> None:
    pairs = PAIRS[:16]
    together = packed(pairs)
    found = np.asarray(step.slot_logprobs(base(), base().module, together))[0]
    tokens, masks = padded(pairs)
    alone = np.asarray(plain_logprobs(plain_model(), tokens))
    for index in range(len(pairs)):
        for side in range(2):
            row = index + side * len(pairs)
            expected = alone[row][masks[row]]
            mine = found[together.slot_answer[0] == 2 * index + side]
            np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-5)
            total = abs(expected.sum(dtype=np.float64))
            assert abs(mine.sum(dtype=np.float64) - expected.sum(dtype=np.float64)) <= max(2e-6 * total, 1e-4)


def test_nothing_is_compiled_once_every_shape_has_been(caplog: pytest.LogCaptureFixture) -> None:
    steps = 10
    plan = lora.resolve(base().linears, SETTINGS)
    optimizer = Optimizer(OptimizerConfig(), steps)
    order = packing.BatchPlan.make(packing.PairLengths.of(PAIRS), 4, total_steps=steps, max_shapes=2)
    train = step.make_train_step(base(), plan, Objective(), optimizer)
    start = step.init_state(lora.init(plan, SETTINGS, jax.random.key(0)), optimizer, seed=0)
    state = mesh.put_everywhere(start, mesh.make(jax.devices()[:1]))
    programs = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for number in range(steps):
            caplog.clear()
            keys = order.keys_of_step(number)
            state, _ = train(state, batch.build([PAIRS[key] for key in keys], order.shape_of(keys)))
            programs.append(any("Finished XLA compilation of jit(whole)" in line for line in caplog.messages))
    assert sum(programs) == len(order.shapes) == 2
    assert not any(programs[number] for number in range(steps) if _seen(order, number))


def test_a_step_takes_over_the_memory_of_the_state_that_it_is_given() -> None:
    plan = lora.resolve(base().linears, SETTINGS)
    optimizer = Optimizer(OptimizerConfig(), 10)
    train = step.make_train_step(base(), plan, Objective(), optimizer)
    start = step.init_state(lora.init(plan, SETTINGS, jax.random.key(0)), optimizer, seed=0)
    state = mesh.put_everywhere(start, mesh.make(jax.devices()[:1]))
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.adapter)]
    state, _ = train(state, packed(PAIRS[:4]))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.adapter)] == places


def _seen(order: packing.BatchPlan, number: int) -> bool:
    return order.shape_of_step(number) in [order.shape_of_step(before) for before in range(number)]
