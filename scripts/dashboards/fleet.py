"""The dashboard Fleet: who waits, who holds chips, what comes of it."""

from __future__ import annotations

from scripts.dashboards.board import Board, Panel, Query, Row, Variable, View

_JOBS = 'namespace=~"$namespace", name=~"$job"'
_HOLDING = "Initializing|Running|Restarting"


def _job(metric: str, labels: str = "") -> str:
    return f"loradpo_operator_job_{metric}{{{_JOBS}{labels}}}"


def _ever(metric: str, label: str, choice: str = "") -> str:
    """Largest value in the chosen time, also of jobs that are gone; once a job, whichever pod the operator was."""
    return f"max by (namespace, name, {label}) (max_over_time({_job(metric, choice)}[$__range]))"


def _by_outcome(metric: str) -> str:
    """The same of every job, of those that ended only as what they became."""
    ended, active = (_ever(metric, "outcome", f', outcome{is_}"Active"') for is_ in ("!=", "="))
    return f"({ended} or ({active} unless on (namespace, name) {ended}))"


_BY_PHASE = Panel(
    title="Jobs by phase",
    description="How many jobs are in each phase.",
    unit="none",
    decimals=0,
    low=0,
    view=View.STACKED,
    width=16,
    queries=(Query(f"sum by (phase) ({_job('phase')})", "{{phase}}"),),
    base="blue",
    thresholds=((1000, "orange"),),
)
_NOW = Panel(
    title="Jobs now",
    description="The same, at the end of the chosen time.",
    unit="none",
    view=View.BARS,
    queries=(Query(f"sum by (phase) ({_job('phase')})", "{{phase}}"),),
    base="blue",
    thresholds=((1000, "orange"),),
)
_QUEUE = Panel(
    title="Queue time",
    description="Time that jobs have spent in the phase Queued, over the jobs that exist: half of them waited less "
    "than the median. After an hour LoraDpoJobWaitsLong fires.",
    unit="s",
    low=0,
    queries=(
        Query(f"quantile(0.5, {_job('queued_seconds')})", "median"),
        Query(f"quantile(0.9, {_job('queued_seconds')})", "90 %"),
        Query(f"max({_job('queued_seconds')})", "longest"),
    ),
    thresholds=((1800, "orange"), (3600, "red")),
)
_FIRST_STEP = Panel(
    title="Time to first step",
    description="From the creation of a job to its first step: preparation, queue, start of the hosts, loading and "
    "compiling. Over the jobs that exist and got there.",
    unit="s",
    low=0,
    queries=(
        Query(f"quantile(0.5, {_job('first_step_seconds')})", "median"),
        Query(f"quantile(0.9, {_job('first_step_seconds')})", "90 %"),
    ),
    thresholds=((1800, "orange"), (7200, "red")),
)
_CHIPS = Panel(
    title="TPU chips held",
    description="Chips of the slices that are held right now: jobs Initializing, Running or Restarting.",
    unit="none",
    decimals=0,
    low=0,
    view=View.STACKED,
    queries=(
        Query(
            f"sum by (namespace) ({_job('chips')} and on (namespace, name) "
            f"{_job('phase', f', phase=~"{_HOLDING}"')} == 1)",
            "{{namespace}}",
        ),
    ),
    base="blue",
    thresholds=((1024, "orange"),),
)
_CHIP_HOURS = Panel(
    title="Chip-hours by namespace and outcome",
    description="TPU chips times the hours that their slices were held, over the whole life of every job seen in the "
    "chosen time, deleted ones included. A job made anew under the same name counts once, with the larger value.",
    unit="short",
    view=View.BARS,
    queries=(
        Query(
            f"sum by (namespace, outcome) {_by_outcome('chip_seconds')} / 3600",
            "{{namespace}} {{outcome}}",
        ),
    ),
    base="blue",
    thresholds=((10_000, "orange"),),
)
_GOODPUT = Panel(
    title="Goodput",
    description="Useful step seconds divided by slice-held seconds. Useful: time in the phase Running, less the share "
    "of steps that were computed again after a restart. Held: Initializing, Running and Restarting.",
    unit="percentunit",
    low=0,
    high=1,
    queries=(
        Query(f"sum({_job('useful_seconds')}) / sum({_job('slice_held_seconds')} > 0)", "all"),
        Query(
            f"sum by (namespace) ({_job('useful_seconds')}) / sum by (namespace) ({_job('slice_held_seconds')} > 0)",
            "{{namespace}}",
        ),
    ),
    base="red",
    thresholds=((0.5, "orange"), (0.8, "green")),
)
_FAILURES = Panel(
    title="Failures by class",
    description="Jobs that have failed in the chosen time, deleted ones included, by whose matter it was: Config, "
    "Data, Storage, Credentials, Environment, Output, Model, Training, Infrastructure, Deadline or Internal.",
    unit="none",
    decimals=0,
    view=View.BARS,
    queries=(Query(f"sum by (class) ({_ever('failure', 'class')})", "{{class}}"),),
    thresholds=((1, "orange"), (10, "red")),
)
_PREEMPTIONS = Panel(
    title="Preemptions and crashes",
    description="Restarts of slices within an hour: taken away by the cloud, or ended by themselves.",
    unit="none",
    low=0,
    queries=(
        Query(f"sum(increase({_job('preemptions')}[1h]))", "preemptions"),
        Query(f"sum(increase({_job('restarts')}[1h]))", "crashes"),
    ),
    thresholds=((3, "orange"), (10, "red")),
)
_LOST = Panel(
    title="Steps lost",
    description="Steps that were computed again because no checkpoint held them, over the jobs that exist.",
    unit="none",
    decimals=0,
    low=0,
    queries=(Query(f"sum by (namespace) ({_job('steps_lost')})", "{{namespace}}"),),
    thresholds=((100, "orange"), (1000, "red")),
)

BOARD = Board(
    uid="lora-dpo-fleet",
    title="LoRA-DPO / Fleet",
    description="All LoraDpoJobs of a cluster: phases, waiting, chip-hours, goodput and failures.",
    variables=(
        Variable("namespace", "Namespace", "label_values(loradpo_operator_job_phase, namespace)"),
        Variable("job", "Job", 'label_values(loradpo_operator_job_phase{namespace=~"$namespace"}, name)'),
    ),
    rows=(
        Row("Jobs", (_BY_PHASE, _NOW)),
        Row("Waiting", (_QUEUE, _FIRST_STEP)),
        Row("Chips", (_CHIPS, _CHIP_HOURS, _GOODPUT)),
        Row("Trouble", (_FAILURES, _PREEMPTIONS, _LOST)),
    ),
    since="now-24h",
    refresh="1m",
)
