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
import re
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from benchmarks.operator.api import Api, Object, each
from lora_dpo_api.wire import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_dpo_operator import names

NAMESPACE = "bench"
JOBS = f"/apis/{GROUP}/{VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
OURS = f"?labelSelector={names.MANAGED_BY_LABEL}%3D{names.MANAGER}"
WATCHED = {
    "jobset": f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets{OURS}",
    "prepare": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs{OURS}",
    "config": f"/api/v1/namespaces/{NAMESPACE}/configmaps{OURS}",
}
TIMEOUT = 600.0
AT_REST = 0.25
"""Of a core: an API server of which nobody wants anything uses less."""
_CPU = re.compile(r"^process_cpu_seconds_total (\S+)$", re.MULTILINE)
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


async def at_once(api: Api, seen: Seen, count: int, *, prepared: bool) -> Burst:
    """Send so many jobs, and wait until all are done."""
    run = uuid.uuid4().hex[:6]
    wanted = [f"b{run}-{number:05d}" for number in range(count)]
    sent: dict[str, float] = {}

    async def one(name: str) -> None:
        sent[name] = time.perf_counter()
        await (hand_over(api, name) if prepared else api.send("POST", JOBS, job(name)))

    if prepared:
        await each(wanted, lambda name: prepare(api, job(name)))
    await each(wanted, one)
    parts = ("jobset", "config", "accepted 2") if prepared else ("prepare", "config", "accepted 1")
    await _all(seen, wanted, parts)
    done = {name: max(seen.times[name, part] for part in parts) for name in wanted}
    return Burst(
        per_second=count / (max(done.values()) - min(sent.values())),
        latencies=tuple(sorted(done[name] - sent[name] for name in wanted)),
    )


async def by_hand(api: Api, count: int) -> float:
    """JobSets a second that the API server takes when nobody but the benchmark makes them: what no operator surpasses.

    Args:
        api: where a JobSet of a job is, which is copied.
        count: how many.
    """
    found = await api.send("GET", f"{WATCHED['jobset']}&limit=1")
    pattern, run = found["items"][0], uuid.uuid4().hex[:6]
    path, labels = WATCHED["jobset"].partition("?")[0], {"by-hand": run}

    async def one(number: int) -> None:
        metadata = {"name": f"b{run}-{number:05d}", "labels": labels}
        kind = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet"}
        await api.send("POST", path, kind | {"metadata": metadata, "spec": pattern["spec"]})

    began = time.perf_counter()
    await each(range(count), one)
    took = time.perf_counter() - began
    await clear(api, (f"{path}?labelSelector=by-hand%3D{run}",))
    return count / took


async def one_by_one(api: Api, seen: Seen, count: int, *, prepared: bool) -> tuple[float, ...]:
    """Seconds of so many jobs, each sent a second after the one before is done."""
    rounds = []
    for _ in range(count):
        # Else each runs beside what controllers still do for the one before.
        await asyncio.sleep(1)
        rounds.append(await at_once(api, seen, 1, prepared=prepared))
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
        if not any(found["items"] for found in left) and await _busy(api) < AT_REST:
            return
        await asyncio.sleep(1)
    raise RuntimeError(f"what was made at {paths[0]} does not go, or the cluster does not come to rest")


async def _busy(api: Api) -> float:
    """Of a core, what the API server uses: the controllers go on for a while after what they care for is gone."""
    before = float(_CPU.findall(await api.text("/metrics"))[0])
    await asyncio.sleep(2)
    return (float(_CPU.findall(await api.text("/metrics"))[0]) - before) / 2


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
