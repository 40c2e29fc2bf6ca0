"""Compiled programs, kept in `cache.path`, so that a restart does not compile again.

XLA's cache is a folder of this machine. Where `cache.path` is an object store, its files are fetched before the first
program is compiled, and a thread copies new ones there. Losing a copy only costs a compilation, so nothing waits for
it and no failure of it ends a run.
"""

from __future__ import annotations

import concurrent.futures
import logging
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import jax

from lora_dpo_trainer import errors, storage

FOLDER = "compile"
_SUFFIX = "-cache"
_PAUSE_SECONDS = 10.0
_AT_ONCE = 8

_log = logging.getLogger(__name__)


def use(cache_path: str, *, writer: bool) -> Copier | None:
    """Let JAX keep compiled programs in `cache_path`.

    Args:
        cache_path: The job's `cache.path`.
        writer: Whether this process copies new programs to an object store; one process of a run does.

    Returns:
        What copies new programs, where that is needed; close it at the end.
    """
    url = storage.join(cache_path, FOLDER)
    if storage.is_local(cache_path):
        folder = storage.local_path(url)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="loradpo-compile-"))
        fetch(url, folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The small programs too: a restarted attempt then compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return Copier(folder, url) if writer and not storage.is_local(cache_path) else None


def fetch(url: str, folder: Path) -> None:
    """Copy what is at `url` into a folder; what cannot be read is compiled again."""
    try:
        names = [name for name in storage.children(url) if name.endswith(_SUFFIX)]
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: storage.download(storage.join(url, name), folder / name), names))
    except (errors.TrainerError, FileNotFoundError) as error:
        _log.warning("Compiled programs could not be read from %s: %s", url, error)
    else:
        _log.info("%d compiled programs were found in %s", len(names), url)


class Copier:
    """Copies new files of a folder to an object store, in a thread of its own.

    A file is copied when it has not grown between two looks, for XLA writes in place.
    """

    def __init__(self, folder: Path, url: str, pause_seconds: float = _PAUSE_SECONDS) -> None:
        self._folder = folder
        self._url = url
        self._pause_seconds = pause_seconds
        self._copied = set(_sizes(folder))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compile-cache", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is left, and stop."""
        self._closing.set()
        self._thread.join()
        # Nothing compiles any more, so that every file is whole.
        self._copy(_sizes(self._folder))

    def _run(self) -> None:
        before: Mapping[str, int] = {}
        while not self._closing.wait(self._pause_seconds):
            now = _sizes(self._folder)
            self._copy({name: size for name, size in now.items() if before.get(name) == size})
            before = now

    def _copy(self, names: Mapping[str, int]) -> None:
        for name in sorted(set(names) - self._copied):
            try:
                storage.upload(self._folder / name, storage.join(self._url, name))
            except errors.TrainerError as error:
                _log.warning("A compiled program could not be kept in %s: %s", self._url, error)
            self._copied.add(name)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob(f"*{_SUFFIX}")}
