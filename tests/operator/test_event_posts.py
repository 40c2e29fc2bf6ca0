"""Events on their way: nothing waits for them, and they wait for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lora_dpo_operator import event_posts
from lora_dpo_operator.errors import ForbiddenError
from lora_dpo_operator.event_posts import EventPosts

MOST = 3


@pytest.fixture
def held() -> asyncio.Event:
    """The API server answers once this is set."""
    return asyncio.Event()


@pytest.fixture
def posted() -> list[str]:
    return []


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch, held: asyncio.Event, posted: list[str]) -> EventPosts:
    async def post(event: dict[str, Any]) -> None:
        await held.wait()
        if event["message"] == "refused":
            raise ForbiddenError("create", "events", 403, "exceeded quota")
        posted.append(event["message"])

    monkeypatch.setattr(event_posts, "MOST", MOST)
    return EventPosts(post)


async def test_events_are_posted_in_order_and_a_refused_one_stops_none(
    posts: EventPosts, held: asyncio.Event, posted: list[str]
) -> None:
    held.set()
    for message in ("first", "refused", "last"):
        posts.add({"message": message})
    assert posted == []
    await posts.close(5)
    assert posted == ["first", "last"]


async def test_what_an_api_server_that_hangs_does_not_take_is_dropped(
    posts: EventPosts, held: asyncio.Event, posted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MOST + 1):
        posts.add({"message": str(number)})
    assert "An event is dropped" in caplog.text
    held.set()
    await posts.close(5)
    assert posted == ["0", "1", "2"]


async def test_an_operator_that_stops_does_not_wait_for_long(
    posts: EventPosts, posted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    posts.add({"message": "late"})
    async with asyncio.timeout(2):
        await posts.close(0.05)
    assert posted == []
    assert "1 events were not posted" in caplog.text


async def test_where_nothing_was_told_there_is_nothing_to_close(posts: EventPosts) -> None:
    await posts.close(0)
