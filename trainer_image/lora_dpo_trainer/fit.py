"""How a train step is laid out so that it fits the devices' memory: pure arithmetic, before anything is loaded.

The estimate counts what is certain (weights, optimizer, what is kept for the backward pass) and bounds what the
compiler decides (one layer's working set, generously). `make aot` prints it beside the compiler's own readings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.remat import Remat

GIB = 1 << 30
USABLE_GIB = {"v4": 30.75, "v5p": 95.73, "v5e": 15.75, "v6e": 31.24, "tpu7x": 94.0}
"""What the compiler lets a program have on a chip; those of v4 and tpu7x are careful guesses."""
_KINDS = {"TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5 lite": "v5e", "TPU v5e": "v5e"} | {
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""Names that JAX gives to devices."""
_SINGLE = 4
"""Bytes of a value in float32."""
_LOGITS = 3 * (64 << 20)
_FILLED, _FILLED_WHOLE = 0.95, 0.8
"""Share of the memory that an estimate may fill, with a base that is split, and with one that is whole.

A whole base only saves traffic, which is not worth the last of the memory.
"""


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What decides about memory.

    Attributes:
        parameters: Of the base.
        ends: Parameters of embedding and output projection; tied ones count once.
        embed: Width of the model.
        inner: Width inside the MLP.
        queries: Width of all queries.
        keys: Width of all keys, the same as of all values.
        layers: Number of layers.
        adapter: Parameters of the adapter.
        rank: The adapter's.
        width: Bytes of a value of the base, and of what is computed.
    """

    parameters: int
    ends: int
    embed: int
    inner: int
    queries: int
    keys: int
    layers: int
    adapter: int
    rank: int
    width: int = 2


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is computed.

    Attributes:
        microbatches: Groups that follow one another on each device.
        keep: What is kept for the backward pass.
        split: Whether the base is split over the devices, and gathered a layer at a time.
        bytes: Estimated bytes on each device.
        fits: Whether they are there.
    """

    microbatches: int
    keep: Remat
    split: bool
    bytes: int = 0
    fits: bool = True


def usable_bytes(kind: str) -> int | None:
    """Bytes of a device that a program may have; None for devices not known here.

    Args:
        kind: JAX's `device_kind`.
    """
    return int(USABLE_GIB[_KINDS[kind]] * GIB) if kind in _KINDS else None


def choose(
    size: ModelSize, shape_of: Callable[[int], BatchShape], microbatches: list[int], devices: int, room: int
) -> Layout:
    """The layout with the least work that fits: first the least recomputation, then a base that need not be gathered.

    Args:
        size: The model's and the adapter's.
        shape_of: The largest batch shape for a number of microbatches.
        microbatches: Numbers to choose from, ascending.
        devices: Over which batch and base are split.
        room: Bytes on each device.

    Returns:
        A layout; if nothing fits, the smallest one, with `fits` false.
    """
    layouts = list(_by_work(size, shape_of, microbatches, devices))
    fitting = (layout for layout in layouts if layout.bytes <= (_FILLED if layout.split else _FILLED_WHOLE) * room)
    smallest = min(layouts, key=lambda layout: layout.bytes)
    return next(fitting, dataclasses.replace(smallest, fits=smallest.bytes <= room))


def _by_work(
    size: ModelSize, shape_of: Callable[[int], BatchShape], microbatches: list[int], devices: int
) -> Iterator[Layout]:
    for keep in (Remat.PRODUCTS, Remat.NARROW_PRODUCTS, Remat.FULL):
        for split in (False, True) if devices > 1 else (False,):
            for number in microbatches:
                needed = step_bytes(size, shape_of(number), devices, keep, split=split)
                yield Layout(number, keep, split, needed)


def step_bytes(size: ModelSize, shape: BatchShape, devices: int, keep: Remat, *, split: bool) -> int:
    """Estimated bytes that a train step takes on each device, its arguments included.

    Args:
        size: The model's and the adapter's.
        shape: Of the batch; a device computes one group at a time.
        devices: Over which batch and base are split.
        keep: What is kept for the backward pass.
        split: Whether the base is split.
    """
    base = size.width * size.parameters
    held = base // devices if split else base
    # The adapter, two moments, the gradients' sum and those of one microbatch; the factors as they are computed with.
    held += size.adapter * (5 * _SINGLE + size.width)
    layer = size.width * (size.parameters - size.ends) // size.layers
    gathered = 2 * layer + size.width * size.ends if split else 0
    cells = sum(count * length for count, length in shape.sides)
    tokens = shape.row_length
    kept = size.layers * size.width * (tokens * kept_width(size, keep) + cells * _cell_width(size, keep))
    working = size.width * (tokens * (10 * size.inner + 16 * size.embed) + cells * 6 * (size.queries + 2 * size.keys))
    projected = shape.slots * 3 * size.embed * size.width + _LOGITS
    return held + gathered + kept + max(working, projected)


def least_bytes(size: ModelSize, devices: int) -> int:
    """Bytes that a train step holds on each device whatever its layout: its part of the base, adapter and moments."""
    return size.width * size.parameters // devices + 3 * _SINGLE * size.adapter


def kept_width(size: ModelSize, keep: Remat) -> int:
    """Values that are kept of each token in each layer."""
    narrow = 2 * size.embed + size.queries + 2 * size.keys + 7 * size.rank
    match keep:
        case Remat.FULL:
            return size.embed
        case Remat.NARROW_PRODUCTS:
            return narrow
        case Remat.PRODUCTS:
            return narrow + 2 * size.inner
        case Remat.NONE:
            return narrow + 6 * size.inner + 6 * size.embed


def _cell_width(size: ModelSize, keep: Remat) -> int:
    """Values that are kept of each cell of the attention in each layer: its result."""
    return 0 if keep is Remat.FULL else size.queries
