"""The operator's own metrics, and a few of each job.

Those of the jobs are rendered from the live list at every scrape, so that a deleted job's series vanish with it.
Labels are bounded: namespace and name, never a pod or a step.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_dpo_api.status import JobPhase, LoraDpoJobStatus

Key = tuple[str, str]
"""Namespace and name."""

Snapshot = Callable[[], Mapping[Key, LoraDpoJobStatus]]

PREFIX = "loradpo_operator"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_FROM_STATUS: tuple[tuple[str, str, Callable[[LoraDpoJobStatus], float | None]], ...] = (
    ("step", "Steps done.", lambda status: status.step),
    ("total_steps", "Steps in all.", lambda status: status.total_steps),
    ("restarts", "Restarts after crashes.", lambda status: status.restarts),
    ("preemptions", "Restarts after preemptions and maintenance.", lambda status: status.preemptions),
)
_FROM_METRICS = {
    "loss": "DPO loss.",
    "margin_policy": "Policy's log-probability margin.",
    "margin_ref": "Reference's log-probability margin.",
    "reward_margin": "Chosen reward minus rejected reward.",
    "accuracy": "Share of pairs whose policy margin is above the reference's.",
    "chosen_reward": "Implicit reward of chosen answers.",
    "rejected_reward": "Implicit reward of rejected answers.",
    "eval_loss": "DPO loss on the held-out pairs.",
    "eval_accuracy": "Accuracy on the held-out pairs.",
    "learning_rate": "Learning rate.",
    "tokens_per_second": "Real tokens trained on a second.",
    "mfu": "Model FLOPs utilisation, 0 to 1.",
}


class JobCollector(Collector):
    """Gauges of every job, from the live list."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Render the gauges."""
        jobs = self._snapshot()
        yield _counts(jobs.values())
        phases = GaugeMetricFamily(
            f"{PREFIX}_job_phase", "1 for the phase that a job is in.", labels=("namespace", "name", "phase")
        )
        for (namespace, name), status in jobs.items():
            phases.add_metric((namespace, name, (status.phase or JobPhase.PENDING).value), 1)
        yield phases
        for field, help_text, read in _FROM_STATUS:
            yield _family(field, help_text, {key: read(status) for key, status in jobs.items()})
        for field, help_text in _FROM_METRICS.items():
            values = {key: getattr(status.metrics, field, None) for key, status in jobs.items()}
            yield _family(field, help_text, values)


class Instruments:
    """What the operator counts about itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            f"{PREFIX}_reconcile_seconds", "Time of one reconcile.", buckets=_BUCKETS, registry=self.registry
        )
        self.reconciles = Counter(f"{PREFIX}_reconciles", "Reconciles by result.", ("result",), registry=self.registry)
        self.api_calls = Counter(
            f"{PREFIX}_api_calls",
            "Calls to the API server; code 0 means no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.progress_pulls = Counter(
            f"{PREFIX}_progress_pulls", "Readings of a job's progress by result.", ("result",), registry=self.registry
        )
        self.queue_depth = Gauge(f"{PREFIX}_queue_depth", "Jobs that wait to be reconciled.", registry=self.registry)
        self.last_resync = Gauge(
            f"{PREFIX}_last_resync_timestamp_seconds",
            "When all jobs were last read; alert on it, a blind operator answers its probes.",
            registry=self.registry,
        )

    def watch(self, snapshot: Snapshot) -> None:
        """Render the gauges of these jobs too."""
        self.registry.register(JobCollector(snapshot))

    def observe_call(self, verb: str, resource: str, code: int) -> None:
        """Count a call to the API server."""
        self.api_calls.labels(verb, resource, str(code)).inc()


def _counts(statuses: Iterable[LoraDpoJobStatus]) -> Metric:
    counts = collections.Counter(status.phase or JobPhase.PENDING for status in statuses)
    family = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs by phase.", labels=("phase",))
    for phase in JobPhase:
        family.add_metric((phase.value,), counts[phase])
    return family


def _family(field: str, help_text: str, values: Mapping[Key, float | None]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_job_{field}", help_text, labels=("namespace", "name"))
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, value)
    return family
