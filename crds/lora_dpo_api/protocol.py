"""What the trainer and the operator promise each other.

The trainer holds no Kubernetes credentials. It speaks in three ways, all of them defined here so that neither side
can drift: an exit code, a termination message (JSON, at most 4,096 bytes: the kubelet cuts longer ones), and a
progress report that rank 0 serves as JSON. The operator treats every one of them as untrusted input: it parses with
these models, and drops what does not fit.
"""

from __future__ import annotations

import datetime
import enum
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

PROGRESS_PORT = 9100
"""Port of rank 0's `/metrics` (Prometheus) and `/status` (JSON)."""

COORDINATOR_PORT = 8476
"""Port of the JAX coordination service, on host 0 of slice 0."""

CONFIG_MOUNT = "/etc/loradpo"
"""Where the ConfigMap with the resolved configuration is mounted, read-only, in every phase."""

CONFIG_FILE = f"{CONFIG_MOUNT}/config.yaml"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_MESSAGE_LIMIT = 4096
STATUS_LIMIT = 64 * 1024
CURVE_POINTS = 32
CLOCK_SKEW = datetime.timedelta(minutes=5)
"""By how much the clocks of two machines may differ."""


class ExitCode(enum.IntEnum):
    """Exit codes of the trainer; the manifests' failure policies are built from them."""

    DONE = 0
    PREEMPTED = 42
    CONFIG = 64
    DATA = 65
    UNREACHABLE = 69
    """A bucket or the hub could not be reached, after 10 minutes of the trainer's own retries."""
    INTERNAL = 70
    """Our bug; the traceback is in the log."""
    OUTPUT_OCCUPIED = 73
    DIVERGED = 76
    CREDENTIALS = 77
    ENVIRONMENT = 78
    """The machine is not what was asked for: no TPU, or another number of devices."""


FATAL_EXIT_CODES = (
    ExitCode.CONFIG,
    ExitCode.DATA,
    ExitCode.OUTPUT_OCCUPIED,
    ExitCode.DIVERGED,
    ExitCode.CREDENTIALS,
    ExitCode.ENVIRONMENT,
)
"""A restart cannot help: the job fails at once."""

CONTRACT_EXIT_CODES = tuple(code for code in ExitCode if code is not ExitCode.DONE)
"""Every code on which a pod's Job fails without a retry of its own (podFailurePolicy FailJob)."""


class Environment(enum.StrEnum):
    """Environment variables that the operator sets in the trainer's pods."""

    PHASE = "LORADPO_PHASE"
    PREPARED_DIGEST = "LORADPO_PREPARED_DIGEST"
    PLATFORM = "LORADPO_PLATFORM"
    """`tpu` or `cpu`: what the trainer must find, else it exits with `ENVIRONMENT`."""
    DEVICES = "LORADPO_DEVICES"
    """How many JAX devices all processes together must see (TPU only)."""
    TPU = "LORADPO_TPU"
    """The slice that the train phase will have, as libtpu calls it, such as `v5e:2x4` (prepare on TPU only)."""
    SLICES = "LORADPO_SLICES"
    HOSTS = "LORADPO_HOSTS_PER_SLICE"
    COORDINATOR = "LORADPO_COORDINATOR"
    """host:port of the JAX coordinator (CPU with several hosts only: on TPU, JAX finds it by itself)."""
    SLICE_INDEX = "LORADPO_SLICE_INDEX"
    """From the annotation jobset.sigs.k8s.io/job-index; the host's own index is JOB_COMPLETION_INDEX."""
    RESTART_ATTEMPT = "LORADPO_RESTART_ATTEMPT"
    """From the annotation jobset.sigs.k8s.io/restart-attempt."""


class Phase(enum.StrEnum):
    """The trainer's phases, each a process of its own."""

    PREPARE = "prepare"
    TRAIN = "train"
    EXPORT = "export"


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be finite: JSON has no NaN; name the metric in nonFinite instead")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
LARGEST_COUNT = 2**53 - 1
"""The largest whole number that every reader of JSON holds exactly."""
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
ShortText = Annotated[str, Field(max_length=1024)]
Name = Annotated[str, Field(max_length=64)]


class Message(BaseModel):
    """Base of everything on the wire: camelCase, frozen, unknown fields ignored (a newer trainer may say more)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def to_json(self) -> str:
        """Serialise without absent fields."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class TrainerState(enum.StrEnum):
    """What rank 0 is doing right now."""

    STARTING = "Starting"
    LOADING = "Loading"
    REFERENCE = "Reference"
    """Computing the reference log-probabilities."""
    COMPILING = "Compiling"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    FINISHED = "Finished"


