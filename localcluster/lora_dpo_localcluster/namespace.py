"""The namespaces of a cluster seen from outside: start, find, enter, end.

They are found by looking at the processes of the machine, not by a remembered number: after any crash the truth is
there, and a number that another process got meanwhile is never killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_dpo_localcluster import errors, namespace_init, waiting
from lora_dpo_localcluster.state import ClusterPaths

_MODULE = "lora_dpo_localcluster.namespace_init"


@dataclasses.dataclass(frozen=True, slots=True)
class Namespace:
    """The namespaces of a running cluster.

    Attributes:
        pid: their first process, as this machine numbers it.
    """

    pid: int

    def network_command(self, argv: Sequence[str]) -> list[str]:
        """A command that runs on this machine's files and processes with the cluster's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def inner_command(self, argv: Sequence[str]) -> list[str]:
        """A command that runs among the cluster's own processes and mounts."""
        return ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", "--ipc", "--uts", "--", *argv]


def start(paths: ClusterPaths, ports: Sequence[int], *, timeout: float = 20) -> Namespace:
    """Make the namespaces of a cluster that has none.

    Args:
        paths: the cluster.
        ports: TCP ports forwarded from this machine's 127.0.0.1 to the same ports of the cluster's.
        timeout: seconds to wait.

    Raises:
        NotReadyError: they didn't come up; the log is named.
    """
    ready = paths.root / namespace_init.READY
    ready.unlink(missing_ok=True)
    paths.logs.mkdir(parents=True, exist_ok=True)
    log = paths.logs / "namespace.log"
    with log.open("ab") as sink:
        subprocess.run(
            [sys.executable, "-m", _MODULE, str(paths.root), *map(str, ports)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd="/",
        )
    waiting.until(ready.exists, f"the namespaces of the cluster {paths.name}", timeout=timeout, log=log)
    found = find(paths)
    if found is None:
        raise errors.NotReadyError(f"The namespaces of the cluster {paths.name} ended at once; see {log}.")
    return found


def find(paths: ClusterPaths) -> Namespace | None:
    """The running namespaces of a cluster."""
    firsts = [pid for pid in _processes_of(paths) if _is_first(pid)]
    return Namespace(firsts[0]) if firsts else None


def end(paths: ClusterPaths) -> None:
    """End every process of a cluster; with the last one, the kernel drops its mounts, addresses and rules.

    Raises:
        NotReadyError: a process can't be ended.
    """
    kill_all(lambda: _processes_of(paths), f"the cluster {paths.name}")


def kill_all(find_them: Callable[[], Sequence[int]], what: str, *, timeout: float = 60) -> None:
    """Kill processes and wait until they are gone, with those that they leave meanwhile.

    Raises:
        NotReadyError: one can't be ended.
    """
    deadline = time.monotonic() + timeout
    waited: set[int] = set()
    while pending := (found := set(find_them())) | {pid for pid in waited if not _has_ended(pid)}:
        for pid in found - waited:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # The first process of a namespace loses its command line before the rest of the namespace has ended.
        waited |= found
        if time.monotonic() > deadline:
            raise errors.NotReadyError(
                f"Processes {sorted(pending)} of {what} don't end, though killed; look at `ps -o pid,stat,wchan,cmd`."
            )
        time.sleep(0.02)


def processes_with(words: Sequence[str]) -> list[int]:
    """The processes whose command lines hold these words, one after another."""
    wanted = [word.encode() for word in words]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(argv[start : start + len(wanted)] == wanted for start in range(len(argv))):
            found.append(int(entry.name))
    return sorted(found)


def free_ports(count: int) -> tuple[int, ...]:
    """TCP ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()


def _processes_of(paths: ClusterPaths) -> list[int]:
    """The launcher, the first process and the forwarder: all that carry the command line of `start`."""
    return processes_with(["-m", _MODULE, str(paths.root)])


def _has_ended(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _is_first(pid: int) -> bool:
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"
