"""The operator under load, on a local cluster: bursts, one job at a time, jobs that train, jobs at rest, a scrape.

Rounds are interleaved and medians told. Nothing else should run meanwhile: operator, API server and benchmark share
the processors. Results: lines on the screen, and `build/reports/bench-operator.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.operator import api, burst, peer, rest, running, scrape, usage
from benchmarks.operator.burst import Burst
from benchmarks.operator.usage import Usage
from ldj import install
from ldj.kubectl import Kubectl
from lora_dpo_localcluster import clusters
from lora_dpo_localcluster.provider import Cluster, Shape
from lora_dpo_localcluster.source_provider import SourceCluster

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "reports" / "bench-operator.json"
RESYNC_SECONDS = 20.0
SINGLES = 20
_KEYS = {
    "prepared": ("jobsets_per_second", "single_p50_ms"),
    "fresh": ("fresh_per_second", "single_fresh_p50_ms"),
    "kubeflow": ("kubeflow_jobsets_per_second", "kubeflow_single_p50_ms"),
}
"""Of jobs in a burst, and of one alone."""


def prepared_cluster(name: str) -> tuple[Cluster, Kubectl]:
    """A cluster of one node with the operator of this checkout, and a namespace for the jobs."""
    cluster = clusters.open_cluster(name)
    cluster.up(Shape(nodes=1), print)
    image = cluster.build("operator", ROOT, print)
    cluster.load(image, print)
    kubectl = Kubectl(cluster, install.NAMESPACE)
    install.install(kubectl, ROOT, operator=image.name, trainer="localhost/no-such-trainer:1", trainer_env={})
    kubectl.apply_objects([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": burst.NAMESPACE}}])
    return cluster, kubectl


def scale(kubectl: Kubectl, replicas: int, *settings: str) -> None:
    """Stop or start the operator, and wait for it."""
    if settings:
        kubectl.text(["set", "env", f"deployment/{install.DEPLOYMENT}", *settings])
    kubectl.text(["scale", f"deployment/{install.DEPLOYMENT}", f"--replicas={replicas}"])
    kubectl.text(["rollout", "status", f"deployment/{install.DEPLOYMENT}", "--timeout=120s"], timeout=150)
    deadline = time.monotonic() + 60
    while replicas == 0 and kubectl.objects("pods") and time.monotonic() < deadline:
        time.sleep(0.5)


async def under_load(kubeconfig: Path, jobs: int, rounds: int, *, beside: bool) -> dict[str, Any]:
    """Bursts and single jobs, prepared ones and fresh ones in turn, and those of the peer where it is there."""
    bursts: dict[str, list[tuple[Burst, Usage]]] = collections.defaultdict(list)
    singles: dict[str, list[float]] = collections.defaultdict(list)
    by_hand: list[float] = []
    async with api.connect(kubeconfig) as door:
        # A cluster that was kept may have jobs.
        await burst.clear(door)
        for number in range(rounds):
            if beside:
                alone = [await peer.at_once(door, 1) for _ in range(SINGLES)]
                await peer.clear(door)
                singles["kubeflow"].append(_alone(number, "kubeflow", [one.p50 for one in alone]))
            async with burst.watching(door) as seen:
                for kind in ("prepared", "fresh"):
                    latencies = await burst.one_by_one(door, seen, SINGLES, prepared=kind == "prepared")
                    singles[kind].append(_alone(number, kind, latencies))
            await burst.clear(door)
            if beside:
                async with usage.measured(door) as used:
                    made = await peer.at_once(door, jobs)
                bursts["kubeflow"].append(_told(number, "kubeflow", made, used))
                await peer.clear(door)
            for kind in ("prepared", "fresh"):
                wanted = await burst.named(door, jobs, prepared=kind == "prepared")
                await burst.settled(door)
                async with burst.watching(door) as seen, usage.measured(door) as used:
                    made = await burst.at_once(door, seen, wanted, prepared=kind == "prepared")
                bursts[kind].append(_told(number, kind, made, used))
                if kind == "prepared":
                    await burst.settled(door)
                    by_hand.append(await burst.by_hand(door, jobs))
                    await burst.clear(door, (f"{burst.JOBSETS}?labelSelector={burst.BY_HAND}",))
                await burst.clear(door)
        own = await usage.operator(door)
    return {
        "jobs": jobs,
        "rounds": rounds,
        **_summary(bursts, singles),
        "by_hand_per_second": statistics.median(by_hand),
        "rss_mb_after_bursts": own["process_resident_memory_bytes"] / 1e6,
    }


def _alone(number: int, kind: str, latencies: Sequence[float]) -> float:
    """Milliseconds of a job alone, told."""
    p50 = 1000 * statistics.median(latencies)
    print(f"round {number + 1}, {kind} alone: {p50:.0f} ms", flush=True)
    return p50


def _told(number: int, kind: str, made: Burst, used: Usage) -> tuple[Burst, Usage]:
    print(
        f"round {number + 1}, {kind}: {made.per_second:.1f} jobs/s, p50 {made.p50:.2f} s, "
        f"p99 {made.percentile(0.99):.2f} s; a job takes {_ms(made, used.api_server):.1f} ms of the API server's "
        f"processor time, {_ms(made, used.operator):.1f} ms of the operator's",
        flush=True,
    )
    return made, used


def _ms(made: Burst, seconds: float) -> float:
    return 1000 * seconds / len(made.latencies)


def _summary(
    bursts: Mapping[str, Sequence[tuple[Burst, Usage]]], singles: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Medians over the rounds."""
    found: dict[str, float] = {}
    for kind, (rate, alone) in _KEYS.items():
        if kind in bursts:
            made = bursts[kind]
            found |= {
                rate: statistics.median(one.per_second for one, _ in made),
                alone: statistics.median(singles[kind]),
                f"{kind}_p50_seconds": statistics.median(one.p50 for one, _ in made),
                f"{kind}_p99_seconds": statistics.median(one.percentile(0.99) for one, _ in made),
                f"{kind}_api_server_ms": statistics.median(_ms(one, used.api_server) for one, used in made),
                f"{kind}_operator_ms": statistics.median(_ms(one, used.operator) for one, used in made),
            }
    if "kubeflow" in bursts:
        # Of its jobs, ours has nothing to do.
        del found["kubeflow_operator_ms"]
        found["ratio_kubeflow_burst"] = found["jobsets_per_second"] / found["kubeflow_jobsets_per_second"]
        found["ratio_kubeflow_single"] = found["single_p50_ms"] / found["kubeflow_single_p50_ms"]
    return found


