"""This trainer's step: traced for its operations, and compiled for a slice. Prints one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

import jax.numpy as jnp
from transformers import LlamaConfig

from benchmarks.aot import flops
from benchmarks.aot.workload import LENGTH, PAIRS, RANK, ROPE, SLICES, Llama
from lora_dpo_api.config_file import LoraConfig, LossType, OptimizerConfig
from lora_dpo_trainer import aot, batch, fit, lora, mesh, model, packing, step
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.remat import Remat

TOKENS = 2 * PAIRS * LENGTH
"""Of both sides of all pairs: what operations are divided by, whatever is shared or left out."""


def main() -> None:
    """Trace and compile what the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slice", required=True, choices=SLICES)
    parser.add_argument("--layers", type=int, default=Llama.layers)
    parser.add_argument("--keep", type=Remat, help="default: what the trainer chooses for the slice")
    parser.add_argument("--pairs-per-chip", type=int, help="in a microbatch; default: the trainer's choice")
    parser.add_argument("--trace-only", action="store_true", help="count operations, compile nothing")
    options = parser.parse_args()
    setting = Setting.make(options.slice, options.layers)
    layout = setting.layout()
    if options.keep:
        microbatches = PAIRS // setting.devices // options.pairs_per_chip
        needed = fit.step_bytes(setting.size, setting.shape(microbatches), setting.devices, options.keep, split=True)
        layout = fit.Layout(microbatches, options.keep, True, needed)
    print(json.dumps(setting.report(layout, compiled=not options.trace_only)))


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The workload on one slice."""

    name: str
    devices: int
    mesh: Any
    config: LlamaConfig
    base: model.BaseModel
    adapted: lora.LoraPlan
    size: fit.ModelSize

    @classmethod
    def make(cls, name: str, layers: int) -> Setting:
        """Describe the model on the devices of a slice."""
        sizes = Llama(layers)
        config = LlamaConfig(
            vocab_size=sizes.vocab,
            hidden_size=sizes.embed,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_parameters=ROPE,
        )
        devices = aot.topology_mesh(SLICES[name])
        base = model.describe(config, "llama-3.1-8b", devices, jnp.dtype(jnp.bfloat16), split=True)
        adapted = lora.resolve(base.linears, _LORA)
        return cls(name, devices.devices.size, devices, config, base, adapted, model.size_of(base, adapted))

    @property
    def room(self) -> int:
        """Bytes that a program may have on each chip."""
        found = fit.usable_bytes(self.mesh.devices.flat[0].device_kind)
        assert found is not None, "the benchmark's slices are known"
        return found

    def shape(self, microbatches: int, *, prompt: int = 0) -> packing.BatchShape:
        """Full pairs; with a prompt, it is shared, and only what follows it is predicted."""
        pairs = PAIRS // self.devices // microbatches
        answer = LENGTH - prompt
        return packing.BatchShape(
            self.devices * microbatches,
            pairs * (prompt + 2 * answer),
            pairs * 2 * answer,
            pairs,
            ((2 * pairs, LENGTH),),
        )

    def layout(self) -> fit.Layout:
        """What the trainer chooses."""
        share = PAIRS // self.devices
        numbers = [number for number in range(1, share + 1) if share % number == 0]
        return fit.choose(self.size, self.shape, numbers, self.devices, self.room)

    def report(self, layout: fit.Layout, *, compiled: bool) -> dict[str, Any]:
        """Operations per token, and the compiler's readings."""
        base = self.base if layout.split else model.describe(self.config, self.base.source, self.mesh, split=False)
        traced = self._trace(base, layout, self.shape(layout.microbatches))
        # What is traced is run once for each microbatch.
        microbatch = flops.count(traced.jaxpr)
        shared = flops.count(self._trace(base, layout, self.shape(layout.microbatches, prompt=LENGTH // 2)).jaxpr)
        total = microbatch.total * layout.microbatches
        found: dict[str, Any] = {
            "keep": layout.keep,
            "pairs_per_chip": PAIRS // self.devices // layout.microbatches,
            "base_split": layout.split,
            "estimated_gib": layout.bytes / fit.GIB,
            "flops_per_chip": total / self.devices,
            "flops_per_pair_token": total / TOKENS,
            "flops_per_pair_token_shared_prompt": shared.total * layout.microbatches / TOKENS,
            "flops_per_pair_token_reference": self._reference(base, layout).total / TOKENS,
            "attention_share": microbatch.attention / microbatch.total,
        }
        return found | (readings(traced, self.room, microbatch.once / self.devices) if compiled else {})

    def _trace(self, base: model.BaseModel, layout: fit.Layout, shape: packing.BatchShape) -> Any:
        return aot.trace_step(base, self.adapted, _LORA, _GOAL, _UPDATES, shape, keep=layout.keep)

    def _reference(self, base: model.BaseModel, layout: fit.Layout) -> flops.Flops:
        """One forward of the base over all pairs."""
        shape = self.shape(1)
        rows = batch.describe(shape, mesh.split_first(self.mesh), reference=False)
        return flops.count(step.make_logprob_step(base).trace(None, rows).jaxpr)


def readings(traced: Any, room: int, once: float) -> dict[str, Any]:
    """Compile, and read what the compiler says."""
    began = time.monotonic()
    try:
        compiled = aot.compile_traced(traced)
    except aot.TooLarge as refusal:
        return {"refused": str(refusal), "fits": False, "compile_seconds": time.monotonic() - began}
    footprint = compiled.footprint
    counted = compiled.executable.cost_analysis()["flops"]
    return {
        "compile_seconds": time.monotonic() - began,
        "sum_gib": footprint.total / fit.GIB,
        "peak_gib": footprint.peak / fit.GIB,
        "arguments_gib": footprint.arguments / fit.GIB,
        "usable_gib": room / fit.GIB,
        "fits": footprint.larger <= room,
        "kernels": sorted(compiled.kernels),
        "splash": any(name.startswith("splash") for name in compiled.kernels),
        "flops_once_against_compiler": once / counted,
    }


_LORA = LoraConfig(r=RANK, exclude_modules=["lm_head"])
_GOAL = Objective(LossType.SIGMOID, 0.1)
_UPDATES = Optimizer(OptimizerConfig(), 1000)

if __name__ == "__main__":
    main()
