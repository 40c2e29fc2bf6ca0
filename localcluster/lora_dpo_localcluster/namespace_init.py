"""The first process of a cluster: it makes the namespaces, holds them, and takes everything along when it dies.

`python -m lora_dpo_localcluster.namespace_init STATE_FOLDER PORT…` leaves a daemon that is process 1 of a new process
namespace, with network and mount namespaces of its own. So one SIGKILL of it ends every process of the cluster, its
containers included, and the kernel then drops the mounts, addresses and firewall rules with the namespaces. Nothing
has to be remembered or cleaned up in order.

Standard library only, and no imports from this package: it must start fast and never fail half-way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

BRIDGE = "ldj0"
NETWORK = "10.89.0.0/16"
ADDRESS = "10.89.0.1"
READY = "namespace-ready"


def main(argv: list[str]) -> int:
    """Make the namespaces and stay in them."""
    folder, ports = Path(argv[0]), [int(port) for port in argv[1:]]
    # Bound before the network namespace changes, so they listen outside and connect inside.
    listeners = [listen(port) for port in ports]
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWPID | os.CLONE_NEWNS | os.CLONE_NEWIPC | os.CLONE_NEWUTS)
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    _mounts(folder)
    _network()
    if os.fork() == 0:
        asyncio.run(_forward(listeners))
        os._exit(1)
    for listener in listeners:
        listener.close()
    # Orphans of the whole namespace end up here; the kernel reaps what is ignored.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    (folder / READY).touch()
    while True:
        signal.pause()


def listen(port: int) -> socket.socket:
    """A listener on loopback."""
    # asyncio lets small writes go out at once only on sockets that name their protocol.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _mounts(folder: Path) -> None:
    _run("mount", "--make-rprivate", "/")
    # A peer group of our own, so that a container's mounts can follow the node's.
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    # containerd, its shims and the CNI plugins have fixed places here; a second cluster mustn't see them.
    for place in ("/run", "/var/log"):
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)


def _network() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "addr", "add", f"{ADDRESS}/{NETWORK.partition('/')[2]}", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    # kube-proxy and the API server want a default route; no packet leaves over it.
    _run("ip", "route", "add", "default", "dev", BRIDGE)


async def _forward(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        port = listener.getsockname()[1]
        await asyncio.start_server(lambda r, w, port=port: _carry(r, w, port), sock=listener)  # type: ignore[misc]
    await asyncio.Event().wait()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.transport.abort()
        return
    await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 18):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
