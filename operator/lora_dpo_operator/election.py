"""Waits for the Lease, keeps it, gives it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from lora_dpo_operator import lease
from lora_dpo_operator.errors import ConflictError, GatewayError, LeadershipLostError, NotFoundError
from lora_dpo_operator.gateway import LEASES, Gateway
from lora_dpo_operator.lease import Lease, LeaseSpec, Sight, Times
from lora_dpo_operator.reconcile import Clock

logger = logging.getLogger(__name__)

STALLED_AFTER = 30.0
"""Seconds without a look at the Lease after which the loop counts as dead."""


class Election:
    """One candidate."""

    def __init__(
        self,
        gateway: Gateway,
        where: tuple[str, str],
        identity: str,
        clock: Clock,
        *,
        times: Times | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._namespace, self._name = where
        self._identity = identity
        self._clock = clock
        self._times = times or Times()
        self._monotonic = monotonic
        self._sight = Sight(lease=None, since=monotonic())
        self._looked = monotonic()
        self._known = False
        self.leading = False

    @property
    def holder(self) -> str:
        """Who holds the Lease, as far as is known."""
        return (self._sight.lease.spec.holder_identity if self._sight.lease else None) or "nobody"

    @property
    def elsewhere(self) -> str:
        """Who leads, where this one does not."""
        return "" if self.leading else self.holder

    def alive(self) -> bool:
        """Whether the loop turns."""
        return self._monotonic() - self._looked < STALLED_AFTER

    def ready(self) -> bool:
        """Whether it could take over: it has seen the Lease."""
        return self._known

    async def acquire(self, stop: asyncio.Event) -> bool:
        """Wait for the Lease.

        Returns:
            Whether it is held now; not where `stop` came first.
        """
        told = ""
        while not stop.is_set():
            if await self._attempt():
                self.leading = True
                logger.info("Leading, as %s", self._identity)
                return True
            if self.holder != told:
                told = self.holder
                logger.info("Standing by; the leader is %s", told)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._times.retry)
        return False

    async def keep(self) -> None:
        """Renew the Lease until cancelled.

        Raises:
            LeadershipLostError: it could not be renewed in time, or somebody else has it. Nothing may be written any
                more, and the gateway refuses to.
        """
        renewed = self._monotonic()
        while True:
            await asyncio.sleep(self._times.retry)
            started = self._monotonic()
            if await self._attempt():
                renewed = started
                continue
            if self.holder != self._identity:
                self._lost(f"{self.holder} has it")
            if self._monotonic() - renewed >= self._times.renew:
                self._lost(f"it could not be renewed for {self._times.renew:g} s")

    async def release(self) -> None:
        """Give the Lease back, so that another one need not wait; an answer is not waited for long."""
        held = self._sight.lease
        if not self.leading or held is None or held.spec.holder_identity != self._identity:
            return
        self.leading = False
        with contextlib.suppress(GatewayError, TimeoutError):
            async with asyncio.timeout(self._times.call):
                await self._write(lease.released(held, self._clock()), held)
                logger.info("The lease is given back")

    def _lost(self, why: str) -> NoReturn:
        self.leading = False
        self._gateway.close_for_writing()
        raise LeadershipLostError(f"The lease {self._namespace}/{self._name} is lost: {why}")

    async def _attempt(self) -> bool:
        """Take or renew the Lease; False where it is another's, or the API server does not answer in time."""
        self._looked = self._monotonic()
        try:
            async with asyncio.timeout(self._times.call):
                return await self._take()
        except (GatewayError, TimeoutError) as error:
            if not isinstance(error, ConflictError | NotFoundError):
                logger.warning("The lease cannot be read or written, will be tried again: %s", error or "no answer")
            return False

    async def _take(self) -> bool:
        found = await self._gateway.get(LEASES, self._namespace, self._name)
        current = Lease.model_validate(found) if found else None
        self._sight = self._sight.updated(current, self._monotonic())
        self._known = True
        mine = current is not None and current.spec.holder_identity == self._identity
        # Who leads and finds the lease with nobody has lost it too: in between, another one may have had it.
        if not mine and (self.leading or not self._sight.free(self._monotonic())):
            return False
        await self._write(lease.claimed(current, self._identity, self._times.lease, self._clock()), current)
        return True

    async def _write(self, spec: LeaseSpec, before: Lease | None) -> None:
        body = lease.manifest(self._namespace, self._name, spec, before)
        written = await (self._gateway.replace(LEASES, body) if before else self._gateway.create(LEASES, body))
        self._sight = Sight(lease=Lease.model_validate(written), since=self._monotonic())
