"""One reading of a namespace's warnings serves all jobs that wait in it."""

from __future__ import annotations

import asyncio
from typing import Any

from lora_dpo_operator.warning_events import WarningEvents


class Namespaces:
    """What the API server holds, a clock, and what a reading takes of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = 0.0
        self.reads: list[str] = []
        self.events = {"a": [warning("pod-1", "old"), warning("pod-2", "x"), warning("pod-1", "new")]}
        self.warnings = WarningEvents(self.read, lambda: self.now)

    async def read(self, namespace: str) -> list[dict[str, Any]]:
        self.reads.append(namespace)
        await asyncio.sleep(0)
        self.now += self.takes
        return self.events.get(namespace, [])

    async def about(self, uid: str, namespace: str = "a") -> list[str]:
        return [event["message"] for event in await self.warnings.about(namespace, uid, age=5)]


def warning(uid: str, message: str) -> dict[str, Any]:
    return {"type": "Warning", "message": message, "involvedObject": {"uid": uid}}


async def test_all_who_ask_at_once_are_answered_by_one_reading() -> None:
    held = Namespaces()
    answers = await asyncio.gather(held.about("pod-1"), held.about("pod-2"), held.about("pod-3"))
    assert answers == [["old", "new"], ["x"], []]
    assert held.reads == ["a"]
    assert await held.about("pod-1", "b") == []
    assert held.reads == ["a", "b"]


async def test_what_is_new_is_told_once_the_reading_is_old() -> None:
    held = Namespaces()
    assert await held.about("pod-3") == []
    held.events["a"].append(warning("pod-3", "late"))
    held.now = 4.9
    assert await held.about("pod-3") == []
    held.now = 5.0
    assert await held.about("pod-3") == ["late"]


async def test_a_reading_that_took_long_serves_longer() -> None:
    held = Namespaces()
    held.takes = 2.0
    await held.about("pod-1")
    held.now = 41.9
    await held.about("pod-1")
    assert held.reads == ["a"]
    held.now = 42.0
    await held.about("pod-1")
    assert held.reads == ["a", "a"]


async def test_of_one_object_only_the_last_are_kept() -> None:
    held = Namespaces()
    held.events["a"] = [warning("pod-1", str(number)) for number in range(30)]
    assert await held.about("pod-1") == [str(number) for number in range(10, 30)]


async def test_an_event_about_nothing_is_nobodys() -> None:
    held = Namespaces()
    held.events["a"] = [{"type": "Warning", "message": "x"}]
    assert await held.about("pod-1") == []
