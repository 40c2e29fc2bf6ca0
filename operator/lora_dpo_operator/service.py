"""What the operator knows of its jobs, and the one way to bring a job further.

Whatever happens to a job or its children ends in `Service.reconcile`: one at a time for each job, and never more than
one waiting, because the one that waits will see everything. A failure is tried again with a growing pause; nothing is
lost when the operator stops, since all that matters is in the cluster.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import accept, deadlines, heard, lifetime, names, plan, progress, reconcile, waiting
from lora_dpo_operator.errors import OperatorError, ProgressError
from lora_dpo_operator.gateway import Gateway, Manifest
from lora_dpo_operator.metrics import Instruments, Key
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.observe import Memory
from lora_dpo_operator.observed import NOT_POLLED, Accepted, Observed
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.schedule import Schedule, Turn
from lora_dpo_operator.settings import Settings
from lora_dpo_operator.terminations import Termination, of_pod

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
SETTLING_SECONDS = 1.0
"""What children do so soon after a job was looked at is looked at together: several hands write to one that is new."""
Version = tuple[str, str]
"""Uid and resourceVersion of a job, a child or a pod."""

_POLLED = (JobPhase.INITIALIZING, JobPhase.RUNNING)

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Entry:
    """One job, as this process knows it; all of it can be read again from the cluster, but for the memory's pods.

    Attributes:
        queued: a reconcile waits for the lock.
        heard: what watches told since the last one began; under None, that there is another reason to look.
        new: the job as a watch told of it, where it did not show yet that an operator has written to it.
        written: this process has written to it, or may have, or has read what another one wrote.
        looked: when that was, by the monotonic clock.
        status: as last read or written; None while the job itself has not been seen, only a child that names it.
        asked: uid, generation and labels of the job as a watch last told of it.
        at_rest: version in which the job was read last, where there was nothing to do for it.
        failures: reconciles that failed since the last good one.
        target: whom the progress was last read from.
        observed: what was last observed; None of a job that is settled, of which thousands may be held.
    """

    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    queued: bool = False
    heard: dict[Version | None, Manifest] = dataclasses.field(default_factory=dict)
    new: Manifest | None = None
    written: bool = False
    looked: float = -math.inf
    memory: Memory = dataclasses.field(default_factory=Memory)
    observed: Observed | None = None
    status: LoraDpoJobStatus | None = None
    asked: tuple[object, ...] = ()
    at_rest: Version | None = None
    failures: int = 0
    target: progress.Target | None = None


class Service:
    """The jobs, and what is done with them."""

    def __init__(
        self,
        gateway: Gateway,
        settings: Settings,
        instruments: Instruments,
        *,
        clock: reconcile.Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.instruments = instruments
        self._gateway = gateway
        self._clock = clock
        self._monotonic = monotonic
        self._entries: dict[Key, Entry] = {}
        self._schedule = Schedule()
        self._at_work = 0
        self._maintenance: tuple[Node, ...] = ()

    @property
    def gateway(self) -> Gateway:
        """The door to the API server."""
        return self._gateway

    def snapshot(self) -> dict[Key, LoraDpoJobStatus]:
        """Every job's status, for the metrics; may be called from any thread."""
        return {key: entry.status for key, entry in self._entries.copy().items() if entry.status is not None}

    def note(self, raw: dict[str, Any]) -> bool:
        """Remember a job as it was read.

        Returns:
            Whether there may be something to do for it.
        """
        version = _version(raw)
        key = (raw["metadata"]["namespace"], raw["metadata"]["name"])
        entry = self._entry(key)
        if entry.at_rest == version:
            return False
        metadata, status = accept.metadata_of(raw), accept.status_of(raw)
        entry.status = status
        finished = status.phase is not None and status.phase.finished
        expiry = lifetime.expiry_of(raw, status)
        if expiry is not None and self._schedule.time(Turn.LIMIT, key) == math.inf:
            left = max(0.0, (expiry - self._clock()).total_seconds())
            self._schedule.set(Turn.LIMIT, key, self._monotonic() + left)
        to_do = not finished or self.retry_asked(raw) or status.observed_generation != metadata.generation
        entry.at_rest = None if to_do else version
        return to_do

    async def changed(self, key: Key, raw: dict[str, Any]) -> None:
        """Bring a job a step further because it is new or has changed, unless that is the echo of a status write."""
        entry = self._entry(key)
        if self.is_news(raw):
            entry.new = raw if accept.status_of(raw).phase is None else None
            await self.reconcile(key)
        elif entry.observed is not None:
            # Of a job that is at work, somebody else may have written the status.
            await self.reconcile(key, raw)

    def is_news(self, raw: dict[str, Any]) -> bool:
        """Whether a job asks for something that it was not looked at for.

        What is news is remembered as by `note`.
        """
        metadata = accept.metadata_of(raw)
        entry = self._entry((metadata.namespace, metadata.name))
        asked = (metadata.uid, metadata.generation, tuple(sorted(metadata.labels.items())))
        if asked == entry.asked and not self.retry_asked(raw):
            return False
        entry.asked = asked
        return self.note(raw)

    def retry_asked(self, raw: dict[str, Any]) -> bool:
        """Whether a job has failed, and its user asks for another try."""
        metadata, status = accept.metadata_of(raw), accept.status_of(raw)
        return status.phase is JobPhase.FAILED and metadata.retry not in (None, status.retry)

    def capture(self, raw: dict[str, Any]) -> Key | None:
        """Remember how a pod's trainer ended, before its pod is gone.

        Returns:
            The job that it belongs to.
        """
        pod = Pod.model_validate(raw)
        job = pod.metadata.labels.get(names.JOB_LABEL)
        if job is None:
            return None
        key = (pod.metadata.namespace, job)
        end = of_pod(pod)
        if end is not None:
            memory = self._entry(key).memory
            self._entry(key).memory = dataclasses.replace(
                memory, terminations=memory.terminations | {pod.metadata.uid: end}
            )
        return key

    def announce(self, nodes: tuple[Node, ...]) -> None:
        """Remember the nodes whose maintenance is announced; each job sees its own at its next reconcile."""
        self._maintenance = nodes

    def keys(self) -> set[Key]:
        """Every job that is known."""
        return set(self._entries)

    def forget(self, keys: Iterable[Key]) -> None:
        """Forget jobs that are gone, but for those that are being worked on: that will find out by itself."""
        for key in keys:
            if key in self._entries and not self._entries[key].lock.locked():
                self._drop(key)

    async def hear(self, key: Key, raw: dict[str, Any], *, gone: bool) -> None:
        """Bring a job a step further because of a child or pod, unless that has been seen like this already.

        Most of what a watch tells is the echo of what the operator has made or read itself. Soon after a look at the
        job it is only noted down, for the next one.

        Args:
            key: the job.
            raw: the child or pod.
            gone: it was deleted.
        """
        entry = self._entry(key)
        if entry.status is not None and entry.status.phase is JobPhase.SUCCEEDED:
            return
        if gone or entry.failures or self._monotonic() >= entry.looked + SETTLING_SECONDS:
            await self.reconcile(key, None if gone else raw)
        else:
            entry.heard[_version(raw)] = raw
            self._schedule.set(Turn.HEARD, key, _settled_at(entry))

    async def reconcile(self, key: Key, told: Manifest | None = None) -> None:
        """Bring a job a step further; does nothing where another call already waits to.

        Args:
            key: the job.
            told: what it is for as a watch told of it, if it is for that alone.
        """
        self._entry(key).heard[_version(told) if told else None] = told or {}
        await self.take_up(key)

    async def take_up(self, key: Key) -> None:
        """Bring a job a step further whose time has come, or that something was heard of."""
        entry = self._entry(key)
        if self._schedule.time(Turn.LIMIT, key) <= self._monotonic():
            entry.heard[None] = {}
        if entry.queued:
            return
        entry.queued = True
        self.instruments.queue_depth.inc()
        async with entry.lock:
            entry.queued = False
            self.instruments.queue_depth.dec()
            news, entry.heard = entry.heard, {}
            self._schedule.set(Turn.HEARD, key, None)
            if _known(entry, news):
                return
            entry.looked = self._monotonic()
            with self.instruments.reconcile_seconds.time():
                if not await self._add(key, entry, news):
                    await self._reconcile(key, entry)

    def due(self) -> list[Key]:
        """Jobs to take up now: something failed, was heard of, or has reached a limit."""
        now = self._monotonic()
        return list(dict.fromkeys((*self._schedule.due(Turn.LIMIT, now), *self._schedule.due(Turn.HEARD, now))))

    def looks(self) -> list[Key]:
        """Jobs to look at again as soon as there is time, since no watch would tell; those that wait longest first."""
        return self._schedule.due(Turn.LOOK, self._monotonic())

    def polls(self) -> list[Key]:
        """Running jobs whose progress is to be read now, those that have waited longest first."""
        return self._schedule.due(Turn.POLL, self._monotonic())

    async def poll(self, key: Key, pull: Callable[[progress.Target], Any]) -> None:
        """Read a job's progress and tell it.

        Args:
            key: the job.
            pull: reads one report, or raises `ProgressError`.
        """
        entry = self._entries.get(key)
        target = _target(entry.observed) if entry else None
        if entry is None or target is None:
            return
        settings = self.settings
        running = self._schedule.count(Turn.POLL)
        pause = progress.interval(running, shortest=settings.progress_seconds, budget=settings.progress_budget)
        self._schedule.set(Turn.POLL, key, self._monotonic() + pause)
        try:
            outcome = await pull(target)
        except ProgressError as error:
            outcome = error
        self.instruments.progress_pulls.labels("failed" if isinstance(outcome, ProgressError) else "read").inc()
        async with entry.lock:
            if entry.observed is None or _target(entry.observed) != target:
                return
            poll = progress.after(entry.memory.poll, outcome)
            entry.memory = dataclasses.replace(entry.memory, poll=poll)
            await self._tell(key, entry, dataclasses.replace(entry.observed, poll=poll))

    async def _tell(self, key: Key, entry: Entry, observed: Observed) -> None:
        """Write what follows from what is known now: no need to read everything again."""
        try:
            self._keep(key, entry, await reconcile.tell(self._gateway, observed, self._clock))
        except OperatorError as error:
            self._failed(key, entry, error)

    async def _add(self, key: Key, entry: Entry, news: dict[Version | None, Manifest]) -> bool:
        """Add what watches told to what was observed, and tell it.

        Returns:
            False where the job must be looked at.
        """
        if entry.failures or entry.observed is None or None in news:
            return False
        observed = heard.added(entry.observed, news.values())
        if observed is None or plan.actions(observed, self.settings):
            return False
        look = self._schedule.time(Turn.LOOK, key)
        await self._tell(key, entry, dataclasses.replace(observed, poll=entry.memory.poll))
        if look < self._schedule.time(Turn.LOOK, key) < math.inf:
            # A job of which much is told still has its turn.
            self._schedule.set(Turn.LOOK, key, look)
        return True

    async def _reconcile(self, key: Key, entry: Entry) -> None:
        memory = dataclasses.replace(entry.memory, maintenance=self._maintenance)
        # A watch may be late: what it shows of a job that was written to since is old.
        new, entry.new = None if entry.written else entry.new, None
        self._at_work += 1
        alone = self._at_work == 1
        try:
            observed = await reconcile.reconcile(
                self._gateway, key, memory, self.settings, self._clock, new=new, alone=alone
            )
        except OperatorError as error:
            self._failed(key, entry, error)
            return
        finally:
            self._at_work -= 1
        self.instruments.reconciles.labels("ok" if observed else "gone").inc()
        self._keep(key, entry, observed)

    def _keep(self, key: Key, entry: Entry, observed: Observed | None) -> None:
        entry.failures = 0
        if observed is None:
            self._drop(key)
            return
        entry.observed, entry.status = observed, observed.status
        entry.written = entry.written or observed.status.phase is not None
        entry.memory = dataclasses.replace(
            entry.memory, terminations=_recent(entry.memory.terminations, observed.attempt)
        )
        target = _target(observed)
        if target is not None and target != entry.target:
            # Another pod: what the one before said or didn't is no news of this one.
            entry.target = target
            entry.memory = dataclasses.replace(entry.memory, poll=NOT_POLLED)
        self._schedule.set(Turn.LIMIT, key, self._due(observed))
        self._schedule.set(Turn.HEARD, key, _settled_at(entry))
        self._schedule.set(Turn.LOOK, key, self._look_due(observed))
        if target is None or self._schedule.time(Turn.POLL, key) == math.inf:
            self._schedule.set(Turn.POLL, key, None if target is None else self._monotonic())
        if observed.settled:
            entry.observed = None

    def _due(self, observed: Observed) -> float | None:
        """When a limit is reached."""
        now = self._clock()
        limits = (deadlines.next_due(observed, now), lifetime.expires_at(observed))
        waits = [max(0.0, (limit - now).total_seconds()) for limit in limits if limit is not None]
        return self._monotonic() + min(waits) if waits else None

    def _look_due(self, observed: Observed) -> float | None:
        """When to look at what no watch tells of."""
        now = self._clock()
        waits = [self.settings.recheck_seconds] if needs_another_look(observed) else []
        if observed.queued_since is not None:
            # Its turn shows on the child; what it waits for changes ever more slowly.
            waits.append(max(self.settings.recheck_seconds, (now - observed.queued_since).total_seconds() / 2))
        return self._monotonic() + min(waits) if waits else None

    def _failed(self, key: Key, entry: Entry, error: OperatorError) -> None:
        self.instruments.reconciles.labels("failed").inc()
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**entry.failures)
        entry.failures += 1
        entry.written = True
        self._schedule.set(Turn.LIMIT, key, self._monotonic() + pause)
        logger.warning("%s/%s: reconcile failed, next try in %g s: %s", *key, pause, error)

    def _entry(self, key: Key) -> Entry:
        return self._entries.setdefault(key, Entry())

    def _drop(self, key: Key) -> None:
        self._entries.pop(key, None)
        self._schedule.forget(key)


