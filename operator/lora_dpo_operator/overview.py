"""Which jobs a reader sees first, of how many: filtering, order and pages, for whatever shows them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_dpo_api.status import JobPhase, LoraDpoJobStatus

ORDER = (
    *(JobPhase.RUNNING, JobPhase.RESTARTING, JobPhase.EXPORTING, JobPhase.INITIALIZING, JobPhase.PREPARING),
    *(JobPhase.QUEUED, JobPhase.SUSPENDED, JobPhase.PENDING, JobPhase.FAILED, JobPhase.SUCCEEDED),
)
"""What holds a slice first, what is over last."""

PAGE_SIZE = 50

Key = tuple[str, str]
"""Namespace and name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What a reader asked for.

    Attributes:
        words: part of `namespace/name`; empty means any.
        phase: only this one.
        page: counted from 1.
    """

    words: str = ""
    phase: JobPhase | None = None
    page: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page of jobs.

    Attributes:
        rows: its jobs, in order.
        counts: jobs by phase, of all that the words match.
        found: jobs on all pages together.
        number: which page it is, from 1.
        pages: how many there are, at least 1.
    """

    rows: tuple[tuple[Key, LoraDpoJobStatus], ...]
    counts: Mapping[JobPhase, int]
    found: int
    number: int
    pages: int


def question_of(query: Mapping[str, str]) -> Question:
    """Read a query string; whatever makes no sense counts as not asked."""
    phase, page = query.get("phase", ""), query.get("page", "")
    return Question(
        words=query.get("q", "").strip()[:200],
        phase=JobPhase(phase) if phase in tuple(JobPhase) else None,
        page=int(page) if page.isascii() and page.isdigit() and 0 < len(page) < 7 else 1,
    )


def select(jobs: Mapping[Key, LoraDpoJobStatus], question: Question) -> Page:
    """The page that a reader asked for; the last one where there are fewer."""
    matching = {key: status for key, status in jobs.items() if question.words in "/".join(key)}
    counts = collections.Counter(_phase(status) for status in matching.values())
    chosen = [
        (key, status) for key, status in matching.items() if question.phase is None or _phase(status) is question.phase
    ]
    chosen.sort(key=_place)
    pages = max(1, -(-len(chosen) // PAGE_SIZE))
    number = min(max(1, question.page), pages)
    rows = chosen[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    ordered = {phase: counts[phase] for phase in ORDER if counts[phase]}
    return Page(tuple(rows), ordered, len(chosen), number, pages)


def _phase(status: LoraDpoJobStatus) -> JobPhase:
    return status.phase or JobPhase.PENDING


def _place(job: tuple[Key, LoraDpoJobStatus]) -> tuple[Any, ...]:
    key, status = job
    since = -status.start_time.timestamp() if status.start_time else 0.0
    return ORDER.index(_phase(status)), since, key
