"""Many LoraDpoJobs at once: from sending each until a watch has seen what the operator made of it.

The jobs are suspended, so that no pod starts. A *fresh* job is done when its prepare Job and its ConfigMap have been
seen and its condition Accepted speaks of its generation; a *prepared* one, whose status says what prepare found, when
its JobSet has been seen in place of the prepare Job. A status cannot be sent with a job. So a prepared one belongs to
another controller (`spec.managedBy`) until the benchmark has written that, and is sent by handing it to the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from benchmarks.operator import usage
from benchmarks.operator.api import Api, Object, each
from lora_dpo_api.wire import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_dpo_operator import names

NAMESPACE = "bench"
JOBS = f"/apis/{GROUP}/{VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
OURS = f"?labelSelector={names.MANAGED_BY_LABEL}%3D{names.MANAGER}"
JOBSETS = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"
BY_HAND = "by-hand"
"""Label of the JobSets that the benchmark makes itself."""
WATCHED = {
    "jobset": f"{JOBSETS}{OURS}",
    "prepare": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs{OURS}",
    "config": f"/api/v1/namespaces/{NAMESPACE}/configmaps{OURS}",
}
TIMEOUT = 600.0
AT_REST = 0.25
"""Of a core: an API server of which nobody wants anything uses less."""
PREPARED = {
    "digest": "0123456789abcdef",
    "trainPairs": 1000,
    "validationPairs": 100,
    "totalSteps": 100,
    "tokens": 100_000,
}


@dataclasses.dataclass(frozen=True)
class Burst:
    """One burst.

    Attributes:
        per_second: jobs a second, from the first one sent until the last one done.
        latencies: seconds of each job, in order of size.
    """

    per_second: float
    latencies: tuple[float, ...]

    def percentile(self, share: float) -> float:
        """Seconds within which that share of the jobs was done."""
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    @property
    def p50(self) -> float:
        """The median's seconds."""
        return statistics.median(self.latencies)


