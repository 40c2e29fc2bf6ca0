"""The operator's own metrics, and a few of each job.

Those of the jobs are rendered from the live list at every scrape, so that a deleted job's series vanish with it.
Labels are bounded: namespace and name, never a pod, a step or a text. `docs/metrics.md` lists them all.
"""

from __future__ import annotations

import collections
import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import accounting
from lora_dpo_operator.accounting import Account
from lora_dpo_operator.reasons import FailureClass

Key = tuple[str, str]
"""Namespace and name."""

Snapshot = Callable[[], Mapping[Key, LoraDpoJobStatus]]
Clock = Callable[[], datetime.datetime]

PREFIX = "loradpo_operator"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_FROM_STATUS: tuple[tuple[str, str, Callable[[LoraDpoJobStatus], float | None]], ...] = (
    ("step", "Steps done.", lambda status: status.step),
    ("total_steps", "Steps in all.", lambda status: status.total_steps),
    ("restarts", "Restarts after crashes.", lambda status: status.restarts),
    ("preemptions", "Restarts after preemptions and maintenance.", lambda status: status.preemptions),
    ("steps_lost", "Steps computed again because no checkpoint held them.", lambda status: status.steps_lost),
    ("chips", "TPU chips of the slice.", lambda status: status.slice.chips if status.slice else None),
    (
        "last_checkpoint_timestamp_seconds",
        "When the newest checkpoint was complete.",
        lambda status: status.last_checkpoint.time.timestamp() if status.last_checkpoint else None,
    ),
    (
        "maintenance_scheduled",
        "1 while the maintenance of a host of the slice is announced or under way.",
        lambda status: 1 if _maintenance(status) else None,
    ),
    (
        "completion_timestamp_seconds",
        "When the job succeeded or failed.",
        lambda status: status.completion_time.timestamp() if status.completion_time else None,
    ),
)
_FROM_ACCOUNT: tuple[tuple[str, str, Callable[[Account], float | None]], ...] = (
    ("queued_seconds", "Seconds spent in the phase Queued.", lambda account: account.queued),
    (
        "first_step_seconds",
        "Seconds from the creation of the job to its first step.",
        lambda account: account.to_first_step,
    ),
    (
        "slice_held_seconds",
        "Seconds in the phases Initializing, Running and Restarting, in which the slice is held.",
        lambda account: account.held,
    ),
    (
        "useful_seconds",
        "Seconds in the phase Running, less the share of steps that were computed again. Goodput is this divided by "
        "slice_held_seconds.",
        lambda account: account.useful,
    ),
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
}
_SPEEDS = {
    "learning_rate": "Learning rate.",
    "grad_norm": "Global norm of the adapter's gradient before clipping.",
    "tokens_per_second": "Real tokens trained on a second.",
    "mfu": "Model FLOPs utilisation, 0 to 1.",
}


class JobCollector(Collector):
    """Gauges of every job, from the live list."""

    def __init__(self, snapshot: Snapshot, clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Render the gauges."""
        jobs = self._snapshot()
        now = self._clock()
        # One dictionary for all series of a job: `exposition` then writes the labels once.
        labels = {key: {"namespace": key[0], "name": key[1]} for key in jobs}
        accounts = {key: accounting.of(status, now) for key, status in jobs.items()}
        yield _counts(jobs.values())
        yield _labelled(
            "phase", "1 for the phase that a job is in.", "phase", {key: (_phase(job), 1) for key, job in jobs.items()}
        )
        yield _labelled(
            "failure",
            "1 for the class of a failed job's failure.",
            "class",
            {key: (_failure_class(job), 1) for key, job in jobs.items() if job.phase is JobPhase.FAILED},
        )
        yield _labelled(
            "chip_seconds",
            "TPU chips times the seconds that the slice was held, by how the job ended.",
            "outcome",
            {key: (account.outcome.value, account.chip) for key, account in accounts.items()},
        )
        for field, help_text, read in _FROM_STATUS:
            yield _family(field, help_text, labels, {key: read(status) for key, status in jobs.items()})
        for field, help_text, take in _FROM_ACCOUNT:
            yield _family(field, help_text, labels, {key: take(account) for key, account in accounts.items()})
        for field, help_text in _FROM_METRICS.items():
            values = {key: getattr(status.metrics, field, None) for key, status in jobs.items()}
            yield _family(field, help_text, labels, values)
        # A finished job has results, and no speed any more.
        active = {key: status for key, status in jobs.items() if not (status.phase and status.phase.finished)}
        for field, help_text in _SPEEDS.items():
            values = {key: getattr(status.metrics, field, None) for key, status in active.items()}
            yield _family(field, help_text, labels, values)


class Instruments:
    """What the operator counts about itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self.registry)
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
            "When all jobs were last read; alert on it, a blind operator answers its probes. Of the leader alone.",
            registry=None,
        )
        self.leader = Gauge(
            f"{PREFIX}_leader", "1 where this replica works, 0 where it stands by.", registry=self.registry
        )

    def lead(self, snapshot: Snapshot, clock: Clock) -> None:
        """Render the gauges of these jobs too; phases that last end now, by the clock.

        A replica that stands by must not: it reads no jobs, and sums over replicas would count each twice.
        """
        self.leader.set(1)
        self.registry.register(self.last_resync)
        self.registry.register(JobCollector(snapshot, clock))

    def observe_call(self, verb: str, resource: str, code: int) -> None:
        """Count a call to the API server."""
        self.api_calls.labels(verb, resource, str(code)).inc()


def _maintenance(status: LoraDpoJobStatus) -> bool:
    found = status.condition(ConditionType.MAINTENANCE)
    return found is not None and found.status == "True"


def _phase(status: LoraDpoJobStatus) -> str:
    return (status.phase or JobPhase.PENDING).value


def _failure_class(status: LoraDpoJobStatus) -> str:
    """One of the known classes: a status may be written by a newer operator, or by hand."""
    written = status.failure.class_ if status.failure else ""
    return written if written in tuple(FailureClass) else FailureClass.INTERNAL.value


def _counts(statuses: Iterable[LoraDpoJobStatus]) -> Metric:
    counts = collections.Counter(status.phase or JobPhase.PENDING for status in statuses)
    family = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs by phase.", labels=("phase",))
    for phase in JobPhase:
        family.add_metric((phase.value,), counts[phase])
    return family


def _family(
    field: str, help_text: str, labels: Mapping[Key, dict[str, str]], values: Mapping[Key, float | None]
) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_job_{field}", help_text, labels=("namespace", "name"))
    family.samples = [Sample(family.name, labels[key], value) for key, value in values.items() if value is not None]
    return family


def _labelled(field: str, help_text: str, label: str, values: Mapping[Key, tuple[str, float]]) -> Metric:
    """A gauge with one more label, whose values are few and known."""
    family = GaugeMetricFamily(f"{PREFIX}_job_{field}", help_text, labels=("namespace", "name", label))
    for key, (text, value) in values.items():
        family.add_metric((*key, text), value)
    return family
