from __future__ import annotations

import http.server
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_trainer import errors, storage


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> str:
    return str(tmp_path / "bucket") if request.param == "local" else memory


def test_what_is_written_can_be_read(folder: str) -> None:
    url = storage.join(folder, "a", "b.bin")
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.exists(url)


def test_json_survives_a_round_trip(folder: str) -> None:
    url = storage.join(folder, "value.json")
    storage.write_json(url, {"a": [1, None, "x"]})
    assert storage.read_json(url) == {"a": [1, None, "x"]}


def test_a_missing_file_is_a_file_not_found_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(folder, "nothing"))
    assert not storage.exists(storage.join(folder, "nothing"))


def test_children_names_files_and_folders_directly_in_a_folder(folder: str) -> None:
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt"):
        storage.write_bytes(storage.join(folder, name), b"")
    assert storage.children(folder) == ("a.txt", "deep")
    assert storage.children(storage.join(folder, "nothing")) == ()


def test_globs_expand_in_order_and_keep_the_scheme(folder: str) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        storage.write_bytes(storage.join(folder, name), b"x")
    found = storage.expand(storage.join(folder, "*.jsonl"))
    assert [url.rsplit("/", 1)[-1] for url in found] == ["a.jsonl", "b.jsonl"]
    assert all(storage.read_bytes(url) == b"x" for url in found)
    assert storage.expand(storage.join(folder, "*.parquet")) == ()


def test_deleting_is_recursive_and_repeatable(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "x", "y"), b"")
    storage.delete(storage.join(folder, "x"))
    storage.delete(storage.join(folder, "x"))
    assert not storage.exists(storage.join(folder, "x", "y"))


def test_the_probe_leaves_nothing_behind(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "kept"), b"")
    storage.probe(folder)
    assert storage.children(folder) == ("kept",)


def test_equal_content_has_an_equal_identity(folder: str) -> None:
    first, second, other = (storage.join(folder, name) for name in "abc")
    storage.write_bytes(first, b"same")
    storage.write_bytes(second, b"same")
    storage.write_bytes(other, b"other")
    assert storage.identity(first) == storage.identity(second) != storage.identity(other)


def test_files_and_folders_are_copied_both_ways(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(b"content")
    storage.upload_folder(source, folder)
    target = storage.download(storage.join(folder, "deep", "file"), tmp_path / "target" / "file")
    assert target.read_bytes() == b"content"


def test_a_remote_url_makes_no_local_folder(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes(storage.join(memory, "deep", "file"), b"")
    storage.delete(memory)
    assert list(tmp_path.iterdir()) == []


def test_a_local_file_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_bytes(str(path), b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_an_unreachable_service_ends_after_its_patience(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(storage.RETRY_SECONDS_VARIABLE, "0.1")
    nobody = "http://127.0.0.1:9/file"  # the discard port: nothing listens there
    with pytest.raises(errors.Unreachable, match=f"Cannot read {nobody} after 0 s"):
        storage.read_bytes(nobody)


def test_missing_google_credentials_are_said_not_replaced_by_anonymous_access(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.delenv("STORAGE_EMULATOR_HOST", raising=False)
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(errors.MissingCredentials, match="gs://bucket"):
        storage.read_bytes("gs://bucket/file")


def test_a_bucket_that_is_not_there_is_named(environment: pytest.MonkeyPatch) -> None:
    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(errors.ConfigError, match="there is no bucket gs://absent,"):
            storage.probe("gs://absent/runs/a")
        server.shutdown()


def test_a_read_only_place_is_a_lack_of_permission() -> None:
    with pytest.raises(errors.MissingCredentials, match="/sys"):
        storage.write_bytes("/sys/kernel/loradpo/file", b"")
