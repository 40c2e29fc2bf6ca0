"""An adapter on an output projection that is tied to the embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from lora_dpo_api.config_file import LoraConfig, OptimizerConfig, TrainerConfig
from lora_dpo_trainer import batch, lora, merge, model, packing, parity, peft_io, step, storage
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SETTINGS = LoraConfig(r=4, alpha=8, exclude_modules=[])


@pytest.fixture
def tied(base_model: Path, tmp_path: Path) -> Path:
    """The tiny Llama without a head of its own, in two files with an index."""
    folder = tmp_path / "tied"
    shutil.copytree(base_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights[HEAD]
    (folder / "model.safetensors").unlink()
    index = {}
    for number, names in enumerate(([EMBEDDING], [name for name in weights if name != EMBEDDING]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in weights.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def some_batch(base_model: Path) -> batch.PackedBatch:
    pairs = parity.Case(base_model.parent).recorded_pairs()[:4]
    lengths = packing.PairLengths.of(pairs)
    return batch.build(pairs, packing.BatchPlan.make(lengths, 4, shuffle=False).shapes[-1])


def test_the_policy_starts_as_the_reference_and_learns(tied: Path, base_model: Path) -> None:
    base = model.load_base(str(tied))
    plan = lora.resolve(base.linears, SETTINGS)
    adapter = lora.init(plan, SETTINGS, jax.random.key(0))
    lora.assert_identity(adapter)
    packed = some_batch(base_model)
    score = step.make_logprob_step(base, plan)
    before = np.asarray(score(None, packed))
    np.testing.assert_array_equal(score(adapter, packed), before)

    optimizer = Optimizer(OptimizerConfig(learning_rate=5e-3, warmup=0), 8)
    train = step.make_train_step(base, plan, Objective(), optimizer)
    state = step.init_state(jax.tree.map(jnp.copy, adapter), optimizer, 0)
    losses = []
    for _ in range(8):
        state, metrics = train(state, packed)
        losses.append(float(metrics["dpo_loss"]))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.05
    assert np.asarray(state.adapter["lm_head"].B.array).any()
    np.testing.assert_array_equal(score(None, packed), before)


def test_merging_an_adapted_head_unties_it(tied: Path, memory: str) -> None:
    base = model.load_base(str(tied))
    plan = lora.resolve(base.linears, SETTINGS)
    adapter = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), lora.init(plan, SETTINGS, jax.random.key(0)))
    peft_io.save(f"{memory}/adapter", adapter, plan, SETTINGS, str(tied))
    config = TrainerConfig.model_validate(
        {
            "data": {"components": {"none": {"source": {"type": "url", "train_urls": ["none"]}}}},
            "initialize_from_hf": str(tied),
            "output": {"path": memory, "merged_hf": {"enabled": True, "dtype": "float32"}},
        }
    )
    merge.write(config, SETTINGS, f"{memory}/adapter", f"{memory}/merged", shard_bytes=200_000)

    embedding = load_file(tied / "model-00001-of-00002.safetensors")[EMBEDDING]
    index = json.loads(storage.read_bytes(f"{memory}/merged/model.safetensors.index.json"))
    merged = {
        name: load(storage.read_bytes(f"{memory}/merged/{file}"))[name] for name, file in index["weight_map"].items()
    }
    np.testing.assert_array_equal(merged[EMBEDDING], embedding)
    np.testing.assert_allclose(merged[HEAD], embedding + 2 * 4 * 0.01, rtol=1e-6, atol=1e-7)
    assert json.loads(storage.read_bytes(f"{memory}/merged/config.json"))["tie_word_embeddings"] is False
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in merged.values())
