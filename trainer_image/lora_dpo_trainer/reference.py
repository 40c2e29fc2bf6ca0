"""Reference log-probabilities, computed once and shared by every job of a sweep.

They depend on the base, the prepared pairs and the precision, and on nothing that a sweep varies; their content key
says so. A folder is written once, its manifest last; a reader recomputes a sample before it trusts the rest, for a
wrong reference ruins a run without any error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from lora_dpo_trainer import batch, errors, lora, packing, prepared, step, storage
from lora_dpo_trainer.pairs import TokenizedPair

FORMAT = 1
SAMPLE = 8
RELATIVE = {"float32": 1e-4, "bfloat16": 5e-3}
"""How far a repeated log-probability may be from the stored one; other batch shapes round differently."""

_FILE, _MANIFEST = "reference.safetensors", "manifest.json"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Runs the reference over pairs.

    Attributes:
        forward: The compiled forward.
        adapter: The reference's own adapter; None for the base alone.
        pairs_per_batch: A multiple of `groups`.
        groups: Data shards.
        place: Puts an array of a batch where the program wants it.
        collect: Brings a result to this host whole.
    """

    forward: step.LogprobStep
    adapter: lora.Adapter | None = None
    pairs_per_batch: int = 8
    groups: int = 1
    place: Callable[[np.ndarray], Any] = lambda array: array
    collect: Callable[[jax.Array], np.ndarray] = np.asarray


class Pairs(Protocol):
    """A split: pairs by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenizedPair: ...


@dataclasses.dataclass(frozen=True)
class ReferenceKey:
    """Everything that reference log-probabilities depend on.

    Attributes:
        base: Digest of the base's weights.
        pairs: Digest of the prepared pairs: rows, tokenizer, template, lengths.
        dtype: Of the computation.
        adapter: Digest of the reference's own adapter, if it has one.
    """

    base: str
    pairs: str
    dtype: str
    adapter: str | None = None

    @property
    def digest(self) -> str:
        """Name of the folder."""
        return prepared.content_key({"format": FORMAT, **dataclasses.asdict(self)})


def folder(cache_path: str, key: ReferenceKey) -> str:
    """Where the log-probabilities of a key are kept."""
    return storage.join(cache_path, "reference", key.digest)


def find(cache_path: str, key: ReferenceKey) -> dict[str, np.ndarray] | None:
    """Split name → float32 [pairs, 2]; None when there is nothing complete."""
    place = folder(cache_path, key)
    try:
        manifest = storage.read_json(storage.join(place, _MANIFEST))
        content = storage.read_bytes(storage.join(place, _FILE))
    except FileNotFoundError:
        return None
    if manifest.get("sha256") != hashlib.sha256(content).hexdigest():
        _log.warning("%s is not what its manifest says; it is computed again", place)
        return None
    return dict(load_safetensors(content))


def write(cache_path: str, key: ReferenceKey, values: Mapping[str, np.ndarray]) -> None:
    """Keep the log-probabilities of all splits.

    Raises:
        NonFinite: one is NaN or infinite; nothing is written.
    """
    for split, array in values.items():
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise errors.NonFinite(
                f"The reference log-probability of {split} pair {index} is not finite.",
                hint="Nothing is trained yet: look for weights of initialize_from_hf or reference.adapter that are not "
                "finite, or too large for trainer.mp.",
            )
    content = save_safetensors({split: np.ascontiguousarray(array, np.float32) for split, array in values.items()})
    place = folder(cache_path, key)
    storage.write_bytes(storage.join(place, _FILE), content)
    manifest = {
        "key": dataclasses.asdict(key),
        "pairs": {split: len(array) for split, array in values.items()},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    storage.write_json(storage.join(place, _MANIFEST), manifest)


def find_or_compute(
    cache_path: str,
    key: ReferenceKey,
    splits: Mapping[str, Pairs],
    scorer: Scorer,
    *,
    writer: bool = True,
    watch: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """The reference log-probabilities of all splits: from the cache when a sample agrees, else computed and kept.

    Args:
        cache_path: URL of the cache.
        key: What they depend on.
        splits: Name → pairs.
        scorer: Runs the reference; all processes of a job do, together.
        writer: Whether this process writes (one of a job does).
        watch: Called with the number of pairs of a split that are done; may raise to stop.

    Returns:
        Split name → float32 [pairs, 2].
    """
    found = find(cache_path, key)
    if found is not None and all(agrees(found.get(name), pairs, scorer, key.dtype) for name, pairs in splits.items()):
        return found
    values = {name: compute(pairs, scorer, watch=watch) for name, pairs in splits.items()}
    if writer:
        write(cache_path, key, values)
    return values


def compute(pairs: Pairs, scorer: Scorer, *, watch: Callable[[int], None] = lambda done: None) -> np.ndarray:
    """float32 [pairs, 2] of a split, in an order that wastes little."""
    return _score(pairs, np.arange(len(pairs)), scorer, watch)


def agrees(stored: np.ndarray | None, pairs: Pairs, scorer: Scorer, dtype: str) -> bool:
    """Whether stored log-probabilities are those of a sample computed now."""
    if stored is None or stored.shape != (len(pairs), 2):
        return False
    if len(pairs) == 0:
        return True
    sample = np.unique(np.linspace(0, len(pairs) - 1, SAMPLE).astype(int))
    fresh = _score(pairs, sample, scorer, lambda done: None)[sample]
    difference = np.abs(fresh - stored[sample])
    if bool((difference <= RELATIVE[dtype] * np.maximum(np.abs(fresh), 1.0)).all()):
        return True
    _log.warning("Stored reference log-probabilities are off by up to %.3g; computing them again", difference.max())
    return False


def _score(pairs: Pairs, order: np.ndarray, scorer: Scorer, watch: Callable[[int], None]) -> np.ndarray:
    """float32 [all pairs, 2], filled in for those of `order`."""
    values = np.zeros((len(pairs), 2), np.float32)
    if len(order) == 0:
        return values
    some = [pairs[int(index)] for index in order]
    lengths = packing.PairLengths.of(some)
    plan = packing.BatchPlan.make(lengths, scorer.pairs_per_batch, groups=scorer.groups)
    for number in range(plan.total_steps):
        places = plan.keys_of_step(number)
        numbered = [dataclasses.replace(some[place], key=int(place)) for place in places]
        packed = batch.build(numbered, plan.shape_of(places))
        result = scorer.collect(scorer.forward(scorer.adapter, jax.tree.map(scorer.place, packed)))
        for place, logps in batch.in_order(result, packed).items():
            values[order[place]] = logps
        watch(min((number + 1) * scorer.pairs_per_batch, len(order)))
    return values
