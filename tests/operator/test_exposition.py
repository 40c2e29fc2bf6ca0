"""What Prometheus reads is what the client library would have written."""

from __future__ import annotations

import math
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lora_dpo_api.protocol import Metrics
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import exposition
from lora_dpo_operator.metrics import Instruments

from .builders import at


def families(written: bytes) -> list[tuple[str, str, str, list[Any]]]:
    found = text_string_to_metric_families(written.decode())
    return [(one.name, one.type, one.documentation, [repr(sample) for sample in one.samples]) for one in found]


def test_it_reads_as_the_librarys_own_text() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("strange", 'A \\ and\na "line".', ("b", "a"), registry=registry)
    for number, value in enumerate((0, -1.5, 1e21, 1e-9, 123456789.25, math.inf, -math.inf)):
        gauge.labels(f'x"{number}\\', "line\nbreak").set(value)
    Gauge("plain", "No labels.", registry=registry).set(3)
    Counter("calls", "Counted.", ("verb",), registry=registry).labels("get").inc(2)
    Histogram("seconds", "Spread.", registry=registry).observe(0.3)
    assert families(exposition.text(registry)) == families(generate_latest(registry))


def test_what_is_not_a_number_is_said_as_prometheus_spells_it() -> None:
    registry = CollectorRegistry()
    Gauge("odd", "Odd.", registry=registry).set(math.nan)
    assert b"odd NaN\n" in exposition.text(registry)


def test_the_labels_of_one_job_are_not_those_of_another() -> None:
    instruments = Instruments()
    jobs = {
        (f"team-{number % 2}", f"job-{number}"): LoraDpoJobStatus(
            phase=JobPhase.RUNNING, step=number, metrics=Metrics(loss=number / 8)
        )
        for number in range(40)
    }
    instruments.lead(lambda: jobs, lambda: at(100))
    ours = [one for one in families(exposition.text(instruments.registry)) if "_job" in one[0]]
    theirs = [one for one in families(generate_latest(instruments.registry)) if "_job" in one[0]]
    assert ours == theirs
    assert len(ours) > 5
