"""Which fields of a job may change when.

Before anything was made for it (phase Pending: it waits for the operator, or was not accepted) a job may change freely.
While it runs only its pause, deadlines and lifetime may; while it is suspended or has failed everything may but what
the run *is*: model, data, adapter, objective and output. The trainer compares the same fields with what is in
`output.path`, and would refuse another value after the job had been resumed. Labels and annotations are never part of
the spec.

The rules stand in an admission policy: in the CRD itself the API server refuses to compare whole objects, for it bounds
the cost of a rule before it has seen a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from lora_dpo_api.job import LoraDpoJobSpec
from lora_dpo_api.spec_running import RunPolicy

IDENTITY = (
    "initializeFromHf",
    "revision",
    "data",
    "trainSeqLen",
    "validationSplitFraction",
    "trainer",
    "optimizer",
    "lora",
    "beta",
    "loss",
    "adapter",
    "reference",
    "output",
    "runId",
    "managedBy",
)
"""What makes a run that run: its checkpoints fit no other."""

ALWAYS_MUTABLE = ("suspend", "startupTimeout", "activeDeadline", "queueTimeout", "ttlAfterFinished")
"""Fields of `spec.runPolicy` that may change at any time."""

STARTED = "has(oldObject.status) && has(oldObject.status.phase) && oldObject.status.phase != 'Pending'"
SUSPENDED = "oldObject.spec.?runPolicy.?suspend.orValue(false) || oldObject.?status.?phase.orValue('') == 'Failed'"


@dataclass(frozen=True, slots=True)
class ChangeRule:
    """A rule about a change.

    Attributes:
        cel: over `object` and `oldObject`.
        path: the field.
        message: what is allowed.
    """

    cel: str
    path: str
    message: str


def rules() -> tuple[ChangeRule, ...]:
    """One rule for each field of the spec."""
    fields = [to_camel(name) for name in LoraDpoJobSpec.model_fields]
    settings = [field for field in fields if field not in (*IDENTITY, "runPolicy")]
    policies = [to_camel(name) for name in RunPolicy.model_fields]
    kept = [f"runPolicy.?{field}" for field in policies if field not in ALWAYS_MUTABLE]
    return (
        *(_never(field) for field in IDENTITY),
        *(_while_suspended(field, [field]) for field in settings),
        _while_suspended("runPolicy", kept, but=f" (except {', '.join(ALWAYS_MUTABLE)})"),
    )


def _never(field: str) -> ChangeRule:
    return ChangeRule(
        f"!({STARTED}) || ({_same([field])})",
        f"spec.{field}",
        "cannot change once the job has started: its checkpoints fit no other run. Make another job with another "
        "output.path",
    )


def _while_suspended(field: str, paths: list[str], but: str = "") -> ChangeRule:
    return ChangeRule(
        f"!({STARTED}) || {SUSPENDED} || ({_same(paths)})",
        f"spec.{field}",
        f"cannot change while the job runs{but}. Set runPolicy.suspend to true, change it, and resume",
    )


def _same(paths: list[str]) -> str:
    return " && ".join(f"object.spec.?{path} == oldObject.spec.?{path}" for path in paths)
