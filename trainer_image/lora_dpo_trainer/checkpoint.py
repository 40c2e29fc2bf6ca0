"""Resumable training state: atomic, exact, written beside the step.

A checkpoint is a folder `checkpoints/step-00000100/` with every array of the state in one safetensors file, and
`manifest.json` written last: without it the folder is incomplete and is ignored. The manifest says whose the state is
(digests of base and data, every setting), which file holds it, and what that file's digest is; a file is named by its
content, so that a checkpoint written again never mixes with what was there. The order of the data and all random
numbers are functions of the seed and the step, so step and arrays are the whole state, and a resumed run is bit for
bit the run that was never interrupted.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
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
from lora_dpo_trainer import errors, identity, mesh, storage

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
FORMAT = 3
DOWNLOADS = 3
"""A file that is not what its manifest says is read again before it counts as damaged."""

BEST_STEP = "best_step"
"""The note that names the step with the best evaluation: its checkpoint stays."""

_NAME = re.compile(r"step-(\d{8})")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        saved: Which checkpoint it was, as it was announced when it was complete.
        state: The state, placed like the one it was restored into.
        notes: The small values kept with it, such as the best evaluation.
    """

    saved: protocol.Checkpoint
    state: Any
    notes: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps completed."""
        return self.saved.step


def name_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def to_host(state: Any) -> dict[str, np.ndarray]:
    """Every array of a pytree as a host copy, by its path in the tree.

    Every process must call it when an array is sharded over processes, for it is gathered then.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_key(path): _host_copy(leaf) for path, leaf in leaves}


def digest(state: Any) -> str:
    """SHA-256 over every array of a pytree: equal on all hosts, and in every run that makes the same."""
    total = hashlib.sha256()
    for key, array in sorted(to_host(state).items()):
        total.update(f"{key} {array.dtype} {array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


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
        placed = mesh.owned(jax.make_array_from_callback(array.shape, plain.sharding, lambda index: array[index]))
        return jax.random.wrap_key_data(placed) if _is_key(template) else placed

    return jax.tree_util.tree_map_with_path(leaf, like)


def newest(output_path: str) -> int | None:
    """The step of the newest complete checkpoint."""
    return max(_complete(output_path), default=None)


def restore(output_path: str, like: Any, owner: identity.RunIdentity) -> Restored | None:
    """Read the newest checkpoint that is complete and whole into a state like `like`.

    Raises:
        OutputOccupied: it belongs to another run; the message names the difference.
    """
    steps = sorted(_steps(output_path), reverse=True)
    for step in steps:
        manifest = _manifest(output_path, step)
        if manifest is None:
            continue
        _check_owner(_url(output_path, step), manifest, owner)
        arrays = _arrays(_url(output_path, step, manifest["file"]), manifest["sha256"])
        if arrays is not None:
            time = datetime.datetime.fromisoformat(manifest["time"])
            return Restored(_announced(output_path, step, time), place(arrays, like), manifest["notes"])
        _log.warning("The checkpoint %s is damaged; trying an older one", _url(output_path, step))
    if steps:
        _log.warning("None of the %d checkpoints in %s is complete: starting from the first step", len(steps), FOLDER)
    return None


def _manifest(output_path: str, step: int) -> dict[str, Any] | None:
    """None when the checkpoint is incomplete, or its manifest is none."""
    url = _url(output_path, step, MANIFEST)
    try:
        manifest = storage.read_json(url)
    except FileNotFoundError:
        return None
    except ValueError:
        _log.warning("%s is damaged; trying an older checkpoint", url)
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise errors.OutputOccupied(f"{url} is of format {found!r}; this trainer reads {FORMAT}.")
    return manifest


def _arrays(url: str, sha256: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file that has this digest; None when it is not there or is another's."""
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(DOWNLOADS):
            try:
                path = storage.download(url, Path(scratch) / "state")
            except FileNotFoundError:
                return None
            if _sha256(path) == sha256:
                arrays: dict[str, np.ndarray] = load_file(path)
                return arrays
    return None


class Writer:
    """Writes checkpoints from a thread of its own; only rank 0's writes anything.

    Args:
        output_path: URL of the output.
        owner: The run.
        keep: How many complete checkpoints stay, besides the one with the best evaluation.
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
        self._saved_step: int | None = None
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, state: Any, notes: Mapping[str, Any]) -> None:
        """Copy the state to the host and start writing it; waits for the one before."""
        arrays = to_host(state)
        self.wait()
        if self._leads:
            self._pending = self._pool.submit(self._write, step, arrays, dict(notes))

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._pending is not None and not self._pending.done()

    @property
    def saved_step(self) -> int | None:
        """The newest checkpoint that this process completed."""
        return self._saved_step

    def wait(self) -> None:
        """Wait until the last save is complete; raises what went wrong in it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
        folder = _url(self._output, step)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "state"
            save_file(dict(arrays), path)
            sha256 = _sha256(path)
            file = f"state-{sha256[:16]}.safetensors"
            storage.upload(path, storage.join(folder, file))
        saved = _announced(self._output, step, protocol.utc_now())
        manifest = {
            "format": FORMAT,
            "step": step,
            "time": saved.time.isoformat(),
            "owner": self._owner.to_json(),
            "file": file,
            "sha256": sha256,
            "notes": dict(notes),
        }
        storage.write_json(storage.join(folder, MANIFEST), manifest)
        self._saved_step = step
        self._on_saved(saved)
        self._prune(step, file, notes.get(BEST_STEP))

    def _prune(self, newest: int, file: str, best: int | None) -> None:
        """Delete what is neither among the newest complete ones nor the best.

        Whatever is newer than the step just saved was torn or damaged, for this attempt went on from before it.
        """
        for name in storage.children(_url(self._output, newest)):
            if name not in (file, MANIFEST):
                storage.delete(_url(self._output, newest, name))
        complete = sorted(step for step in _complete(self._output) if step <= newest)
        kept = {*complete[-self._keep :], best}
        for step in _steps(self._output):
            if step not in kept:
                # The manifest goes first, so that a crash in between leaves no folder that looks complete.
                storage.delete(_url(self._output, step, MANIFEST))
                storage.delete(_url(self._output, step))


def _announced(output_path: str, step: int, time: datetime.datetime) -> protocol.Checkpoint:
    return protocol.Checkpoint(step=step, time=time, path=_url(output_path, step)[:1024])


def _check_owner(url: str, manifest: Mapping[str, Any], owner: identity.RunIdentity) -> None:
    difference = owner.difference(identity.RunIdentity.from_json(manifest["owner"]))
    if difference is not None:
        raise errors.OutputOccupied(f"The checkpoint {url} belongs to another run: {difference}.")


def _complete(output_path: str) -> list[int]:
    return [step for step in _steps(output_path) if storage.exists(_url(output_path, step, MANIFEST))]


def _steps(output_path: str) -> list[int]:
    names = storage.children(storage.join(output_path, FOLDER))
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def _url(output_path: str, step: int, *file: str) -> str:
    return storage.join(output_path, FOLDER, name_of(step), *file)


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
