"""Upstream Levanter's own LoRA-DPO train step at its defaults, compiled for a slice. Prints one line of JSON.

The trainer's step, the loss, the adapter and the kernels are upstream's. What asks JAX which devices there are is
answered from the topology, for no TPU is attached; what only runs on one (tuning by trial) is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from typing import Any

import equinox as eqx
import haliax as hax
import jax
import jax.numpy as jnp
import jmp
import levanter.kernels.pallas.fused_cross_entropy_loss.api as cross_entropy
import levanter.kernels.pallas.fused_cross_entropy_loss.tuned_block_sizes as block_sizes
from jax.sharding import NamedSharding, PartitionSpec
from levanter.adaptor import LoraAdaptorConfig
from levanter.data.text.preference import DpoExample
from levanter.dpo import dpo_loss
from levanter.layers.attention import AttentionBackend, AttentionMask
from levanter.layers.rotary import Llama3RotaryEmbeddingsConfig
from levanter.main.train_dpo import AdapterBaseReferenceModelProvider
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample
from levanter.optim.config import AdamConfig
from levanter.tracker import NoopConfig
from levanter.trainer import Trainer, TrainerConfig
from levanter.trainer_state import TrainerState
from levanter.utils.mesh import create_mesh_from_axis_specs

from benchmarks.aot import flops
from benchmarks.aot.our_step import TOKENS, readings
from benchmarks.aot.workload import LENGTH, PAIRS, RANK, SLICES, Llama
from lora_dpo_trainer import aot, fit


def main() -> None:
    """Trace and compile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slice", required=True, choices=SLICES)
    parser.add_argument("--layers", type=int, default=Llama.layers)
    parser.add_argument("--trace-only", action="store_true", help="count operations, compile nothing")
    options = parser.parse_args()
    devices = list(aot.topology_mesh(SLICES[options.slice]).devices.flat)
    _pose_as(devices)
    traced = _trace(devices, Llama(options.layers))
    work = flops.count(traced.jaxpr)
    found: dict[str, Any] = {
        "flops_per_chip": work.total / len(devices),
        "flops_per_pair_token": work.total / TOKENS,
        "attention_share": work.attention / work.total,
    }
    room = fit.usable_bytes(devices[0].device_kind)
    assert room is not None
    if not options.trace_only:
        found |= readings(traced, room, work.once / len(devices))
    print(json.dumps(found))


def _pose_as(devices: list[Any]) -> None:
    """Answer for the topology's devices where upstream asks JAX for its own."""
    block_sizes._normalized_device_kind = lambda kind=None: devices[0].device_kind.lower()
    # Plans are compared between the processes of several hosts: here is one.
    cross_entropy._autotune_allgather = lambda plan, process_ids: [plan]
    jax.device_count = lambda *_, **__: len(devices)
    # Constants that are computed while tracing would be computed on the topology's devices.
    jax.ensure_compile_time_eval = contextlib.nullcontext


def _trace(devices: list[Any], sizes: Llama) -> Any:
    class OnTopology(TrainerConfig):  # type: ignore[misc]
        num_slices = 1

        @property
        def device_mesh(self) -> Any:
            ici, dcn = self.mesh.axis_shapes(len(devices), 1)
            return create_mesh_from_axis_specs(ici_axes=ici, dcn_axes=dcn, devices=devices)

    config = OnTopology(
        id="aot",
        tracker=NoopConfig(),
        mp=jmp.get_policy("p=f32,c=bfloat16"),
        train_batch_size=PAIRS,
        require_accelerator=False,
    )
    config._validate_and_set_defaults()
    adaptor = LoraAdaptorConfig(r=RANK, alpha=float(RANK))
    reference = AdapterBaseReferenceModelProvider(adaptor)

    def loss(model: Any, example: Any, *, key: Any = None) -> Any:
        """What `levanter.main.train_dpo` nests in its main function."""
        chosen, rejected = jax.random.split(key)
        return dpo_loss(model, reference.model_for(model), example, beta=0.1, key_chosen=chosen, key_rejected=rejected)

    llama = LlamaConfig(
        max_seq_len=LENGTH,
        hidden_dim=sizes.embed,
        intermediate_dim=sizes.inner,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        rope=Llama3RotaryEmbeddingsConfig(),
        attn_backend=AttentionBackend.SPLASH,
    )
    optimizer = AdamConfig(learning_rate=5e-6, weight_decay=0.0).build(1000)
    trainer = Trainer(config, optimizer, loss, add_default_hooks=False)
    with trainer:
        mesh = config.device_mesh

        def fresh_state() -> TrainerState:
            keys = jax.random.split(jax.random.key(0), 3)
            bare = llama.build(hax.Axis("vocab", sizes.vocab), key=keys[0])
            model = adaptor.apply(bare, key=keys[1])
            state = TrainerState.init(
                optimizer, model, key=keys[2], is_trainable=adaptor.trainable_filter(model), mp=config.mp
            )
            # `initialize_from_hf` puts a model in float32 there.
            return dataclasses.replace(state, model=model)

        def batch() -> DpoExample:
            def side() -> LmExample:
                axes = (config.TrainBatch, llama.max_Pos)
                tokens, weights = hax.zeros(axes, dtype=jnp.int32), hax.ones(axes, dtype=jnp.float32)
                mask = AttentionMask.causal().with_segment_ids(hax.zeros(axes, dtype=jnp.int32))
                return LmExample(tokens=tokens, loss_weight=weights, attn_mask=mask)

            return DpoExample(chosen=side(), rejected=side())

        state = _placed(eqx.filter_eval_shape(fresh_state), config.parameter_axis_mapping, mesh)
        examples = _placed(eqx.filter_eval_shape(batch), config.compute_axis_mapping, mesh)
        arrays, static = eqx.partition((state, examples), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def step(state_arrays: Any, batch_arrays: Any) -> Any:
            state, examples = eqx.combine((state_arrays, batch_arrays), static)
            with hax.axis_mapping(config.parameter_axis_mapping):
                result = trainer._train_step(state, (examples,), {}, _no_hooks=True)
            return eqx.filter((result.new_state, result.loss, result.loss_metrics), eqx.is_array)

        return jax.jit(step, donate_argnums=(0,)).trace(*arrays)


def _placed(tree: Any, mapping: Any, mesh: Any) -> Any:
    """Shapes, where upstream's mapping of axes puts them."""

    def place(leaf: Any) -> Any:
        if isinstance(leaf, hax.NamedArray):
            if not hasattr(leaf.array, "shape"):
                return leaf
            spec = hax.partitioning.pspec_for_axis(leaf.axes, mapping)
            array = jax.ShapeDtypeStruct(leaf.array.shape, leaf.array.dtype, sharding=NamedSharding(mesh, spec))
            return dataclasses.replace(leaf, array=array)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
        return leaf

    return jax.tree.map(place, tree, is_leaf=lambda node: isinstance(node, hax.NamedArray))


if __name__ == "__main__":
    main()
