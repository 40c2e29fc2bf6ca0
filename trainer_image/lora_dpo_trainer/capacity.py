"""Whether a train step fits the slice that a job asks for: found in prepare, while no slice is held.

The estimate of `fit` decides where it says yes; where it says no, the TPU's own compiler is asked, which needs no TPU.
Both want JAX, and the compiler gigabytes of memory, so that they run in a process of their own: `python -m
lora_dpo_trainer.capacity`, a question on its standard input, the answer on its standard output, each one line of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

from lora_dpo_api import config_file
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import Environment
from lora_dpo_trainer import errors, mixture, prepared
from lora_dpo_trainer.packing import PairLengths

_log = logging.getLogger(__name__)


def check(config: TrainerConfig, digest: str, total_steps: int) -> None:
    """Do nothing where the job asks for no TPU slice, or the step fits, or that cannot be told.

    Args:
        config: The configuration.
        digest: Of the prepared pairs.
        total_steps: Of the run.

    Raises:
        OutOfDeviceMemory: the step fits the slice in no layout.
    """
    topology, slices = os.environ.get(Environment.TPU), int(os.environ.get(Environment.SLICES, "1"))
    if not topology:
        return
    question = {
        "config": config_file.dumps(config),
        "digest": digest,
        "total_steps": total_steps,
        "topology": topology,
        "slices": slices,
    }
    done = subprocess.run(
        [sys.executable, "-m", "lora_dpo_trainer.capacity"],
        input=json.dumps(question), capture_output=True, text=True, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
    else:  # perhaps for want of memory on this node, which says nothing about the slice
        answer = {"unknown": done.stderr.strip()[-500:] or f"exit code {done.returncode}"}
    if "unknown" in answer:
        _log.warning("Whether the train step fits %s could not be told: %s", topology, answer["unknown"])
    elif answer["why_not"] is not None:
        raise errors.OutOfDeviceMemory(answer["why_not"])


def why_not(config: TrainerConfig, lengths: PairLengths, total_steps: int, topology: str, slices: int) -> str | None:
    """Why a train step fits no chip of a slice; None where it fits.

    Args:
        config: The configuration.
        lengths: Of all training pairs.
        total_steps: Of the run.
        topology: As libtpu calls it, such as `v5e:2x4`.
        slices: So many of them, over which the batch is split.

    Raises:
        ConfigError: libtpu knows no such topology.
    """
    import jax.numpy as jnp

    from lora_dpo_trainer import aot, engine, fit, layout, lora, model, optimizer

    devices = aot.topology_mesh(topology)
    part = config.trainer.model_copy(update={"train_batch_size": config.trainer.train_batch_size // slices})
    config = config.model_copy(update={"trainer": part})
    chips, room = devices.devices.size, fit.usable_bytes(devices.devices.flat[0].device_kind)
    dtype = layout.dtype(config, jnp.dtype(jnp.bfloat16))
    hf_config = model.read_config(config.initialize_from_hf, config.revision)
    base = model.describe(hf_config, config.initialize_from_hf, devices, dtype, split=True)
    adapted = lora.resolve(base.linears, config.lora)
    least = fit.least_bytes(model.size_of(base, adapted, dtype.itemsize), chips)
    slice_text = f"{topology.replace(':', ' ')}, {chips} chips"
    if room is None:
        return None
    if least > room:
        return (
            f"The model is too large for the slice ({slice_text}): its part of the base with adapter and moments takes "
            f"{least / fit.GIB:.1f} GiB of each chip, of which {room / fit.GIB:.1f} GiB can be used."
        )
    chosen = layout.choose(config, lengths, total_steps, devices, dtype)
    if chosen.fits:
        return None
    base = base if chosen.split else model.describe(hf_config, config.initialize_from_hf, devices, dtype, split=False)
    shape = layout.plan(config, lengths, total_steps, devices, chosen.microbatches).shapes[-1]
    updates = optimizer.Optimizer(config.optimizer, total_steps)
    traced = aot.trace_step(base, adapted, config.lora, engine.goal_of(config), updates, shape, keep=chosen.keep)
    try:
        aot.compile_traced(traced)
    except aot.TooLarge as refused:
        return (
            f"The train step does not fit the slice ({slice_text}), not even a pair at a time on each chip and with "
            f"everything computed again: the TPU's compiler would need {refused} bytes of each."
        )
    return None


def main() -> None:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.read())
    config = config_file.load(question["config"]).config
    pairs = prepared.load(config.cache_path, question["digest"]).train
    keys = mixture.keys_of_epoch(pairs.component, tuple(config.data.components), config.data.train_weights)
    lengths, topology = pairs.pair_lengths(keys), question["topology"]
    try:
        answer = {"why_not": why_not(config, lengths, question["total_steps"], topology, question["slices"])}
    except errors.ConfigError as error:  # libtpu does not know every slice that there is
        answer = {"unknown": error.message}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
