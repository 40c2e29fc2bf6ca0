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
from collections.abc import Callable
from typing import Any

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import accept, deadlines, lifetime, names, progress, reconcile, waiting
from lora_dpo_operator.errors import OperatorError, ProgressError
from lora_dpo_operator.gateway import Gateway
from lora_dpo_operator.metrics import Instruments, Key
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.observe import Memory
from lora_dpo_operator.observed import NOT_POLLED, Accepted, Observed, Poll
from lora_dpo_operator.pods import Pod
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
        heard: what was heard of since the last one began; None for any other reason to look.
        looked: when that was, by the monotonic clock.
        status: as last read or written; None while the job itself has not been seen, only a child that names it.
        asked: uid, generation and labels of the job as a watch last told of it.
        failures: reconciles that failed since the last good one.
        due: when to look again because something failed, was heard of, or has reached a limit; by the monotonic clock.
        look_due: when to look again at something that no watch tells of.
        poll_due: when to read the progress again.
        target: whom the progress was last read from.
    """

    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    queued: bool = False
    heard: set[Version | None] = dataclasses.field(default_factory=set)
    looked: float = -math.inf
    memory: Memory = dataclasses.field(default_factory=Memory)
    observed: Observed | None = None
    status: LoraDpoJobStatus | None = None
    asked: tuple[object, ...] = ()
    failures: int = 0
    due: float | None = None
    look_due: float | None = None
    poll_due: float = 0.0
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
        metadata, status = accept.metadata_of(raw), accept.status_of(raw)
        entry = self._entry((metadata.namespace, metadata.name))
        entry.status = status
        finished = status.phase is not None and status.phase.finished
        expiry = lifetime.expiry_of(raw, status)
        if expiry is not None and entry.due is None:
            entry.due = self._monotonic() + max(0.0, (expiry - self._clock()).total_seconds())
        return not finished or self.retry_asked(raw) or status.observed_generation != metadata.generation

    async def changed(self, key: Key, raw: dict[str, Any]) -> None:
        """Bring a job a step further because it is new or has changed, unless that is the echo of a status write."""
        if self.is_news(raw):
            await self.reconcile(key)
            return
        entry = self._entry(key)
        # Of a job that is at work, somebody else may have written the status.
        if entry.observed is not None and not entry.observed.settled:
            await self.reconcile(key, _version(raw))

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

    def forget(self, known: set[Key] | None = None, key: Key | None = None) -> None:
        """Forget a job that is gone, or all but the known ones."""
        gone = {key} if key is not None else set(self._entries) - (known or set())
        for job in gone:
            if job in self._entries and not self._entries[job].lock.locked():
                del self._entries[job]

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
        version = _version(raw)
        if gone or entry.failures or self._monotonic() >= entry.looked + SETTLING_SECONDS:
            await self.reconcile(key, None if gone else version)
        else:
            entry.heard.add(version)
            entry.due = self._next_look(entry, entry.due)

    async def reconcile(self, key: Key, heard: Version | None = None) -> None:
        """Bring a job a step further; does nothing where another call already waits to.

        Args:
            key: the job.
            heard: what it is for, if it is for that alone.
        """
        entry = self._entry(key)
        entry.heard.add(heard)
        if entry.queued:
            return
        entry.queued = True
        self.instruments.queue_depth.inc()
        async with entry.lock:
            entry.queued = False
            self.instruments.queue_depth.dec()
            news, entry.heard = entry.heard, set()
            if _known(entry, news):
                return
            entry.looked = self._monotonic()
            with self.instruments.reconcile_seconds.time():
                await self._reconcile(key, entry)

    def due(self) -> list[Key]:
        """Jobs to look at again now: something failed, was heard of, or has reached a limit."""
        now = self._monotonic()
        return [key for key, entry in self._entries.items() if entry.due is not None and entry.due <= now]

    def looks(self) -> list[Key]:
        """Jobs to look at again as soon as there is time, since no watch would tell; those that wait longest first."""
        now = self._monotonic()
        entries = self._entries.items()
        due = [(entry.look_due, key) for key, entry in entries if entry.look_due is not None and entry.look_due <= now]
        return [key for _, key in sorted(due)]

    def polls(self) -> list[Key]:
        """Running jobs whose progress is to be read now, those that have waited longest first."""
        now = self._monotonic()
        due = [key for key in self._running() if self._entries[key].poll_due <= now]
        return sorted(due, key=lambda key: self._entries[key].poll_due)

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
        entry.poll_due = self._monotonic() + progress.interval(
            len(self._running()), shortest=settings.progress_seconds, budget=settings.progress_budget
        )
        try:
            outcome = await pull(target)
        except ProgressError as error:
            outcome = error
        self.instruments.progress_pulls.labels("failed" if isinstance(outcome, ProgressError) else "read").inc()
        async with entry.lock:
            await self._tell(key, entry, target, progress.after(entry.memory.poll, outcome))

    def _running(self) -> list[Key]:
        return [key for key, entry in self._entries.items() if _target(entry.observed) is not None]

    async def _tell(self, key: Key, entry: Entry, target: progress.Target, poll: Poll) -> None:
        """Write what a poll changes, from what was last observed: no need to read everything again."""
        if entry.observed is None or _target(entry.observed) != target:
            return
        entry.memory = dataclasses.replace(entry.memory, poll=poll)
        observed = dataclasses.replace(entry.observed, poll=poll)
        try:
            self._keep(key, entry, await reconcile.tell(self._gateway, observed, self._clock))
        except OperatorError as error:
            self._failed(key, entry, error)

    async def _reconcile(self, key: Key, entry: Entry) -> None:
        namespace, name = key
        memory = dataclasses.replace(entry.memory, maintenance=self._maintenance)
        try:
            observed = await reconcile.reconcile(self._gateway, namespace, name, memory, self.settings, self._clock)
        except OperatorError as error:
            self._failed(key, entry, error)
            return
        self.instruments.reconciles.labels("ok" if observed else "gone").inc()
        self._keep(key, entry, observed)

    def _keep(self, key: Key, entry: Entry, observed: Observed | None) -> None:
        entry.failures, entry.due, entry.look_due = 0, None, None
        if observed is None:
            self._entries.pop(key, None)
            return
        entry.observed, entry.status = observed, observed.status
        entry.memory = dataclasses.replace(
            entry.memory, terminations=_recent(entry.memory.terminations, observed.attempt)
        )
        target = _target(observed)
        if target is not None and target != entry.target:
            # Another pod: what the one before said or didn't is no news of this one.
            entry.target = target
            entry.memory = dataclasses.replace(entry.memory, poll=NOT_POLLED)
        entry.due = self._next_look(entry, self._due(observed))
        entry.look_due = self._look_due(observed)

    def _next_look(self, entry: Entry, due: float | None) -> float | None:
        """When to look again, also at what was heard of and not yet seen."""
        if _known(entry, entry.heard):
            return due
        settled = entry.looked + SETTLING_SECONDS
        return settled if due is None else min(due, settled)

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
        entry.due = self._monotonic() + pause
        logger.warning("%s/%s: reconcile failed, next try in %g s: %s", *key, pause, error)

    def _entry(self, key: Key) -> Entry:
        return self._entries.setdefault(key, Entry())


def _version(raw: dict[str, Any]) -> Version:
    metadata = raw["metadata"]
    return metadata.get("uid", ""), metadata.get("resourceVersion", "")


def _known(entry: Entry, news: set[Version | None]) -> bool:
    """Whether all of it was there when the job was last looked at, and nothing went wrong then."""
    return not entry.failures and entry.observed is not None and news <= entry.observed.versions


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
