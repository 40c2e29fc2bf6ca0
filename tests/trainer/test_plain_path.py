"""Packing, shared prompts and a cached reference against the plain way: every side alone, four forwards a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np

from lora_dpo_api.config_file import LoraConfig, LossType, OptimizerConfig
from lora_dpo_trainer import batch, lora, model, packing, parity, scoring, step
from lora_dpo_trainer.attention import PairMask
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.pairs import TokenizedPair

STEPS, BATCH, BETA = 50, 8, 0.1
RATE = 1e-3
"""High enough for the loss of a tiny random model to fall within 50 steps."""


def padded(pairs: Sequence[TokenizedPair], side: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and predicted-token masks, [pairs, length]."""
    ids, masks = np.zeros((len(pairs), length), np.int32), np.zeros((len(pairs), length), bool)
    for row, pair in enumerate(pairs):
        given = getattr(pair, f"{side}_ids")
        ids[row, : len(given)], masks[row, : len(given)] = given, getattr(pair, f"{side}_mask")
    return ids, masks


def alone(base: model.BaseModel, adapter: lora.Adapter | None, plan: lora.LoraPlan, ids: jax.Array, mask: jax.Array):  # type: ignore[no-untyped-def]
    """Summed log-probabilities of sides, a row each, from logits that exist whole."""
    rows, length = ids.shape
    axes = hax.Axis("row", rows), hax.Axis("position", length)
    places = jnp.broadcast_to(jnp.arange(length), (rows, length))
    cells = jnp.stack([places, jnp.full_like(places, length)], axis=-1)
    module = base.module if adapter is None else lora.attach(base.module, adapter, plan)
    hidden = model.hidden_states(
        module, hax.named(ids, axes), hax.named(places, axes), PairMask.make([places[:, None]], cells)
    )
    logits = hidden.rearrange((*axes, base.embed)).array @ model.head_weight(base.module, base.embed).T
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(logps * mask[:, 1:], axis=1)


def test_fifty_steps_give_the_losses_of_the_plain_path(base_model: Path) -> None:
    pairs = parity.Case(base_model.parent).recorded_pairs()
    base = model.load_base(str(base_model))
    config = LoraConfig(r=8, exclude_modules=["lm_head"])
    adapted = lora.resolve(base.linears, config)
    updates = Optimizer(OptimizerConfig(learning_rate=RATE, warmup=0, lr_schedule="constant"), STEPS)
    start = lora.init(adapted, config, jax.random.key(0))
    plan = packing.BatchPlan.make(packing.PairLengths.of(pairs), BATCH, total_steps=STEPS, seed=1, max_shapes=1)
    length = max(len(ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids))

    @jax.jit
    def plain(state, chosen, rejected):  # type: ignore[no-untyped-def]
        def loss(adapter: lora.Adapter) -> jax.Array:
            policy = alone(base, adapter, adapted, *chosen) - alone(base, adapter, adapted, *rejected)
            frozen = alone(base, None, adapted, *chosen) - alone(base, None, adapted, *rejected)
            return -jnp.mean(jax.nn.log_sigmoid(BETA * (policy - frozen)))

        value, grads = jax.value_and_grad(loss)(state.adapter)
        adapter, opt_state, _ = updates.update(grads, state.opt_state, state.adapter, state.step)
        return step.TrainState(adapter, opt_state, state.step + 1, state.key), value

    train = step.make_train_step(base, adapted, Objective(LossType.SIGMOID, BETA), updates, microbatches=2)
    packed_plan = packing.BatchPlan.make(
        packing.PairLengths.of(pairs), BATCH, total_steps=STEPS, seed=1, groups=2, max_shapes=1
    )
    cached = scoring.logprobs(step.make_logprob_step(base), None, pairs)
    ours, theirs = [], []
    packed_state, plain_state = (step.init_state(jax.tree.map(jnp.copy, start), updates, 0) for _ in range(2))
    for number in range(STEPS):
        keys = plan.keys_of_step(number)
        rows = [pairs[key] for key in keys]
        packed = batch.build(rows, packed_plan.shape_of(keys), cached[keys])
        packed_state, metrics = train(packed_state, packed)
        ours.append(float(metrics["dpo_loss"]))
        plain_state, value = plain(plain_state, padded(rows, "chosen", length), padded(rows, "rejected", length))
        theirs.append(float(value))
    assert theirs[-1] < 0.95 * theirs[0], "the losses must move, or equal ones prove nothing"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
