"""Serves /metrics, /healthz and /readyz, and further pages where there are any."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from lora_dpo_operator import exposition


@dataclasses.dataclass(frozen=True)
class Health:
    """What the probes ask.

    Attributes:
        alive: whether the resync loop turns: if it doesn't, the operator must be restarted.
        ready: whether all jobs have been read once.
    """

    alive: Callable[[], bool]
    ready: Callable[[], bool]


def application(registry: CollectorRegistry, health: Health, pages: Iterable[web.RouteDef] = ()) -> web.Application:
    """The HTTP application, with further pages."""

    async def metrics(_: web.Request) -> web.Response:
        # With thousands of jobs it takes a second, which nobody else should have to wait.
        body = await asyncio.to_thread(exposition.text, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.alive(), "the resync loop has stopped")

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.ready(), "the jobs have not been read yet")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz), *pages])
    return app


async def start(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> web.AppRunner:
    """Listen on all addresses; the caller cleans the runner up.

    Raises:
        OSError: the port is taken.
    """
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port, ssl_context=tls).start()
    return runner


def _answer(good: bool, why_not: str) -> web.Response:
    return web.Response(text="ok" if good else why_not, status=200 if good else 503)