def _version(raw: Manifest) -> Version:
    metadata = raw["metadata"]
    return metadata.get("uid", ""), metadata.get("resourceVersion", "")


def _known(entry: Entry, news: dict[Version | None, Manifest]) -> bool:
    """Whether all of it was there when the job was last looked at, and nothing went wrong then."""
    return not entry.failures and entry.observed is not None and news.keys() <= entry.observed.versions


def _settled_at(entry: Entry) -> float | None:
    """When to take up what was told and not yet seen."""
    return entry.looked + SETTLING_SECONDS if entry.heard and not _known(entry, entry.heard) else None


def needs_another_look(observed: Observed) -> bool:
    """Whether something may change that no watch tells: events on a pod that cannot start, a refusal by quota."""
    if observed.settled:
        return False
    refused = observed.trouble is not None and not observed.trouble.final
    return refused or waiting.watched(observed) is not None


def _recent(terminations: dict[str, Termination], attempt: int) -> dict[str, Termination]:
    """Without those of attempts long past, so that a job that restarts often does not fill the memory."""
    return {uid: end for uid, end in terminations.items() if end.phase is not Phase.TRAIN or end.attempt >= attempt - 1}


def _target(observed: Observed | None) -> progress.Target | None:
    """Whom to ask for progress; None where nobody would answer."""
    if observed is None or not isinstance(observed.verdict, Accepted) or observed.status.phase not in _POLLED:
        return None
    leader = observed.leader
    if leader is None or not leader.alive or leader.status.pod_ip is None:
        return None
    return progress.Target(address=leader.status.pod_ip, run_id=observed.verdict.run_id, attempt=observed.attempt)
