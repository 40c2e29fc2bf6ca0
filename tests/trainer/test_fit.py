from __future__ import annotations

import pytest

from lora_dpo_trainer import fit
from lora_dpo_trainer.fit import GIB, ModelSize
from lora_dpo_trainer.packing import BatchShape
from lora_dpo_trainer.remat import Remat

LLAMA_8B = ModelSize(
    parameters=8_030_261_248,
    ends=2 * 128_256 * 4096,
    embed=4096,
    inner=14336,
    queries=4096,
    keys=1024,
    layers=32,
    adapter=167_772_160,
    rank=64,
)
PAIRS, LENGTH = 64, 4096


def full_pairs(devices: int, microbatches: int) -> BatchShape:
    pairs = PAIRS // devices // microbatches
    tokens = 2 * pairs * LENGTH
    return BatchShape(devices * microbatches, tokens, tokens, pairs, ((2 * pairs, LENGTH),))


def chosen(slice_devices: int, usable: float) -> fit.Layout:
    share = PAIRS // slice_devices
    numbers = [number for number in range(1, share + 1) if share % number == 0]
    return fit.choose(
        LLAMA_8B, lambda number: full_pairs(slice_devices, number), numbers, slice_devices, int(usable * GIB)
    )


@pytest.mark.parametrize(("kind", "devices"), [("TPU v5", 4), ("TPU v6 lite", 8), ("TPU v5 lite", 16)])
def test_an_8b_model_fits_the_slices_that_people_have(kind: str, devices: int) -> None:
    room = fit.usable_bytes(kind)
    assert room is not None
    layout = chosen(devices, room / GIB)
    assert layout.fits
    assert layout.bytes <= 0.95 * room


def test_with_more_memory_less_is_computed_again() -> None:
    kept = [chosen(16, gib).keep for gib in (15.75, 31.24, 200)]
    order = list(Remat)
    assert sorted(kept, key=order.index, reverse=True) == kept
    assert kept[-1] is Remat.PRODUCTS
    assert len(set(kept)) > 1


def test_a_base_that_fits_whole_is_not_gathered() -> None:
    assert not chosen(4, 95.73).split
    assert chosen(8, 31.24).split


def test_microbatches_are_as_large_as_memory_allows() -> None:
    few, many = chosen(4, 200), chosen(4, 95.73)
    assert few.microbatches < many.microbatches


def test_what_fits_nowhere_is_said_to() -> None:
    layout = chosen(4, 4)
    assert not layout.fits
    assert (layout.keep, layout.split) == (Remat.FULL, True)


def test_devices_of_unknown_memory_are_not_guessed_about() -> None:
    assert fit.usable_bytes("cpu") is None
