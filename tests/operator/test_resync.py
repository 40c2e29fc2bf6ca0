"""How often the loop looks at jobs that no watch tells of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest

from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import resync
from lora_dpo_operator.gateway import Gateway
from lora_dpo_operator.metrics import PREFIX, Instruments, Key
from lora_dpo_operator.service import Service

from .builders import SETTINGS, a_job, at, merged, wire


class Waiting:
    """A thousand jobs, all of which are to be looked at again."""

    settings = SETTINGS

    def __init__(self) -> None:
        self.instruments = Instruments()
        self.gateway = self
        self.left = [("team-a", f"job-{number}") for number in range(1000)]
        self.looked: list[Key] = []
        self.enough = asyncio.Event()

    async def list(self, *_: Any, **__: Any) -> list[Any]:
        return []

    async def each(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        for job in await self.list():
            yield job

    async def reconcile(self, key: Key) -> None:
        self.looked.append(key)
        self.left.remove(key)
        if len(self.looked) >= 1.5 * resync.LOOKS_A_SECOND:
            self.enough.set()

    def looks(self) -> list[Key]:
        return list(self.left)

    def due(self) -> list[Key]:
        return []

    def polls(self) -> list[Key]:
        return []

    def keys(self) -> set[Key]:
        return set()

    def forget(self, keys: set[Key]) -> None: ...

    def announce(self, nodes: object) -> None: ...


@contextlib.asynccontextmanager
async def turning(service: Service, until: asyncio.Event) -> AsyncIterator[resync.Resync]:
    """The loop, which turns from before something happens until the end of the block."""
    async with aiohttp.ClientSession() as session:
        made = resync.Resync(service, session, lambda: at(0))
        loop, happened = asyncio.create_task(made.run()), asyncio.create_task(until.wait())
        await asyncio.wait((loop, happened), return_when=asyncio.FIRST_COMPLETED)
        assert happened.done(), loop.exception()
        yield made
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_a_thousand_jobs_that_wait_are_looked_at_a_few_at_a_time_those_that_wait_longest_first() -> None:
    held = Waiting()
    began = asyncio.get_running_loop().time()
    async with turning(cast(Service, held), held.enough):
        took = asyncio.get_running_loop().time() - began
    # A second's worth at once, then as they come.
    assert len(held.looked) <= resync.LOOKS_A_SECOND * (took + 1) + 1
    assert took >= 0.4
    assert held.looked == [("team-a", f"job-{number}") for number in range(len(held.looked))]


class Listing:
    """A cluster whose jobs take a while to list, and where another one is made and seen meanwhile."""

    def __init__(self, *jobs: Any) -> None:
        self.jobs = jobs
        self.meanwhile: Any = None
        self.service: Service | None = None
        self.listed = asyncio.Event()

    async def each(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        for job in self.jobs:
            yield job
        if self.service is not None and self.meanwhile is not None:
            self.service.note(self.meanwhile)

    async def list(self, *_: Any, **__: Any) -> list[Any]:
        self.listed.set()
        return []


def serving(cluster: Listing) -> Service:
    return Service(cast(Gateway, cluster), SETTINGS, Instruments(), clock=lambda: at(0))


async def test_a_job_that_is_made_while_all_are_listed_is_not_forgotten_and_one_that_is_gone_is() -> None:
    there, made, gone = (finished(name) for name in ("there", "made", "gone"))
    cluster = Listing(there)
    service = serving(cluster)
    cluster.service, cluster.meanwhile = service, made
    service.note(gone)
    async with turning(service, cluster.listed) as loop:
        assert loop.ready()
    assert {name for _, name in service.snapshot()} == {"there", "made"}


async def test_a_job_that_cannot_be_read_keeps_no_other_from_being_read(caplog: pytest.LogCaptureFixture) -> None:
    odd = merged(finished("odd"), {"metadata": {"labels": "none"}})
    cluster = Listing(finished("one"), odd, finished("other"))
    service = serving(cluster)
    async with turning(service, cluster.listed) as loop:
        assert loop.ready()
    assert {name for _, name in service.snapshot()} == {"one", "other"}
    assert "odd" in caplog.text
    failed = service.instruments.registry.get_sample_value(f"{PREFIX}_reconciles_total", {"result": "error"})
    assert failed == 1


def finished(name: str) -> dict[str, Any]:
    status = wire(LoraDpoJobStatus(phase=JobPhase.SUCCEEDED, observed_generation=1))
    return merged(a_job(name=name), {"metadata": {"uid": name}, "status": status})
