"""Serves the read-only page under /ui."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from aiohttp import web

from lora_dpo_operator import overview, page
from lora_dpo_operator.metrics import Snapshot

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""No script, no frame, nothing from elsewhere: what a status says can at worst be read."""


def routes(snapshot: Snapshot, leader: Callable[[], str] = lambda: "") -> list[web.RouteDef]:
    """The page's routes.

    Args:
        snapshot: gives every job's status.
        leader: names the replica that knows the jobs; empty where this one does.
    """

    async def jobs(request: web.Request) -> web.Response:
        if other := leader():
            return _html(page.elsewhere(other), status=503)
        question = overview.question_of(request.query)
        return _html(page.jobs(snapshot(), question, follow=_follows(request)))

    async def job(request: web.Request) -> web.Response:
        if other := leader():
            return _html(page.elsewhere(other), status=503)
        key = request.match_info["namespace"], request.match_info["name"]
        status = snapshot().get(key)
        if status is None:
            return _html(page.missing(key), status=404)
        return _html(page.job(key, status, datetime.datetime.now(datetime.UTC), follow=_follows(request)))

    async def style(_: web.Request) -> web.Response:
        return web.Response(text=sheet, content_type="text/css", headers=HEADERS)

    sheet = page.style()
    return [
        web.get(page.ROOT, jobs),
        web.get(f"{page.ROOT}/page.css", style),
        web.get(f"{page.ROOT}/{{namespace}}/{{name}}", job),
    ]


def _follows(request: web.Request) -> bool:
    return request.query.get("follow") == "on"


def _html(text: str, *, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8", headers=HEADERS)
