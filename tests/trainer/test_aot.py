"""What the compiled train step holds, for a CPU and for TPUs that are not there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from transformers import LlamaConfig

from benchmarks.aot import flops
from lora_dpo_api.config_file import LoraConfig, LossType, OptimizerConfig
from lora_dpo_trainer import aot, lora, mesh, model
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.remat import Remat

VOCAB, EMBED, INNER, KEYS = 48_000, 384, 640, 128
SIDE = 1024
LORA = LoraConfig(r=8)


def traced(devices: Any, keep: Remat, *, split: bool, microbatches: int = 2) -> tuple[model.BaseModel, Any]:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=EMBED,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=128,
    )
    base = model.describe(config, "tiny", devices, jnp.dtype(jnp.bfloat16), split=split)
    shape = BatchShape(devices.devices.size * microbatches, 2 * SIDE, 2 * SIDE, 1, ((2, SIDE),))
    goal, updates = Objective(LossType.SIGMOID, 0.1), Optimizer(OptimizerConfig(), 100)
    return base, aot.trace_step(base, lora.resolve(base.linears, LORA), LORA, goal, updates, shape, keep=keep)


def products(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The result's shape of every matrix product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for part in flops.inner(equation):
            yield from products(part)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1."""
    return tuple(size for size in shape if size > 1)


@pytest.fixture(scope="module")
def on_cpu() -> tuple[model.BaseModel, Any]:
    return traced(mesh.make(jax.devices()[:1]), Remat.NONE, split=False)


@pytest.fixture(scope="module")
def compiled_for_cpu(on_cpu: tuple[model.BaseModel, Any]) -> aot.CompiledStep:
    return aot.compile_traced(on_cpu[1])


@pytest.fixture(scope="module")
def compiled_for_tpus() -> tuple[model.BaseModel, aot.CompiledStep]:
    base, trace = traced(aot.topology_mesh("v5e:2x2"), Remat.PRODUCTS, split=True)
    return base, aot.compile_traced(trace)


def test_logits_never_exist_whole(compiled_for_cpu: aot.CompiledStep) -> None:
    logits = 2 * SIDE * VOCAB
    assert aot.largest_buffer(compiled_for_cpu.executable.as_text()) < logits / 4
    assert compiled_for_cpu.footprint.temporaries < 4 * logits


def test_frozen_weights_get_no_gradient(on_cpu: tuple[model.BaseModel, Any]) -> None:
    frozen = {(INNER, EMBED), (EMBED, INNER), (VOCAB, EMBED), (EMBED, EMBED), (KEYS, EMBED)}
    made = {_flat(shape) for shape in products(on_cpu[1].jaxpr.jaxpr)}
    assert made
    assert not frozen & made


def test_gradients_are_added_up_in_place(
    on_cpu: tuple[model.BaseModel, Any], compiled_for_cpu: aot.CompiledStep
) -> None:
    gradients = 4 * lora.parameter_count(lora.resolve(on_cpu[0].linears, LORA))
    assert compiled_for_cpu.footprint.aliased >= gradients


def test_a_whole_step_updates_the_state_in_place() -> None:
    base, trace = traced(mesh.make(jax.devices()[:1]), Remat.NONE, split=False, microbatches=1)
    state = 3 * 4 * lora.parameter_count(lora.resolve(base.linears, LORA))
    assert aot.compile_traced(trace).footprint.aliased >= state


def test_tpus_attend_by_splash_kernels_in_both_directions(
    compiled_for_tpus: tuple[model.BaseModel, aot.CompiledStep],
) -> None:
    kernels = compiled_for_tpus[1].kernels
    assert any(name.startswith("splash_mha_fwd") for name in kernels), kernels
    assert any(name.startswith("splash_mha_dkv") for name in kernels), kernels


def test_tpus_hold_neither_whole_logits_nor_a_whole_base(
    compiled_for_tpus: tuple[model.BaseModel, aot.CompiledStep],
) -> None:
    base, compiled = compiled_for_tpus
    assert aot.largest_buffer(compiled.executable.as_text()) < 2 * SIDE * VOCAB
    whole = 2 * base.parameter_count
    sums_and_state = 4 * 4 * lora.parameter_count(lora.resolve(base.linears, LORA))
    assert compiled.footprint.arguments < 0.3 * whole + 1.1 * sums_and_state


def test_operations_are_counted_as_the_compiler_counts_them(
    on_cpu: tuple[model.BaseModel, Any], compiled_for_tpus: tuple[model.BaseModel, aot.CompiledStep]
) -> None:
    compiled = compiled_for_tpus[1]
    work = flops.count(compiled.jaxpr)
    assert work.once / 4 == pytest.approx(compiled.executable.cost_analysis()["flops"], rel=0.1)
    assert work.attention > 0
    assert flops.count(on_cpu[1].jaxpr).attention == 0


def test_a_scanned_product_counts_as_often_as_it_is_run() -> None:
    def program(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    work = flops.count(jax.make_jaxpr(program)(jnp.ones((8, 8))))
    assert work.products == 5 * work.once == 5 * 2 * math.prod((8, 8, 8))