async def while_running(cluster: SourceCluster, jobs: int) -> dict[str, Any]:
    """Jobs that train, on hosts that are not there."""
    running.pose(cluster)
    async with api.connect(cluster.kubeconfig) as door:
        found = await running.measure(door, jobs)
        print(
            f"{jobs} running after {found.until_running:.0f} s: {found.cpu_percent:.1f} % of a core, "
            f"{found.pulls_per_second:.1f} readings of progress a second, {found.rss_mb:.0f} MB",
            flush=True,
        )
        await burst.clear(door)
    return {
        "jobs_running": jobs,
        f"running_cpu_percent_{jobs}": found.cpu_percent,
        f"running_pulls_per_second_{jobs}": found.pulls_per_second,
        f"running_rss_mb_{jobs}": found.rss_mb,
        f"until_running_seconds_{jobs}": found.until_running,
    }


async def at_rest(kubeconfig: Path, kubectl: Kubectl, jobs: int) -> dict[str, Any]:
    """Finished jobs, and an operator that is started among them."""
    async with api.connect(kubeconfig) as door:
        scale(kubectl, 0)
        await rest.fill(door, jobs)
        scale(kubectl, 1, f"LORADPO_RESYNC_SECONDS={RESYNC_SECONDS:g}")
        found = await rest.observe(door, RESYNC_SECONDS)
    print(f"{jobs} at rest: {found.peak_rss_mb:.0f} MB, {found.cpu_percent:.1f} % of a core", flush=True)
    return {
        "jobs_at_rest": jobs,
        f"rss_mb_{jobs}": found.peak_rss_mb,
        f"idle_cpu_percent_{jobs}": found.cpu_percent,
        f"start_seconds_{jobs}": found.start_seconds,
        "idle_resync_seconds": RESYNC_SECONDS,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs in a burst; 0: no burst")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--running", type=int, default=1000, help="jobs that train, posed by KWOK; 0: none")
    parser.add_argument("--at-rest", type=int, default=5000, help="finished jobs; 0: none")
    parser.add_argument("--peer", action="store_true", help="measure Kubeflow Trainer too")
    parser.add_argument("--name", default="bench", help="the cluster's name")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args(arguments)

    scraped = scrape.measure(scrape.running(5000))
    print(f"a scrape of 5000 running jobs: {scraped.cpu_seconds:.2f} s of processor, {scraped.megabytes:.1f} MB")
    report: dict[str, Any] = {"scrape_cpu_seconds_5000": scraped.cpu_seconds, "scrape_mb_5000": scraped.megabytes}
    if options.jobs or options.running or options.at_rest:
        cluster, kubectl = prepared_cluster(options.name)
        try:
            if options.jobs:
                if options.peer:
                    peer.install(cluster)
                report |= asyncio.run(under_load(cluster.kubeconfig, options.jobs, options.rounds, beside=options.peer))
                save(report)
            if options.running and isinstance(cluster, SourceCluster):
                report |= asyncio.run(while_running(cluster, options.running))
                save(report)
            if options.at_rest:
                report |= asyncio.run(at_rest(cluster.kubeconfig, kubectl, options.at_rest))
        finally:
            if not options.keep:
                cluster.down(print)
    save(report)
    print(json.dumps(report, indent=1))


def save(report: Mapping[str, Any]) -> None:
    """Keep what has been measured so far."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
