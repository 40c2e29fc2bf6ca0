"""The train step compiled ahead of time, for TPUs that need not be there: what it computes, and the memory it takes.

The compiler of libtpu works from the description of a topology. Nothing is run, so there are no times here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from lora_dpo_trainer import batch, errors, lora, mesh, model, remat, step
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.packing import BatchShape

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # only compiling needs no lock on the chips
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_REFUSED = re.compile(r"(?:Used |\()([\d.]+[KMGT]?)(?: of |\) exceeds available HBM \()([\d.]+[KMGT]?)", re.IGNORECASE)
"""The compiler's words for a program that is too large, two forms of them."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of device memory that a compiled program takes on each chip.

    The compiler gives two readings that may differ by a third. Which of them a chip follows is not documented.

    Attributes:
        arguments: The base, the adapter, the optimizer and the batch.
        temporaries: What it needs while it runs.
        outputs: Results.
        aliased: Results that take the place of donated arguments.
        peak: The most that is held at once, by the compiler's own simulation.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    peak: int

    @property
    def total(self) -> int:
        """Everything added up: the careful reading."""
        return self.arguments + self.temporaries + self.outputs - self.aliased

    @property
    def larger(self) -> int:
        """The larger of both readings."""
        return max(self.total, self.peak)


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledStep:
    """A compiled program.

    Attributes:
        jaxpr: What was traced, closed, whole over all devices.
        executable: JAX's compiled program.
    """

    jaxpr: Any
    executable: Any

    @property
    def footprint(self) -> Footprint:
        """The memory of one chip."""
        read = self.executable.memory_analysis()
        return Footprint(
            read.argument_size_in_bytes,
            read.temp_size_in_bytes,
            read.output_size_in_bytes,
            read.alias_size_in_bytes,
            read.peak_memory_in_bytes,
        )

    @property
    def kernels(self) -> frozenset[str]:
        """Names of the Pallas kernels in it, such as `splash_mha_fwd_residuals`."""
        return kernel_names(self.executable.as_text())


def topology_mesh(name: str) -> Mesh:
    """The devices of a TPU topology that need not be there.

    Args:
        name: Such as `v5p:2x2x1`, `v6e:2x4`, `v5e:4x4`.

    Raises:
        ConfigError: libtpu knows no such topology.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise errors.ConfigError(f"libtpu knows no topology {name}: {str(error)[:200]}.") from error
    return mesh.make(devices)


def describe_state(plan: lora.LoraPlan, config: Any, updates: Optimizer, devices: Mesh) -> step.TrainState:
    """A train state that is not there, whole on every device."""
    everywhere = mesh.replicated(devices)

    def make() -> step.TrainState:
        return step.init_state(lora.init(plan, config, jax.random.key(0)), updates, 0)

    shapes = jax.eval_shape(make)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    return cast(step.TrainState, described)


def trace_step(
    base: model.BaseModel,
    adapted: lora.LoraPlan,
    config: Any,
    goal: Objective,
    updates: Optimizer,
    shape: BatchShape,
    *,
    keep: remat.Remat,
    reference: bool = True,
) -> Any:
    """Trace what the trainer runs for each microbatch: the whole step where there is one, else its gradients.

    Args:
        base: From `model.describe`, or a real one.
        adapted: What is adapted.
        config: The adapter's settings.
        goal: What is minimised.
        updates: The optimizer.
        shape: Of the batch; its groups are devices x microbatches.
        keep: What is kept for the backward pass.
        reference: Whether the reference's log-probabilities are cached.
    """
    assert base.mesh is not None
    shards = mesh.data_shards(base.mesh)
    kept = dataclasses.replace(base, module=remat.apply(base.module, keep))
    program = step.make_train_step(kept, adapted, goal, updates, microbatches=shape.groups // shards)
    rows = batch.describe(shape, mesh.split_first(base.mesh), reference=reference)
    return program.trace(describe_state(adapted, config, updates, base.mesh), rows)


def compile_traced(traced: Any) -> CompiledStep:
    """Compile what was traced.

    Raises:
        TooLarge: the compiler finds that it does not fit the devices' memory.
    """
    try:
        return CompiledStep(traced.jaxpr, traced.lower().compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = _REFUSED.search(str(error))
        raise TooLarge(f"{found[1]} of {found[2]}" if found else str(error)[:300]) from error


class TooLarge(Exception):  # noqa: N818 -- a finding, not a failure
    """The compiler refused a program that does not fit into the devices' memory."""


def kernel_names(hlo: str) -> frozenset[str]:
    """Names of the Pallas kernels in a compiled TPU program."""
    calls = (line for line in hlo.splitlines() if 'custom_call_target="tpu_custom_call"' in line)
    names = (re.match(r"\s*(?:ROOT )?%([\w-]+)", call) for call in calls)
    return frozenset(found.group(1) for found in names if found)


def largest_buffer(hlo: str) -> int:
    """Elements of the largest array in a compiled program's text."""
    shapes = re.findall(r"(?:f32|bf16|f16|s32|u32|pred|s8|u8)\[([\d,]+)\]", hlo)
    return max((int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes), default=0)
