from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from lora_dpo_trainer import compile_cache, storage


@pytest.fixture(autouse=True)
def jax_settings() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_on_this_machine_the_folder_itself_is_used(tmp_path: Path) -> None:
    assert compile_cache.use(str(tmp_path), writer=True) is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compile")


def test_a_restart_finds_in_the_object_store_what_the_attempt_before_it_compiled(memory: str) -> None:
    first = compile_cache.use(memory, writer=True)
    assert first is not None
    (Path(jax.config.jax_compilation_cache_dir) / "jit_run-1234-cache").write_bytes(b"program")
    first.close()

    second = compile_cache.use(memory, writer=True)
    assert second is not None
    assert (Path(jax.config.jax_compilation_cache_dir) / "jit_run-1234-cache").read_bytes() == b"program"
    second.close()


def test_a_file_is_copied_once_it_is_whole_while_the_run_goes_on(memory: str, tmp_path: Path) -> None:
    copier = compile_cache.Copier(tmp_path, f"{memory}/compile", pause_seconds=0.01)
    (tmp_path / "jit_run-1-cache").write_bytes(b"program")
    (tmp_path / "jit_run-1-atime").write_bytes(b"now")
    deadline = time.monotonic() + 30
    while not storage.children(f"{memory}/compile"):
        assert time.monotonic() < deadline
    copier.close()
    assert storage.children(f"{memory}/compile") == ("jit_run-1-cache",)


def test_only_one_process_of_a_run_copies(memory: str) -> None:
    assert compile_cache.use(memory, writer=False) is None
