"""Thousands of finished jobs: what the operator that only reads them now and then needs of memory and processor."""

from __future__ import annotations

import asyncio
import dataclasses
import time

from benchmarks.operator import burst, usage
from benchmarks.operator.api import Api, each

RESYNCS = 3
SCRAPE_SECONDS = 15
"""As often as a Prometheus asks; each answer tells of all jobs, and costs more than all else that is done at rest."""


@dataclasses.dataclass(frozen=True)
class Rest:
    """An operator at rest.

    Attributes:
        peak_rss_mb: the most memory seen, from its start on.
        cpu_percent: of one core, between resyncs and over them alike.
        start_seconds: from its start until all jobs were read.
    """

    peak_rss_mb: float
    cpu_percent: float
    start_seconds: float


async def fill(api: Api, count: int) -> None:
    """Make finished jobs; the operator should be away, or it would begin to work on them."""

    async def one(name: str) -> None:
        made = await api.send("POST", burst.JOBS, burst.job(name))
        status = {
            "phase": "Succeeded",
            "observedGeneration": made["metadata"]["generation"],
            "message": "The adapter is trained, verified and exported",
            "completionTime": "2026-01-01T12:00:00Z",
            "metrics": {"loss": 0.42, "accuracy": 0.81, "rewardMargin": 1.7},
        }
        await api.send("PATCH", f"{burst.JOBS}/{name}/status", {"status": status}, kind="merge-patch+json")

    await each((f"done-{number:05d}" for number in range(count)), one)


async def observe(api: Api, resync_seconds: float) -> Rest:
    """Watch an operator that was started just now for a few resyncs."""
    found: dict[str, float] = {}
    while not found.get("last_resync_timestamp_seconds"):
        await asyncio.sleep(1)
        found = await usage.operator(api)
    start = found["last_resync_timestamp_seconds"] - found["process_start_time_seconds"]
    peak = found["process_resident_memory_bytes"]
    # Kopf's own first look at every job is work of the start too.
    await asyncio.sleep(resync_seconds)
    before, began = await usage.operator(api), time.monotonic()
    while time.monotonic() - began < RESYNCS * resync_seconds:
        await asyncio.sleep(SCRAPE_SECONDS)
        found = await usage.operator(api)
        peak = max(peak, found["process_resident_memory_bytes"])
    used = found[usage.CPU] - before[usage.CPU]
    return Rest(peak_rss_mb=peak / 1e6, cpu_percent=100 * used / (time.monotonic() - began), start_seconds=start)