class Metrics(Message):
    """The last known value of each metric; absent when unknown or not finite.

    The guide's metric names map to these as: dpo_loss → loss, dpo_margin_policy → marginPolicy, dpo_margin_ref →
    marginRef, dpo_accuracy → accuracy, dpo_chosen_reward → chosenReward, dpo_rejected_reward → rejectedReward.
    rewardMargin = chosenReward - rejectedReward.
    """

    loss: Finite | None = None
    margin_policy: Finite | None = None
    margin_ref: Finite | None = None
    reward_margin: Finite | None = None
    accuracy: Finite | None = None
    chosen_reward: Finite | None = None
    rejected_reward: Finite | None = None
    eval_loss: Finite | None = None
    eval_accuracy: Finite | None = None
    learning_rate: Finite | None = None
    grad_norm: Finite | None = None
    tokens_per_second: Finite | None = None
    mfu: Finite | None = None
    parameter_count: Count | None = None
    trainable_parameter_count: Count | None = None
    fraction_trainable: Finite | None = None


class CurvePoint(Message):
    """One thinned point of the training curve."""

    step: Count
    loss: Finite | None = None
    reward_margin: Finite | None = None
    accuracy: Finite | None = None


class Advice(Message):
    """Something a user may want to change, with the guide's own remedy."""

    code: Name
    message: ShortText


class Checkpoint(Message):
    """The newest complete checkpoint."""

    step: Count
    time: AwareDatetime
    path: Annotated[str, Field(max_length=1024)]


class ProgressReport(Message):
    """What rank 0 serves on `/status`."""

    schema_version: Literal[1] = 1
    run_id: Annotated[str, Field(max_length=256)]
    attempt: Count = 0
    state: TrainerState
    state_since: AwareDatetime
    updated_at: AwareDatetime
    step: Count
    """Steps completed."""
    total_steps: Count
    epoch: Finite | None = None
    eta_seconds: Finite | None = None
    resumed_from_step: Count | None = None
    """The step of the checkpoint this attempt started from; absent for a fresh start."""
    metrics: Metrics = Metrics()
    non_finite: Annotated[list[Name], Field(max_length=32)] = []
    """Names of metrics that are NaN or infinite at the last step."""
    curve: Annotated[list[CurvePoint], Field(max_length=CURVE_POINTS)] = []
    last_checkpoint: Checkpoint | None = None
    advice: Annotated[list[Advice], Field(max_length=16)] = []

    def is_from_the_future(self, now: datetime.datetime) -> bool:
        """Whether a time in it is further ahead than clocks differ: what is told later would seem older."""
        times = [self.updated_at, self.state_since]
        times += [self.last_checkpoint.time] if self.last_checkpoint else []
        return max(times) - now > CLOCK_SKEW


class PreparedReport(Message):
    """What `prepare` found out; becomes `status.prepared`."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
    """Content key of the prepared rows; the slice refuses to run on any other."""
    train_pairs: Count
    validation_pairs: Count
    dropped_pairs: Count = 0
    total_steps: Count
    tokens: Count
    """Real tokens in the training rows, each shared prompt counted once."""
    pad_fraction: Finite = 0.0
    longest_pair: Count = 0


class Artifact(Message):
    """Something the job wrote for its user."""

    kind: Name
    """`peft`, `mergedHf`."""
    path: Annotated[str, Field(max_length=1024)]
    step: Count | None = None


class TerminationReport(Message):
    """The termination message of a trainer container, for every phase and every outcome.

    `reason` is CamelCase (e.g. `InvalidRow`, `MissingCredentials`), `message` says what and where, `hint` what to do.
    """

    schema_version: Literal[1] = 1
    phase: Phase
    exit_code: int
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    message: ShortText
    hint: ShortText | None = None
    prepared: PreparedReport | None = None
    progress: ProgressReport | None = None
    """Final progress (without its curve when that would not fit)."""
    artifacts: Annotated[list[Artifact], Field(max_length=8)] = []
    advice: Annotated[list[Advice], Field(max_length=8)] = []

    def to_termination_message(self) -> str:
        """Serialise within `TERMINATION_MESSAGE_LIMIT` bytes, dropping the least important parts first."""
        candidates = (
            self,
            self._without_curve(),
            self._without_curve().model_copy(update={"advice": []}),
            self.model_copy(
                update={
                    "advice": [],
                    "progress": None,
                    "message": self.message[:512],
                    "hint": self.hint[:256] if self.hint else None,
                }
            ),
        )
        for candidate in candidates:
            text = candidate.to_json()
            if len(text.encode()) <= TERMINATION_MESSAGE_LIMIT:
                return text
        minimal = TerminationReport(
            phase=self.phase, exit_code=self.exit_code, reason=self.reason, message=self.message[:256]
        )
        return minimal.to_json()

    def _without_curve(self) -> TerminationReport:
        if self.progress is None:
            return self
        return self.model_copy(update={"progress": self.progress.model_copy(update={"curve": [], "advice": []})})


def utc_now() -> datetime.datetime:
    """The current time, timezone-aware, to the second (as Kubernetes writes times)."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