class Seen:
    """When what was first seen of which job; of the condition Accepted, when it was first seen of a generation."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], float] = {}

    def child(self, what: str, found: Object, now: float) -> None:
        """A child of a job."""
        self._first(found["metadata"]["labels"].get(names.JOB_LABEL, ""), what, now)

    def job(self, found: Object, now: float) -> None:
        """A job itself, once it is accepted as it is now."""
        generation = found["metadata"]["generation"]
        conditions = found.get("status", {}).get("conditions", [])
        accepted = [one for one in conditions if one["type"] == "Accepted" and one["status"] == "True"]
        if any(one.get("observedGeneration") == generation for one in accepted):
            self._first(found["metadata"]["name"], f"accepted {generation}", now)

    def _first(self, name: str, what: str, now: float) -> None:
        self.times.setdefault((name, what), now)


@contextlib.asynccontextmanager
async def watching(api: Api) -> AsyncIterator[Seen]:
    """Watch jobs and their children."""
    seen = Seen()
    tasks = [asyncio.create_task(api.watch(JOBS, seen.job))]
    for what, path in WATCHED.items():
        tasks.append(asyncio.create_task(api.watch(path, lambda found, now, what=what: seen.child(what, found, now))))
    await asyncio.sleep(1)
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def named(api: Api, count: int, *, prepared: bool) -> list[str]:
    """Names for so many jobs; prepared ones are made, and only to be handed over."""
    run = uuid.uuid4().hex[:6]
    wanted = [f"b{run}-{number:05d}" for number in range(count)]
    if prepared:
        await each(wanted, lambda name: prepare(api, job(name)))
    return wanted


async def at_once(api: Api, seen: Seen, wanted: Sequence[str], *, prepared: bool) -> Burst:
    """Send jobs, and wait until all are done."""
    sent: dict[str, float] = {}

    async def one(name: str) -> None:
        sent[name] = time.perf_counter()
        await (hand_over(api, name) if prepared else api.send("POST", JOBS, job(name)))

    await each(wanted, one)
    parts = ("jobset", "config", "accepted 2") if prepared else ("prepare", "config", "accepted 1")
    await _all(seen, wanted, parts)
    done = {name: max(seen.times[name, part] for part in parts) for name in wanted}
    return Burst(
        per_second=len(wanted) / (max(done.values()) - min(sent.values())),
        latencies=tuple(sorted(done[name] - sent[name] for name in wanted)),
    )


async def by_hand(api: Api, count: int) -> float:
    """JobSets a second that the API server takes when nobody but the benchmark makes them: what no operator surpasses.

    Args:
        api: where a JobSet of a job is, which is copied.
        count: how many.
    """
    found = await api.send("GET", f"{WATCHED['jobset']}&limit=1")
    spec, run = found["items"][0]["spec"], uuid.uuid4().hex[:6]

    async def one(number: int) -> None:
        metadata = {"name": f"b{run}-{number:05d}", "labels": {BY_HAND: "true"}}
        made = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}
        await api.send("POST", JOBSETS, made)

    began = time.perf_counter()
    await each(range(count), one)
    return count / (time.perf_counter() - began)


async def one_by_one(api: Api, seen: Seen, count: int, *, prepared: bool) -> tuple[float, ...]:
    """Seconds of so many jobs, each sent a second after the one before is done."""
    rounds = []
    for _ in range(count):
        # Else each runs beside what controllers still do for the one before.
        await asyncio.sleep(1)
        wanted = await named(api, 1, prepared=prepared)
        rounds.append(await at_once(api, seen, wanted, prepared=prepared))
    return tuple(itertools.chain.from_iterable(found.latencies for found in rounds))


async def prepare(api: Api, made: Object) -> None:
    """Make a job that the operator leaves alone, and write what was found in preparing it."""
    name = made["metadata"]["name"]
    await api.send("POST", JOBS, made | {"spec": made["spec"] | {"managedBy": "kueue.x-k8s.io/multikueue"}})
    body = {"status": {"prepared": PREPARED}}
    await api.send("PATCH", f"{JOBS}/{name}/status", body, kind="merge-patch+json")


async def hand_over(api: Api, name: str) -> None:
    """Give such a job to the operator."""
    await api.send("PATCH", f"{JOBS}/{name}", {"spec": {"managedBy": None}}, kind="merge-patch+json")


async def clear(api: Api, paths: Sequence[str] = (JOBS, *WATCHED.values())) -> None:
    """Delete all of the first path, and wait until nothing of any is left and the cluster has come to rest."""
    # One by one: a thousand that train take longer to go than the API server gives one request.
    found, folder = await api.send("GET", paths[0]), paths[0].partition("?")[0]
    names_found = [item["metadata"]["name"] for item in found["items"]]
    await each(names_found, lambda name: api.send("DELETE", f"{folder}/{name}"))
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        left = [await api.send("GET", path + ("&" if "?" in path else "?") + "limit=1") for path in paths]
        if not any(found["items"] for found in left):
            await settled(api)
            return
        await asyncio.sleep(1)
    raise RuntimeError(f"what was made at {paths[0]} does not go")


async def settled(api: Api) -> None:
    """Wait until the cluster is at rest: controllers go on for a while after what they care for is made or gone."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        before = await usage.api_server(api)
        await asyncio.sleep(2)
        if await usage.api_server(api) - before < 2 * AT_REST:
            return
    raise RuntimeError("the cluster does not come to rest")


def job(name: str) -> Object:
    """A suspended job on a two-host slice."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "initializeFromHf": "gs://models/llama-3.1-8b",
            "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": ["gs://data/prefs.jsonl"]}}}},
            "trainer": {"numTrainSteps": 100, "trainBatchSize": 128},
            "output": {"path": f"gs://runs/{name}"},
            "tpu": {"machineType": "ct5p-hightpu-4t", "topology": "2x2x2"},
            "runPolicy": {"suspend": True},
        },
    }


async def _all(seen: Seen, wanted: Sequence[str], parts: Sequence[str]) -> None:
    missing = {(name, part) for name in wanted for part in parts}
    deadline = time.monotonic() + TIMEOUT
    while missing := {key for key in missing if key not in seen.times}:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RuntimeError(f"{len(missing)} parts of jobs were not made in time, among them {min(missing)}")
        # The times are the watch's own; looking seldom leaves the processor to those who are measured.
        await asyncio.sleep(min(left, 0.05))
