"""The export phase proves what was written, and fails when it is not what was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from safetensors.numpy import load_file, save_file

from lora_dpo_api.config_file import LoraConfig, TrainerConfig
from lora_dpo_trainer import errors, export, lora, model, parity, peft_io, probe, scoring, step

SETTINGS = LoraConfig(r=4, alpha=8)


@pytest.fixture
def trained(make_config: Callable[..., TrainerConfig], base_model: Path, tmp_path: Path) -> TrainerConfig:
    """What training leaves behind: an adapter, and what the policy said about the probe rows."""
    base = model.load_base(str(base_model))
    plan = lora.resolve(base.linears, SETTINGS)
    leaves, tree = jax.tree.flatten(lora.init(plan, SETTINGS, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    adapter = jax.tree.unflatten(
        tree, [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    output = tmp_path / "out"
    digest = peft_io.save(str(output / "adapter"), adapter, plan, SETTINGS, str(base_model))
    pairs = tuple(parity.Case(base_model.parent).recorded_pairs()[:4])
    score = step.make_logprob_step(base, plan)
    policy, reference = (scoring.logprobs(score, value, pairs) for value in (adapter, None))
    probe.write(str(output), probe.Probe(pairs, policy, reference, "float32", digest))
    merged = {"enabled": True, "dtype": "float32"}
    return make_config(lora={"r": 4, "alpha": 8}, output={"path": str(output), "merged_hf": merged})


def test_adapter_and_merged_checkpoint_are_read_back_and_their_differences_recorded(trained: TrainerConfig) -> None:
    report = export.run(trained)
    written = json.loads((Path(trained.output.path) / "export.json").read_text())
    assert [artifact.kind for artifact in report.artifacts] == ["peft", "mergedHf"]
    for kind in ("", "merged_"):
        assert written[f"{kind}largest_difference"] <= written[f"{kind}allowed_difference"] < written["adapter_effect"]
    assert set(written["sha256"]) == {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}


def damage_weights(folder: Path) -> None:
    weights = load_file(folder / peft_io.WEIGHTS)
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] * 1.001}, folder / peft_io.WEIGHTS, metadata={"format": "pt"})


def test_a_weight_that_training_did_not_write_fails_the_export(trained: TrainerConfig) -> None:
    damage_weights(Path(trained.output.path) / "adapter")
    with pytest.raises(errors.ExportMismatch, match="is not the file that training wrote"):
        export.run(trained)
    assert not (Path(trained.output.path) / "export.json").exists()


def swap_layers(folder: Path) -> None:
    weights = load_file(folder / peft_io.WEIGHTS)
    first, second = (f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_B.weight" for layer in (0, 1))
    save_file(weights | {first: weights[second], second: weights[first]}, folder / peft_io.WEIGHTS)


def double_alpha(folder: Path) -> None:
    config = json.loads((folder / peft_io.CONFIG).read_text())
    (folder / peft_io.CONFIG).write_text(json.dumps(config | {"lora_alpha": 2 * config["lora_alpha"]}))


@pytest.mark.parametrize("fault", [swap_layers, double_alpha])
def test_an_adapter_that_computes_something_else_fails_the_export(
    trained: TrainerConfig, fault: Callable[[Path], None]
) -> None:
    output = trained.output.path
    fault(Path(output) / "adapter")
    digest = export._digest(f"{output}/adapter/{peft_io.WEIGHTS}")
    probe.write(output, dataclasses.replace(probe.read(output), adapter_digest=digest))
    with pytest.raises(errors.ExportMismatch, match=r"The adapter in .*, read back, gives log-probabilities") as caught:
        export.run(trained)
    assert caught.value.exit_code == 76
