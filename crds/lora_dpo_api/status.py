"""The status of a LoraDpoJob: what a user sees at any moment, and what the operator remembers between reconciles."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from lora_dpo_api.protocol import CURVE_POINTS, Advice, Artifact, Checkpoint, Count, CurvePoint, Metrics, PreparedReport

TIMELINE_LIMIT = 64
"""Phases remembered: the first ones are dropped when a job restarts very often."""

CRASHES_LIMIT = 8
"""Crashes remembered."""

Text = Annotated[str, Field(max_length=1024)]
ShortName = Annotated[str, Field(max_length=64)]
ObjectName = Annotated[str, Field(max_length=253)]


class StatusPart(BaseModel):
    """Base of the status: camelCase, frozen; unknown fields are ignored (an older operator reads a newer one's)."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )


class JobPhase(enum.StrEnum):
    """Where a job is, in one word."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    INITIALIZING = "Initializing"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    EXPORTING = "Exporting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def finished(self) -> bool:
        """Whether the job will never change phase again."""
        return self in (JobPhase.SUCCEEDED, JobPhase.FAILED)


class ConditionType(enum.StrEnum):
    """The conditions, in the order in which a job meets them."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    ADMITTED = "Admitted"
    EVICTED = "Evicted"
    QUEUED = "Queued"
    RUNNING = "Running"
    PROGRESS_REACHABLE = "ProgressReachable"
    HEALTHY = "Healthy"
    SUSPENDED = "Suspended"
    MAINTENANCE = "MaintenanceScheduled"
    SIMULATED = "Simulated"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Condition(StatusPart):
    """A Kubernetes condition."""

    type: ShortName
    """Accepted, Prepared, Admitted, Evicted, Queued, Running, ProgressReachable, Healthy, Suspended,
    MaintenanceScheduled, Simulated, Complete or Failed."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    observed_generation: Count = 0
    """Generation of the spec that this speaks of."""
    last_transition_time: AwareDatetime
    """When the status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=128)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """A sentence for people."""


class PhaseTime(StatusPart):
    """One phase that the job was in."""

    phase: JobPhase
    """The phase."""
    started: AwareDatetime
    """When it began."""
    ended: AwareDatetime | None = None
    """When it ended; absent while it lasts."""
    reason: ShortName | None = None
    """Why it began."""


class Failure(StatusPart):
    """Why the job failed, or why its slice last did."""

    class_: Annotated[ShortName, Field(alias="class")]
    """Whose matter it is: Config, Data, Storage, Credentials, Environment, Output, Model, Training, Infrastructure,
    Deadline, Internal."""
    reason: ShortName
    """One word for programs."""
    message: Text
    """What went wrong, and where."""
    phase: ShortName | None = None
    """prepare, train or export."""
    pod: ObjectName | None = None
    """Pod that failed first."""
    node: ObjectName | None = None
    """Node it ran on."""
    exit_code: int | None = None
    """Exit code of its trainer container."""
    hint: Text | None = None
    """What to do."""
    time: AwareDatetime | None = None
    """When."""


class Crash(StatusPart):
    """A crash of the slice."""

    attempt: Count
    """Restarts before it."""
    step: Count | None = None
    """Steps that were done, where it is known."""
    checkpoint_step: Count | None = None
    """Step of the newest checkpoint."""
    exit_code: int
    """Exit code of the trainer that failed first."""
    time: AwareDatetime | None = None
    """When."""


class Disruption(StatusPart):
    """A host that the cluster took away."""

    reason: ShortName
    """Kubernetes' word, such as DeletionByTaintManager."""
    message: Text = ""
    """Kubernetes' sentence."""
    pod: ObjectName
    """Pod of the host."""
    node: ObjectName | None = None
    """Node that was taken."""
    time: AwareDatetime | None = None
    """When."""


