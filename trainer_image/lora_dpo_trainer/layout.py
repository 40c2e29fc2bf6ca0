"""How the steps of a run are laid out on its devices: microbatches, what is kept, shapes, precision."""

from __future__ import annotations

import functools
import logging

import jax.numpy as jnp
from jax.sharding import Mesh

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import errors, fit, lora, mesh, model, packing, remat, splash

GROUP_TOKENS = 16_384
"""Where a device's memory is not known, a microbatch holds at most about so many tokens on it."""

_log = logging.getLogger(__name__)


def choose(
    config: TrainerConfig, lengths: packing.PairLengths, total_steps: int, devices: Mesh, dtype: jnp.dtype
) -> fit.Layout:
    """How a step is computed; where memory is not known, in microbatches of bounded length, the wide products repeated.

    On a CPU elementwise results cost more to keep than to repeat, and wide products little less; it halves the memory.

    Args:
        config: The configuration.
        lengths: Of all training pairs.
        total_steps: Of the run.
        devices: A mesh, or that of a topology that is not there.
        dtype: Of the base.

    Raises:
        ConfigError: the batch cannot be split over the devices.
    """
    shards, pairs = mesh.data_shards(devices), config.trainer.train_batch_size
    if pairs % shards:
        raise errors.ConfigError(
            f"trainer.train_batch_size {pairs} cannot be split evenly over {shards} devices.",
            hint=f"Set it to a multiple of {shards}.",
        )
    numbers = [n for n in range(1, pairs // shards + 1) if (pairs // shards) % n == 0]
    room = fit.usable_bytes(devices.devices.flat[0].device_kind)
    if room is None:
        wanted = int(float(lengths.encoded.mean()) * pairs / shards // GROUP_TOKENS) + 1
        return fit.Layout(
            next((n for n in numbers if n >= wanted), numbers[-1]), remat.Remat.NARROW_PRODUCTS, split=False
        )

    @functools.cache
    def shape(microbatches: int) -> packing.BatchShape:
        return plan(config, lengths, total_steps, devices, microbatches).shapes[-1]

    described = model.describe(model.read_config(config.initialize_from_hf, config.revision), "", devices)
    size = model.size_of(described, lora.resolve(described.linears, config.lora), dtype.itemsize)
    layout = fit.choose(size, shape, numbers, shards, room)
    _log.info(
        "Layout: %d microbatches, keeping %s, base %s; about %.1f of %.1f GiB on each of %d devices",
        layout.microbatches,
        layout.keep,
        "split" if layout.split else "whole",
        layout.bytes / fit.GIB,
        room / fit.GIB,
        shards,
    )
    if not layout.fits:
        _log.warning("The train step may not fit: take a larger slice, a smaller lora.r, or shorter pairs.")
    return layout


def plan(
    config: TrainerConfig, lengths: packing.PairLengths, total_steps: int, devices: Mesh, microbatches: int
) -> packing.BatchPlan:
    """Order and shapes of the steps; arguments as of `choose`."""
    return packing.BatchPlan.make(
        lengths,
        config.trainer.train_batch_size,
        total_steps=total_steps,
        seed=config.trainer.seed,
        shuffle=config.data.shuffle,
        groups=mesh.data_shards(devices) * microbatches,
        row_multiple=splash.LANES if devices.devices.flat[0].platform == "tpu" else packing.ROW_MULTIPLE,
    )


def dtype(config: TrainerConfig, default: jnp.dtype | None = None) -> jnp.dtype:
    """Of the base, and of what is computed, where the configuration asks for no float32: `model.default_dtype()`."""
    wants_float32 = any(part.strip() in ("c=f32", "c=float32") for part in config.trainer.mp.split(","))
    return jnp.dtype(jnp.float32) if wants_float32 else default or model.default_dtype()
