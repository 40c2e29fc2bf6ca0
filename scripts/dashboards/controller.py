"""The dashboard Operator: whether the operator keeps up."""

from __future__ import annotations

from scripts.dashboards.board import Board, Panel, Query, Row, Variable, View

_OPERATORS = 'namespace=~"$namespace", job=~"$job"'


def _own(metric: str, labels: str = "") -> str:
    return f"loradpo_operator_{metric}{{{_OPERATORS}{labels}}}"


def _rate(metric: str, labels: str = "") -> str:
    return f"rate({_own(metric, labels)}[$__rate_interval])"


def _latency(quantile: float) -> Query:
    expression = f"histogram_quantile({quantile}, sum by (le) ({_rate('reconcile_seconds_bucket')}))"
    return Query(expression, f"{quantile:.0%}")


_RESYNC = Panel(
    title="Last reading of all jobs",
    description="Age of the last good listing of all jobs. After half an hour LoraDpoOperatorBlind fires.",
    unit="s",
    low=0,
    queries=(Query(f"time() - {_own('last_resync_timestamp_seconds')}", "{{pod}}"),),
    thresholds=((600, "orange"), (1800, "red")),
)
_JOBS = Panel(
    title="Jobs known",
    description="Jobs that the operator serves, by phase.",
    unit="none",
    decimals=0,
    low=0,
    view=View.STACKED,
    queries=(Query(f"sum by (phase) ({_own('jobs')})", "{{phase}}"),),
    base="blue",
    thresholds=((5000, "orange"),),
)
_DEPTH = Panel(
    title="Queue depth",
    description="Jobs that wait to be reconciled. It returns to 0 within seconds unless the API server is slow.",
    unit="none",
    decimals=0,
    low=0,
    queries=(Query(f"sum by (pod) ({_own('queue_depth')})", "{{pod}}"),),
    thresholds=((100, "orange"), (1000, "red")),
)
_LATENCY = Panel(
    title="Reconcile latency",
    description="Time of one reconcile, calls to the API server included.",
    unit="s",
    low=0,
    queries=(_latency(0.5), _latency(0.9), _latency(0.99)),
    thresholds=((1, "orange"), (10, "red")),
)
_RECONCILES = Panel(
    title="Reconciles by result",
    description="ok; gone: the job was deleted meanwhile; failed: tried again with a growing pause; error: a bug, "
    "with its traceback in the log.",
    unit="ops",
    low=0,
    queries=(Query(f"sum by (result) ({_rate('reconciles_total')})", "{{result}}"),),
    thresholds=((100, "orange"),),
)
_ERRORS = Panel(
    title="Reconciles that fail",
    description="Share of reconciles that failed. Above 10 % LoraDpoReconcileErrors fires.",
    unit="percentunit",
    low=0,
    queries=(
        Query(
            f"(sum({_rate('reconciles_total', ', result=~"failed|error"')}) or vector(0)) "
            f"/ sum({_rate('reconciles_total')})",
            "failed",
        ),
    ),
    thresholds=((0.01, "orange"), (0.1, "red")),
)
_CALLS = Panel(
    title="API calls by verb and code",
    description="Calls of reconciles to the API server; watches are not among them. Code 0: no answer.",
    unit="reqps",
    low=0,
    queries=(Query(f"sum by (verb, code) ({_rate('api_calls_total')})", "{{verb}} {{code}}"),),
    thresholds=((100, "orange"),),
)
_RESOURCES = Panel(
    title="API calls by resource",
    description="The same calls, by what they asked for.",
    unit="reqps",
    low=0,
    queries=(Query(f"sum by (resource) ({_rate('api_calls_total')})", "{{resource}}"),),
    thresholds=((100, "orange"),),
)
_PULLS = Panel(
    title="Readings of progress",
    description="Readings of rank 0's progress by result. Failed ones belong to jobs with ProgressReachable=False: a "
    "NetworkPolicy, or a trainer that hangs.",
    unit="reqps",
    low=0,
    queries=(Query(f"sum by (result) ({_rate('progress_pulls_total')})", "{{result}}"),),
    thresholds=((20, "orange"),),
)
_MEMORY = Panel(
    title="Memory",
    description="Resident memory of the operator's process; the chart's default limit is 256 MiB.",
    unit="bytes",
    low=0,
    queries=(Query(f"{_own('process_resident_memory_bytes')}", "{{pod}}"),),
    thresholds=((200 * 2**20, "orange"), (256 * 2**20, "red")),
)
_CPU = Panel(
    title="Processor",
    description="Cores that the operator's process uses; it can use no more than about one.",
    unit="none",
    decimals=3,
    low=0,
    queries=(Query(f"{_rate('process_cpu_seconds_total')}", "{{pod}}"),),
    thresholds=((0.5, "orange"), (0.9, "red")),
)
_STARTED = Panel(
    title="Uptime",
    description="Time since the operator's process started.",
    unit="s",
    low=0,
    queries=(Query(f"time() - {_own('process_start_time_seconds')}", "{{pod}}"),),
    base="orange",
    thresholds=((300, "green"),),
)

BOARD = Board(
    uid="lora-dpo-operator",
    title="LoRA-DPO / Operator",
    description="The operator itself: reconciles, calls to the API server, resync and memory.",
    variables=(
        Variable(
            "namespace",
            "Operator's namespace",
            "label_values(loradpo_operator_last_resync_timestamp_seconds, namespace)",
        ),
        Variable(
            "job",
            "Scrape job",
            'label_values(loradpo_operator_last_resync_timestamp_seconds{namespace=~"$namespace"}, job)',
        ),
    ),
    rows=(
        Row("Keeping up", (_RESYNC, _DEPTH, _JOBS)),
        Row("Reconciles", (_LATENCY, _RECONCILES, _ERRORS)),
        Row("Calls", (_CALLS, _RESOURCES, _PULLS)),
        Row("Process", (_MEMORY, _CPU, _STARTED)),
    ),
)
