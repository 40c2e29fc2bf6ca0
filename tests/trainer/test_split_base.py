"""A base that is split over several devices: read so, and computed with as if it were whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import jax, numpy as np
from lora_dpo_api.config_file import LoraConfig, LossType, OptimizerConfig
from lora_dpo_trainer import batch, lora, mesh, model, packing, parity, step
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from pathlib import Path

case = parity.Case(Path(sys.argv[1]))
pairs = case.recorded_pairs()[:8]
found = {}
for split in (False, True):
    devices = mesh.make()
    base = model.load_base(str(case.folder / "base"), mesh=devices, split=split)
    held = [sum(s.data.nbytes for s in leaf.addressable_shards if s.device == jax.devices()[1])
            for leaf in jax.tree.leaves(base.module)]
    config = LoraConfig(r=8)
    plan = lora.resolve(base.linears, config)
    updates = Optimizer(OptimizerConfig(learning_rate=1e-3, warmup=0), 10)
    train = step.make_train_step(base, plan, Objective(LossType.SIGMOID, 0.1), updates)
    state = mesh.put_everywhere(step.init_state(lora.init(plan, config, jax.random.key(0)), updates, 0), devices)
    packed = packing.BatchPlan.make(packing.PairLengths.of(pairs), 8, total_steps=2, groups=2, max_shapes=1)
    rows = mesh.split_first(devices)
    losses = []
    for number in range(2):
        keys = packed.keys_of_step(number)
        arrays = batch.build([pairs[key] for key in keys], packed.shape_of(keys))
        state, metrics = train(state, jax.tree.map(lambda x: jax.device_put(x, rows), arrays))
        losses.append(float(metrics["dpo_loss"]))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(base.module))
    found[str(split)] = {"losses": losses, "held": sum(held) / whole}
print(json.dumps(found))
"""


def test_each_device_holds_its_part_and_the_losses_are_those_of_a_whole_base(base_model: Path) -> None:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(base_model.parent)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["False"]["held"] == 1
    assert found["True"]["held"] < 0.55
    assert found["True"]["losses"] == pytest.approx(found["False"]["losses"], abs=1e-6)
