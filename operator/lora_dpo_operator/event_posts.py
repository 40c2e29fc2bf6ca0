"""Posts events beside the work: one after another, and nothing waits for one.

An event is a story told, and no state: a job goes on without it where the cluster refuses (a namespace that is going, a
quota) or has more to do than to listen. So do the controllers of Kubernetes.
https://github.com/kubernetes/client-go/blob/master/tools/record/event.go
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from lora_dpo_operator.errors import GatewayError

MOST = 5000
"""Events that wait to be posted; what is told beyond that is dropped."""

logger = logging.getLogger(__name__)

type _Manifest = dict[str, Any]


class EventPosts:
    """Events on their way."""

    def __init__(self, post: Callable[[_Manifest], Awaitable[object]]) -> None:
        self._post = post
        self._waiting: asyncio.Queue[_Manifest] = asyncio.Queue(MOST)
        self._task: asyncio.Task[None] | None = None

    def add(self, event: _Manifest) -> None:
        """Post an event soon."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            logger.warning("An event is dropped, since %d wait to be posted: %s", MOST, event.get("message", ""))
            return
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="events")

    async def close(self, seconds: float) -> None:
        """Post what waits, for so long at the most, and stop."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._waiting.join()
        except TimeoutError:
            # One of them is on its way.
            logger.warning("%d events were not posted", self._waiting.qsize() + 1)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            event = await self._waiting.get()
            try:
                await self._post(event)
            except GatewayError as error:
                logger.debug("An event is not posted: %s", error)
            finally:
                self._waiting.task_done()
