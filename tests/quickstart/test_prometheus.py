"""The Prometheus beside a local cluster: it ends with whoever started it, and shares its data with nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STARTER = """
import os, subprocess, sys
from pathlib import Path
from ldj import prometheus

class Here:
    def command(self, argv):
        return list(argv)
    def run(self, argv, **options):
        return subprocess.run(argv, capture_output=True, text=True)

with prometheus.running(Here(), Path(sys.argv[1]), ()):
    print("up", flush=True)
    sys.stdin.read()
"""


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program under the name of one that only `make demo` installs."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["killed", "left"])
def test_prometheus_ends_with_its_starter(tmp_path: Path, end: signal.Signals | None) -> None:
    stand_in(tmp_path, "prometheus", f'echo $$ "$2" > {tmp_path}/started; exec sleep 600')
    stand_in(tmp_path, "promtool", """echo '[{"metric": {}, "value": [0, "1"]}]'""")
    results = tmp_path / "results"
    results.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, results],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        # Its answers are promtool's stand-in's, so that it may be up before the other has written.
        pid, data = started(tmp_path / "started")
        assert data.parent == results
        assert not ended(pid)
        if end is None:
            starter.stdin.close()
            assert starter.wait(timeout=60) == 0
            assert not data.exists()
        else:
            starter.send_signal(end)
    until(lambda: ended(pid))


def started(file: Path) -> tuple[int, Path]:
    """Process id and data folder of the stand-in."""
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    pid, option = file.read_text().split()
    return int(pid), Path(option.partition("=")[2])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
