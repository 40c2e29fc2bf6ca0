"""The one loop of the operator: reads all jobs now and then, looks again where something failed, polls progress.

No timer hangs on a job: a timer needs a finalizer, and a finalizer would keep a deleted job's slice while the operator
is down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp

from lora_dpo_api.protocol import ProgressReport
from lora_dpo_operator import progress
from lora_dpo_operator.errors import ForbiddenError, GatewayError
from lora_dpo_operator.gateway import LORA_DPO_JOBS, NODES, Manifest
from lora_dpo_operator.metrics import Key
from lora_dpo_operator.nodes import MAINTENANCE_LABEL, Node
from lora_dpo_operator.objects import items
from lora_dpo_operator.progress import Budget, Target
from lora_dpo_operator.reconcile import Clock
from lora_dpo_operator.service import Service

TICK_SECONDS = 0.25
STALLED_AFTER = 60.0
"""Seconds without a turn after which the loop counts as dead."""
LOOKS_A_SECOND = 10.0
"""Over all jobs, at what no watch tells of: a thousand jobs that wait must not keep the API server busy."""
CONCURRENCY = 20
"""Jobs looked at at once."""

logger = logging.getLogger(__name__)


class Resync:
    """The loop and its state."""

    def __init__(self, service: Service, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._service = service
        self._session = session
        self._clock = clock
        self._budget = Budget(service.settings.progress_budget)
        self._looks = Budget(LOOKS_A_SECOND)
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._tasks: dict[tuple[str, Key], asyncio.Task[None]] = {}
        self._turned = time.monotonic()
        self._next_listing = 0.0
        self._listed = False

    def alive(self) -> bool:
        """Whether the loop turns."""
        return time.monotonic() - self._turned < STALLED_AFTER

    def ready(self) -> bool:
        """Whether all jobs have been read once."""
        return self._listed

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            self._turned = time.monotonic()
            if self._turned >= self._next_listing:
                await self._list()
            for key in self._service.due():
                self._start("reconcile", key, self._service.take_up(key))
            for key in self._service.looks():
                if ("reconcile", key) not in self._tasks and self._looks.take(time.monotonic()):
                    self._start("reconcile", key, self._service.reconcile(key))
            for key in self._service.polls():
                if ("poll", key) not in self._tasks and self._budget.take(time.monotonic()):
                    self._start("poll", key, self._service.poll(key, self._pull))
            await asyncio.sleep(TICK_SECONDS)

    async def _list(self) -> None:
        """Read all jobs; reconcile those that are not finished, forget those that are gone."""
        settings = self._service.settings
        self._next_listing = time.monotonic() + settings.resync_seconds
        # Not those that are made meanwhile: what is listed is as old as its first page.
        gone = self._service.keys()
        try:
            for namespace in settings.namespaces or (None,):
                async for raw in self._service.gateway.each(LORA_DPO_JOBS, namespace):
                    key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
                    gone.discard(key)
                    if self._to_do(key, raw):
                        self._start("reconcile", key, self._service.reconcile(key))
            self._service.announce(await self._maintenance())
        except GatewayError as error:
            self._next_listing = time.monotonic() + settings.recheck_seconds
            logger.warning("Listing the jobs failed, will be tried again: %s", error)
            return
        self._service.forget(gone)
        self._service.instruments.last_resync.set_to_current_time()
        self._listed = True

    def _to_do(self, key: Key, raw: Manifest) -> bool:
        """Whether there may be something to do for a job."""
        try:
            return self._service.note(raw)
        except Exception as error:
            self._bug("reading", key, error)
            return False

    async def _maintenance(self) -> tuple[Node, ...]:
        """Nodes whose maintenance is announced; none where the operator may see no nodes."""
        try:
            return items(Node, await self._service.gateway.list(NODES, None, labels=MAINTENANCE_LABEL))
        except ForbiddenError:
            return ()

    async def _pull(self, target: Target) -> ProgressReport:
        return await progress.pull(self._session, target, self._clock())

    def _start(self, what: str, key: Key, work: Coroutine[Any, Any, None]) -> None:
        """Run in the background."""
        if (what, key) in self._tasks:
            work.close()
            return
        task = asyncio.create_task(self._slotted(work), name=f"{what} {'/'.join(key)}")
        self._tasks[what, key] = task
        task.add_done_callback(lambda ended: self._ended(what, key, ended))

    async def _slotted(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._slots:
            await work

    def _ended(self, what: str, key: Key, task: asyncio.Task[None]) -> None:
        del self._tasks[what, key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug(what, key, error)

    def _bug(self, what: str, key: Key, error: BaseException) -> None:
        """Log what one job has met; it must not stop the others."""
        self._service.instruments.reconciles.labels("error").inc()
        logger.error("%s/%s: %s failed", *key, what, exc_info=error)
