"""Resumable training state: atomic, exact, written beside the step.

A checkpoint is a folder `checkpoints/step-00000100/` with every array of the state in one safetensors file, and
`manifest.json` written last: without it the folder is incomplete and is ignored. The order of the data and all random
numbers are functions of the seed and the step, so step and arrays are the whole state, and a resumed run is bit for
bit the run that was never interrupted.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from lora_dpo_api import protocol
from lora_dpo_trainer import errors, identity, storage

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.safetensors"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8})")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        step: Steps completed.
        state: The state, placed like the one it was restored into.
        notes: The small values kept with it, such as the best evaluation.
    """

    step: int
    state: Any
    notes: Mapping[str, Any]


def name_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def to_host(state: Any) -> dict[str, np.ndarray]:
    """Every array of a pytree as a host copy, by its path in the tree.

    Every process must call it when an array is sharded over processes, for it is gathered then.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_key(path): _host_copy(leaf) for path, leaf in leaves}


def place(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """Put host arrays where the leaves of `like` lie, with their shapes, types and shardings.

    Raises:
        OutputOccupied: a leaf is missing or has another shape: the checkpoint is of another adapter.
    """

    def leaf(path: Any, template: Any) -> Any:
        key = _key(path)
        if key not in arrays:
            raise errors.OutputOccupied(f"The checkpoint has no {key}: it is of another adapter or optimizer.")
        array, plain = arrays[key], _plain(template)
        if array.shape != plain.shape or array.dtype != plain.dtype:
            raise errors.OutputOccupied(
                f"{key} is {array.dtype}{list(array.shape)} in the checkpoint and "
                f"{plain.dtype}{list(plain.shape)} here."
            )
        if not isinstance(plain, jax.Array):
            return array
        placed = jax.make_array_from_callback(array.shape, plain.sharding, lambda index: array[index])
        return jax.random.wrap_key_data(placed) if _is_key(template) else placed

    return jax.tree_util.tree_map_with_path(leaf, like)


def newest(output_path: str) -> int | None:
    """The step of the newest complete checkpoint."""
    steps = [step for step in _steps(output_path) if storage.exists(_url(output_path, step, MANIFEST))]
    return max(steps, default=None)


def restore(output_path: str, like: Any, owner: identity.RunIdentity) -> Restored | None:
    """Read the newest complete checkpoint into a state like `like`.

    Raises:
        OutputOccupied: it belongs to another run; the message names the difference.
    """
    for step in sorted(_steps(output_path), reverse=True):
        try:
            manifest = storage.read_json(_url(output_path, step, MANIFEST))
            _check_owner(manifest, owner)
            with tempfile.TemporaryDirectory() as scratch:
                path = storage.download(_url(output_path, step, STATE), Path(scratch) / STATE)
                if _sha256(path) != manifest["sha256"]:
                    _log.warning("Checkpoint %s is damaged; trying an older one", name_of(step))
                    continue
                arrays = load_file(path)
        except FileNotFoundError:
            continue
        return Restored(step, place(arrays, like), manifest["notes"])
    return None


class Writer:
    """Writes checkpoints from a thread of its own; only rank 0's writes anything.

    Args:
        output_path: URL of the output.
        owner: The run.
        keep: How many complete checkpoints stay.
        leads: Whether this process writes.
        on_saved: Called with each complete checkpoint, from the writing thread.
    """

    def __init__(
        self,
        output_path: str,
        owner: identity.RunIdentity,
        *,
        keep: int,
        leads: bool,
        on_saved: Callable[[protocol.Checkpoint], None],
    ) -> None:
        self._output = output_path
        self._owner = owner
        self._keep = keep
        self._leads = leads
        self._on_saved = on_saved
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Copy the state to the host and start writing it; waits for the one before."""
        arrays = to_host(state)
        self.wait()
        if self._leads:
            self._pending = self._pool.submit(self._write, step, arrays, dict(notes))

    def wait(self) -> None:
        """Wait until the last save is complete; raises what went wrong in it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        folder = storage.join(self._output, FOLDER, name_of(step))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / STATE
            save_file(dict(arrays), path)
            digest = _sha256(path)
            storage.upload(path, storage.join(folder, STATE))
        manifest = {
            "format": FORMAT,
            "step": step,
            "run_id": self._owner.run_id,
            "config": self._owner.settings_digest,
            "data": self._owner.data,
            "base": self._owner.base,
            "sha256": digest,
            "notes": dict(notes),
        }
        storage.write_json(storage.join(folder, MANIFEST), manifest)
        self._on_saved(protocol.Checkpoint(step=step, time=protocol.utc_now(), path=folder[:1024]))
        self._prune()

    def _prune(self) -> None:
        for step in sorted(_steps(self._output))[: -self._keep]:
            # The manifest goes first, so that a crash in between leaves no folder that looks complete.
            storage.delete(_url(self._output, step, MANIFEST))
            storage.delete(storage.join(self._output, FOLDER, name_of(step)))


def _check_owner(manifest: Mapping[str, Any], owner: identity.RunIdentity) -> None:
    for field, mine, what in (
        ("base", owner.base, "initialize_from_hf"),
        ("data", owner.data, "data"),
        ("config", owner.settings_digest, "the configuration"),
    ):
        if manifest[field] != mine:
            raise errors.OutputOccupied(f"The checkpoint of step {manifest['step']} differs in {what}.")


def _steps(output_path: str) -> list[int]:
    names = storage.children(storage.join(output_path, FOLDER))
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def _url(output_path: str, step: int, file: str) -> str:
    return storage.join(output_path, FOLDER, name_of(step), file)


def _key(path: Any) -> str:
    return str(jax.tree_util.keystr(path))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _plain(leaf: Any) -> Any:
    """The leaf as an array that can be stored: a random key's data, else itself."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _host_copy(leaf: Any) -> np.ndarray:
    leaf = _plain(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.array(leaf.addressable_data(0))
    return np.array(leaf)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
