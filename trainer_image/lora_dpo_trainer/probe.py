"""Probe rows: a few pairs with what the trained policy says about them.

The export phase computes the same from what was written, in a fresh process, and compares.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lora_dpo_trainer import storage
from lora_dpo_trainer.pairs import TokenizedPair

PAIRS = 8
TENSORS = "probe.safetensors"
ABOUT = "probe.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Probe rows.

    Attributes:
        pairs: The rows.
        policy: float32 [pairs, 2], log-probabilities of chosen and rejected under the trained policy.
        reference: float32 [pairs, 2], the same without the adapter.
        compute_dtype: The type that they were computed in.
        adapter_digest: Hex digest of the adapter's weights as they were written.
    """

    pairs: tuple[TokenizedPair, ...]
    policy: np.ndarray
    reference: np.ndarray
    compute_dtype: str
    adapter_digest: str


def write(output_path: str, probe: Probe) -> None:
    """Write the rows and what is known about them."""
    sides = [
        (ids, mask)
        for pair in probe.pairs
        for ids, mask in ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask))
    ]
    arrays = {
        "ids": np.concatenate([ids for ids, _ in sides]),
        "mask": np.concatenate([mask for _, mask in sides]).astype(np.uint8),
        "lengths": np.array([len(ids) for ids, _ in sides], np.int32),
        "policy": probe.policy.astype(np.float32),
        "reference": probe.reference.astype(np.float32),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / TENSORS
        save_file(arrays, path)
        storage.upload(path, storage.join(output_path, TENSORS))
    about = {"pairs": len(probe.pairs), "compute_dtype": probe.compute_dtype, "adapter": probe.adapter_digest}
    storage.write_json(storage.join(output_path, ABOUT), about)


def read(output_path: str) -> Probe:
    """Read them back.

    Raises:
        FileNotFoundError: the train phase has not written them.
    """
    about = storage.read_json(storage.join(output_path, ABOUT))
    with tempfile.TemporaryDirectory() as scratch:
        arrays = load_file(storage.download(storage.join(output_path, TENSORS), Path(scratch) / TENSORS))
    bounds = np.concatenate([[0], np.cumsum(arrays["lengths"])])
    sides = [
        (arrays["ids"][start:end], arrays["mask"][start:end].astype(np.bool_))
        for start, end in itertools.pairwise(bounds)
    ]
    return Probe(
        _pairs(sides), arrays["policy"], arrays["reference"], str(about["compute_dtype"]), str(about["adapter"])
    )


def _pairs(sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[TokenizedPair, ...]:
    return tuple(
        TokenizedPair(index, *chosen, *rejected)
        for index, (chosen, rejected) in enumerate(zip(sides[::2], sides[1::2], strict=True))
    )
