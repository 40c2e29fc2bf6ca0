"""A real object store, fake-gcs-server, behind a proxy that makes it fail."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_dpo_localcluster import bucket, tools
from tests.storage.faulty_proxy import FaultyProxy


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bucket.BucketServer]:
    """The store itself."""
    program = tools.ensure(print, (tools.FAKE_GCS_SERVER,)).program(tools.FAKE_GCS_SERVER, "fake-gcs-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("bucket")
    options = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=filesystem", "-log-level=error"]
    with subprocess.Popen([program, *options, f"-filesystem-root={folder}"]) as process:
        found = bucket.server(port)
        try:
            while not found.answers():
                assert process.poll() is None, "fake-gcs-server ended"
                time.sleep(0.05)
            yield found
        finally:
            process.terminate()


@pytest.fixture
def proxy(server: bucket.BucketServer) -> Iterator[FaultyProxy]:
    """The way to the store; without faults until a test gives it some."""
    with FaultyProxy(server.host_url) as started:
        yield started


@pytest.fixture
def store(server: bucket.BucketServer, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty `gs://` bucket, reached through the proxy."""
    for name, value in bucket.BucketServer(proxy.url, proxy.url).host_env.items():
        monkeypatch.setenv(name, value)
    name = "b-" + "".join(character for character in str(abs(hash(tmp_path))))[:20]
    return server.create(name)
