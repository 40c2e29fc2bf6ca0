"""Reading progress from a real HTTP server that may be anything."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lora_dpo_api.protocol import STATUS_LIMIT, Checkpoint
from lora_dpo_operator import progress
from lora_dpo_operator.errors import ProgressError
from lora_dpo_operator.observed import Poll
from lora_dpo_operator.progress import Budget, Target

from .builders import LATEST, at
from .builders import progress as a_report

NOW = at(100)
RUN = "team-a/tiny"


@dataclasses.dataclass
class Endpoint:
    """What the endpoint answers."""

    target: Target
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    hang: asyncio.Event | None = None
    asked: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async def handle(request: web.Request) -> web.Response:
        state.asked.append(request.path)
        if state.hang:
            await state.hang.wait()
        return web.Response(body=state.body, status=state.status, headers=state.headers)

    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", handle)
    async with TestServer(app) as server:
        assert server.port is not None
        state = Endpoint(Target(address="127.0.0.1", run_id=RUN, attempt=0, port=server.port))
        yield state
        if state.hang:
            state.hang.set()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with progress.client() as made:
        yield made


async def test_a_report_is_read(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.body = a_report(step=7).to_json().encode()
    assert (await progress.pull(session, endpoint.target, NOW)).step == 7
    assert endpoint.asked == ["/status"]


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another run's": ({"run_id": "team-b/other"}, "of the run 'team-b/other'"),
    "another attempt's": ({"attempt": 3}, "of attempt 3, not of 0"),
    "the future's": ({"updated_at": at(100_000)}, "from the future"),
    "with a state that begins in the future": ({"state_since": LATEST}, "from the future"),
    "with a checkpoint of the future": ({"last_checkpoint": Checkpoint(step=1, time=LATEST, path="x")}, "the future"),
    "of more steps than can be counted": ({"step": 10**30}, "not valid: .*less than"),
}


@pytest.mark.parametrize(("changes", "words"), LIES.values(), ids=LIES.keys())
async def test_a_report_that_cannot_be_this_jobs_is_not_believed(
    endpoint: Endpoint, session: aiohttp.ClientSession, changes: dict[str, Any], words: str
) -> None:
    endpoint.body = a_report().model_copy(update=changes).to_json().encode()
    with pytest.raises(ProgressError, match=words):
        await progress.pull(session, endpoint.target, NOW)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid"),
        (b"<html>", "not valid"),
        (b'{"runId": "x"}', "not valid"),
        (b'{"metrics": {"loss": NaN}}', "not valid"),
        (b" " * (STATUS_LIMIT + 1), "longer than 65536 bytes"),
        (b"x" * 5_000_000, "longer than 65536 bytes"),
    ],
    ids=["empty", "html", "incomplete", "NaN", "just too long", "far too long"],
)
async def test_what_is_no_report_is_refused(
    endpoint: Endpoint, session: aiohttp.ClientSession, body: bytes, words: str
) -> None:
    endpoint.body = body
    with pytest.raises(ProgressError, match=words):
        await progress.pull(session, endpoint.target, NOW)


async def test_redirects_are_not_followed(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.status, endpoint.headers = 302, {"Location": "/elsewhere"}
    with pytest.raises(ProgressError, match="HTTP 302"):
        await progress.pull(session, endpoint.target, NOW)
    assert endpoint.asked == ["/status"]


async def test_an_endpoint_that_hangs_is_given_up(endpoint: Endpoint) -> None:
    endpoint.hang = asyncio.Event()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.1)) as impatient:
        with pytest.raises(ProgressError, match="no answer within"):
            await progress.pull(impatient, endpoint.target, NOW)


async def test_a_closed_port_is_said(session: aiohttp.ClientSession) -> None:
    with pytest.raises(ProgressError, match=r"127\.0\.0\.1"):
        await progress.pull(session, Target(address="127.0.0.1", run_id=RUN, attempt=0, port=1), NOW)


def test_an_address_of_version_six_is_bracketed() -> None:
    assert Target(address="fd00::7", run_id=RUN, attempt=0).url == "http://[fd00::7]:9100/status"


def test_the_budget_holds_over_any_second() -> None:
    budget = Budget(20)
    times = [now / 100 for now in range(100, 400)]
    taken = [now for now in times if budget.take(now)]
    assert len(taken) <= 20 + 3 * 20
    later = [now for now in taken if 3 <= now < 4]
    assert 19 <= len(later) <= 21


@pytest.mark.parametrize(("running", "seconds"), [(0, 10), (1, 10), (200, 10), (1000, 50)])
def test_many_jobs_are_read_less_often(running: int, seconds: float) -> None:
    assert progress.interval(running, shortest=10, budget=20) == seconds


def test_failures_count_up_and_a_good_reading_clears_them() -> None:
    failed = progress.after(progress.after(Poll(report=a_report()), ProgressError("no")), ProgressError("still no"))
    assert (failed.failures, failed.error) == (2, "still no")
    assert progress.after(failed, a_report(step=9, updated=60)) == Poll(report=a_report(step=9, updated=60))


def test_an_older_report_does_not_replace_a_newer_one() -> None:
    newer = Poll(report=a_report(step=9, updated=90))
    assert progress.after(newer, a_report(step=3, updated=50)) == newer
