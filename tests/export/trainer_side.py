"""What the trainer makes of checkpoints, run with the trainer's own Python: `trainer_side.py FOLDER…`.

Each folder holds `base/` and `pairs.json`; the adapter, the merged checkpoint and the log-probabilities are written
beside them. Pairs are packed and share their prompts, as in training.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from lora_dpo_api.config_file import LoraConfig, TrainerConfig
from lora_dpo_trainer import batch, lora, merge, model, packing, peft_io, step
from lora_dpo_trainer.pairs import TokenizedPair

SHARD_BYTES = 20_000
"""Several files even of a tiny model."""
SETTINGS = LoraConfig(r=3, alpha=6, exclude_modules=[])


def read_pairs(path: Path) -> list[TokenizedPair]:
    """Token ids of both sides, and the length of the prompt."""
    found = []
    for key, row in enumerate(json.loads(path.read_text())):
        sides = [np.asarray(row[side], np.int32) for side in ("chosen", "rejected")]
        masks = [np.arange(len(side)) >= row["prompt"] for side in sides]
        found.append(TokenizedPair(key, sides[0], masks[0], sides[1], masks[1]))
    return found


def random_adapter(plan: lora.LoraPlan) -> lora.Adapter:
    """Both factors away from zero."""
    leaves, tree = jax.tree.flatten(lora.init(plan, SETTINGS, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def run(folder: Path) -> None:
    """Score the pairs with the base and with an adapter, and write adapter and merged checkpoint."""
    base = model.load_base(str(folder / "base"))
    plan = lora.resolve(base.linears, SETTINGS)
    adapter = random_adapter(plan)
    peft_io.save(str(folder / "adapter"), adapter, plan, SETTINGS, str(folder / "base"))
    peft_io.save(str(folder / "adapter-bf16"), adapter, plan, SETTINGS, str(folder / "base"), dtype="bfloat16")
    pairs = read_pairs(folder / "pairs.json")
    lengths = packing.PairLengths.of(pairs)
    packed = batch.build(pairs, packing.BatchPlan.make(lengths, len(pairs), shuffle=False).shapes[-1])
    slots = packed.slot_answer[0] < 2 * len(pairs)
    score = step.make_logprob_step(base, plan)
    save_file(
        {
            "tokens": np.asarray(step.slot_logprobs(base, base.module, packed))[0, slots],
            "base": np.asarray(score(None, packed))[0],
            "policy": np.asarray(score(adapter, packed))[0],
        },
        folder / "scores.safetensors",
    )
    config = TrainerConfig.model_validate(
        {
            "data": {"components": {"none": {"source": {"type": "url", "train_urls": ["none"]}}}},
            "initialize_from_hf": str(folder / "base"),
            "output": {"path": str(folder), "merged_hf": {"enabled": True, "dtype": "float32"}},
        }
    )
    adapted, target = str(folder / "adapter"), str(folder / "merged")
    merge.write(config, peft_io.load_config(adapted), adapted, target, shard_bytes=SHARD_BYTES)


if __name__ == "__main__":
    for word in sys.argv[1:]:
        run(Path(word))