class SliceStatus(StatusPart):
    """The hardware that the job asks for, resolved."""

    description: ShortName
    """Such as `v5p 2x2x1` or `cpu`; the printer column."""
    slices: Count = 0
    """Slices."""
    hosts: Count = 0
    """Hosts, over all slices."""
    chips: Count = 0
    """TPU chips, over all slices."""
    ready_hosts: Count = 0
    """Hosts whose trainer is ready."""


class LoraDpoJobStatus(StatusPart):
    """What is known about the job."""

    observed_generation: Count | None = None
    """Generation of the spec that this speaks of."""
    phase: JobPhase | None = None
    """Pending, Preparing, Queued, Initializing, Running, Restarting, Suspended, Exporting, Succeeded or Failed."""
    message: Text | None = None
    """The present state in a sentence, with the next step."""
    timeline: Annotated[list[PhaseTime], Field(max_length=TIMELINE_LIMIT)] = []
    """Each phase with its times."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Conditions by type."""
    run_id: Annotated[str, Field(max_length=320)] | None = None
    """Identity of the run in `output.path`."""
    spec_hash: ShortName | None = None
    """Digest of the spec that the slice was made from."""
    config_map: ObjectName | None = None
    """ConfigMap with the resolved configuration."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Trainer image that this job was started with; an upgrade of the operator leaves it alone."""
    image_digest: Annotated[str, Field(max_length=600)] | None = None
    """The digest that the first pod really ran."""
    model_revision: Annotated[str, Field(max_length=128)] | None = None
    """Commit of the hub model that this job was started with."""
    slice: SliceStatus | None = None
    """The hardware, resolved."""
    prepared: PreparedReport | None = None
    """What prepare found out."""
    trainer_state: ShortName | None = None
    """What rank 0 is doing."""
    step: Count | None = None
    """Steps done."""
    total_steps: Count | None = None
    """Steps in all."""
    progress: Annotated[str, Field(max_length=40)] | None = None
    """step/totalSteps, for the printer column."""
    epoch: float | None = None
    """Passes over the data done."""
    eta: Annotated[str, Field(max_length=16)] | None = None
    """Time left, such as 1h12m."""
    restarts: Count = 0
    """Restarts after crashes."""
    preemptions: Count = 0
    """Restarts after preemptions and maintenance, which do not count towards runPolicy.maxRestarts."""
    steps_lost: Count = 0
    """Steps computed again because no checkpoint held them."""
    crashes: Annotated[list[Crash], Field(max_length=CRASHES_LIMIT)] = []
    """The last crashes of the slice: three in a row without progress end the job."""
    disruption: Disruption | None = None
    """The last host that the cluster took away."""
    reported_attempt: Count | None = None
    """Restarts before the attempt that `step` is of."""
    retry: ShortName | None = None
    """The annotation training.loradpo.dev/retry as it was last seen; another value starts a failed job again."""
    last_checkpoint: Checkpoint | None = None
    """The newest complete checkpoint."""
    last_progress_time: AwareDatetime | None = None
    """When rank 0 last reported."""
    last_step_time: AwareDatetime | None = None
    """When a step was last seen to be done."""
    start_time: AwareDatetime | None = None
    """When the job was accepted."""
    running_since: AwareDatetime | None = None
    """When the slice was first scheduled whole."""
    held_since: AwareDatetime | None = None
    """Since when the slice is held; absent while it is not."""
    active_seconds: Count | None = None
    """Seconds that the slice was held before heldSince, pauses not counted."""
    completion_time: AwareDatetime | None = None
    """When the job finished."""
    metrics: Metrics | None = None
    """Last values, 4 significant digits; those not finite are left out and named in the condition Healthy."""
    curve: Annotated[list[CurvePoint], Field(max_length=CURVE_POINTS)] = []
    """The training curve, thinned."""
    artifacts: Annotated[list[Artifact], Field(max_length=8)] = []
    """What the job wrote for its user."""
    failure: Failure | None = None
    """Why the job failed, or why its slice last did."""
    advice: Annotated[list[Advice], Field(max_length=16)] = []
    """What a user may want to change."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of a type, if the job has it."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
