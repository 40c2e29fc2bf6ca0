"""The API server as a benchmark needs it: many requests at once, and watches with the time of what they show."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from lora_dpo_api import yaml12

Object = dict[str, Any]
CONCURRENCY = 40
"""Requests under way at once; more would measure the queue in front of the API server."""


async def each[T](items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Do something with each of them, `CONCURRENCY` at once."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(item: T) -> None:
        async with slots:
            await work(item)

    await asyncio.gather(*map(one, items))


class Api:
    """An open connection."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def send(self, method: str, path: str, body: Object | None = None, *, kind: str = "json") -> Object:
        """One request.

        Args:
            method: its method.
            path: with a leading slash.
            body: what to send.
            kind: `json`, or the kind of patch.

        Raises:
            RuntimeError: the API server refuses it.
        """
        headers = {"Content-Type": "application/json" if kind == "json" else f"application/{kind}"}
        payload = None if body is None else json.dumps(body)
        async with self._session.request(method, self._server + path, data=payload, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: HTTP {answer.status}: {text[:500]}")
            found: Object = json.loads(text)
            return found

    async def text(self, path: str) -> str:
        """What is served there, as it is."""
        async with self._session.get(self._server + path) as answer:
            return await answer.text()

    async def watch(self, path: str, see: Callable[[Object, float], None]) -> None:
        """Show every object that is new or has changed, with the time, until cancelled."""
        separator = "&" if "?" in path else "?"
        while True:
            async with self._session.get(f"{self._server}{path}{separator}watch=1") as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED"):
                        see(event["object"], time.perf_counter())


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Api]:
    """Connect with the certificates of a kubeconfig."""
    server, context = _read(kubeconfig)
    connector = aiohttp.TCPConnector(ssl=context, limit=CONCURRENCY + 10)
    # A line of a watch is a whole object.
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**22
    ) as session:
        yield Api(session, server)


def _read(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    config = yaml12.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    with tempfile.TemporaryDirectory() as scratch:
        context = ssl.create_default_context(cafile=_file(scratch, cluster, "certificate-authority-data"))
        context.load_cert_chain(
            _file(scratch, user, "client-certificate-data"), _file(scratch, user, "client-key-data")
        )
    return cluster["server"], context


def _file(folder: str, found: Mapping[str, str], key: str) -> str:
    path = Path(folder) / key
    path.touch(mode=0o600)
    path.write_bytes(base64.b64decode(found[key]))
    return str(path)
