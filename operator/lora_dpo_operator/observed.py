"""Everything that a decision about one job is made from, read once."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping

from lora_dpo_api import config_file
from lora_dpo_api.config_models import TrainerConfig
from lora_dpo_api.job import LoraDpoJobSpec, Metadata
from lora_dpo_api.notices import Notice
from lora_dpo_api.protocol import Phase, PreparedReport, ProgressReport
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import names
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.objects import EventView, Job, JobSet, condition_true, count_of
from lora_dpo_operator.placement import Placement
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.reasons import FailureClass
from lora_dpo_operator.settings import Settings
from lora_dpo_operator.terminations import TRAINING_STATES, Termination
from lora_dpo_operator.workloads import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """A spec that can run.

    Attributes:
        trainer: the trainer's configuration.
        queue_labels: Kueue's own labels on the job, such as that of a priority class.
        notices: what the user should hear: forced values, guidance.
    """

    spec: LoraDpoJobSpec
    placement: Placement
    trainer: TrainerConfig
    run_id: str
    spec_hash: str
    queue_name: str | None = None
    queue_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

    @functools.cached_property
    def config(self) -> str:
        """The trainer's configuration file. Written when it is asked for: it takes longer than all the rest."""
        return config_file.dumps(self.trainer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    """A spec that cannot run, and why: one sentence for each wrong field."""

    message: str


Verdict = Accepted | Refused

UNREACHABLE_AFTER = 3
"""Failed readings of the progress in a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poll:
    """The last readings of rank 0's progress.

    Attributes:
        report: the last good one.
        failures: readings that failed since.
        error: why the last one failed.
    """

    report: ProgressReport | None = None
    failures: int = 0
    error: str = ""

    @property
    def unreachable(self) -> bool:
        """Whether rank 0 has not answered for a while."""
        return self.failures >= UNREACHABLE_AFTER


NOT_POLLED = Poll()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that the cluster refused.

    Attributes:
        final: it will refuse it every time.
        hint: what to do; may be empty.
    """

    reason: str
    message: str
    final: bool = True
    class_: FailureClass = FailureClass.CONFIG
    hint: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """One job, its children, and what they said.

    Attributes:
        settings: the operator's.
        slice_jobs: the JobSet's Jobs, one a slice.
        workload: what Kueue knows of the child that works now, where Kueue has it.
        terminations: of all pods seen, also of those that are gone.
        warnings: the cluster's own events on what cannot start.
        nodes: the cluster's TPU hosts, read only while a host of the slice has none.
        trouble: what the cluster refused in this reconcile.
        maintenance: nodes of the slice whose maintenance is announced.
    """

    metadata: Metadata
    status: LoraDpoJobStatus
    verdict: Verdict
    settings: Settings = dataclasses.field(default_factory=Settings)
    prepare: Job | None = None
    jobset: JobSet | None = None
    slice_jobs: tuple[Job, ...] = ()
    export: Job | None = None
    workload: Workload | None = None
    pods: tuple[Pod, ...] = ()
    terminations: tuple[Termination, ...] = ()
    poll: Poll = NOT_POLLED
    warnings: tuple[EventView, ...] = ()
    nodes: tuple[Node, ...] = ()
    maintenance: tuple[Node, ...] = ()
    trouble: Trouble | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def retry_asked(self) -> bool:
        """Whether it has failed, and its user asks for another try."""
        asked = self.metadata.retry
        return self.status.phase is JobPhase.FAILED and asked is not None and asked != self.status.retry

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do: it has finished, or another controller runs it."""
        finished = self.status.phase is not None and self.status.phase.finished and not self.retry_asked
        elsewhere = isinstance(self.verdict, Accepted) and self.verdict.spec.managed_by is not None
        return finished or elsewhere

    @property
    def working_child(self) -> Job | JobSet | None:
        """The child whose turn it is."""
        return self.export or self.jobset or self.prepare

    @property
    def versions(self) -> frozenset[tuple[str, str]]:
        """Of the job, and of each child and pod that was read: its uid, and in which version."""
        children = (self.prepare, self.jobset, self.export, *self.slice_jobs, *self.pods)
        read = ((one.metadata.uid, one.metadata.resource_version) for one in children if one is not None)
        return frozenset({(self.metadata.uid, self.metadata.resource_version or ""), *read})

    @property
    def wants_suspension(self) -> bool:
        """Whether the job's user wants it to hold nothing."""
        return isinstance(self.verdict, Accepted) and self.verdict.spec.run_policy.suspend

    def in_queue(self, child: Job | JobSet | None) -> bool:
        """Whether Kueue owns a child's `suspend`.

        Its own label decides: Kueue may have put it there, in a namespace with a default queue. A Workload without
        one is of a Kueue that manages everything.
        """
        if child is None:
            return False
        if names.QUEUE_LABEL in child.metadata.labels:
            return True
        return self.workload is not None and self.workload.metadata.owned_by(child.metadata.uid)

    @property
    def waits_in_queue(self) -> bool:
        """Whether Kueue keeps the child whose turn it is from holding anything."""
        child = self.working_child
        if child is None or child.ended or not child.spec.suspend or self.wants_suspension:
            return False
        return self.in_queue(child)

    @property
    def queued_since(self) -> datetime.datetime | None:
        """When Kueue last stopped that child, or since when it has kept it from starting; None where it doesn't."""
        child = self.working_child
        if child is None or not self.waits_in_queue:
            return None
        if self.workload is not None and self.workload.put_back:
            return self.workload.put_back_at
        evicted = self.workload.evicted if self.workload else None
        since = evicted or condition_true(child.status.conditions, "Suspended")
        return since.last_transition_time if since else child.metadata.creation_timestamp

    @property
    def admitted_at(self) -> datetime.datetime | None:
        """When Kueue last let the child whose turn it is go on; None where it has not."""
        admitted = self.workload.admitted if self.workload else None
        return admitted.last_transition_time if admitted else None

    @property
    def pinned_config_map(self) -> str | None:
        """ConfigMap that the job was started with, if it was."""
        made = self.prepare.metadata.annotations if self.prepare else {}
        return self.status.config_map or made.get(names.CONFIG_MAP_ANNOTATION)

    @property
    def pinned_image(self) -> str | None:
        """Trainer image that the job was started with, if it was."""
        return self.status.image or (self.prepare.image if self.prepare else None)

    @property
    def running_image(self) -> str | None:
        """The pinned image by the digest that its first pod ran, where its node pulled it from that repository."""
        image, digest = self.pinned_image, self.status.image_digest or ""
        repository, at, _ = digest.partition("@")
        if image is None or not at or "@" in image:
            return image
        folder, _, last = image.rpartition("/")
        wanted = "/".join(filter(None, (folder, last.partition(":")[0])))
        return digest if repository == wanted or repository.endswith(f"/{wanted}") else image

    @property
    def prepared(self) -> PreparedReport | None:
        """What prepare found out, from the status or from its pod."""
        if self.status.prepared is not None:
            return self.status.prepared
        reports = (end.report for end in self.ends(Phase.PREPARE) if end.succeeded)
        return next((report.prepared for report in reports if report and report.prepared), None)

    @property
    def attempt(self) -> int:
        """Restarts of the JobSet so far."""
        return self.jobset.status.restarts if self.jobset else 0

    @property
    def known_attempt(self) -> int:
        """Restarts of the JobSet that the status knows of."""
        return max(0, self.status.restarts + self.status.preemptions - sum(self.restarted_before))

    @property
    def restarted_before(self) -> tuple[int, int]:
        """Restarts after crashes, and free ones, of JobSets that someone deleted before the present one was made."""
        found = self.jobset.metadata.annotations if self.jobset else {}
        return count_of(found.get(names.RESTARTS_ANNOTATION)), count_of(found.get(names.PREEMPTIONS_ANNOTATION))

    @property
    def trained(self) -> bool:
        """Whether the slice has done its work."""
        return (
            self.export is not None
            or (self.jobset is not None and self.jobset.completed is not None)
            or any(entry.phase is JobPhase.EXPORTING for entry in self.status.timeline)
        )

    @property
    def training(self) -> bool:
        """Whether this attempt has got to the first step."""
        if self.jobset and self.jobset.completed:
            return True
        was_running = self.status.phase is JobPhase.RUNNING and self.known_attempt == self.attempt
        polled = self.poll.report
        before_a_step = polled and polled.attempt == self.attempt and polled.state not in TRAINING_STATES
        was_running = was_running and not self.starts_anew and not before_a_step
        report = self.progress
        reported = (
            report is not None
            and report.attempt == self.attempt
            and report.state in TRAINING_STATES
            and not self._before_resume(report.updated_at)
        )
        ended = any(end.trained and not self._before_resume(end.finished_at) for end in self.slice_ends)
        return was_running or reported or ended

    @property
    def starts_anew(self) -> bool:
        """Whether rank 0 has yet to start: after someone deleted the slice's Job, also in an attempt that trained."""
        return self.leader is None or not self.leader.started

    def _before_resume(self, time: datetime.datetime | None) -> bool:
        """Whether that was before the job was suspended and resumed, which makes no new attempt of a JobSet."""
        if self._resuming:
            return True
        return self.resumed_at is not None and time is not None and time < self.resumed_at

    @property
    def progress(self) -> ProgressReport | None:
        """The newest report: polled, or left behind by rank 0."""
        left = [end.report.progress for end in self.ends(Phase.TRAIN) if end.report and end.report.progress]
        reports = [report for report in (self.poll.report, *left) if report is not None]
        return max(reports, key=lambda report: report.updated_at, default=None)

    @property
    def slice_pods(self) -> tuple[Pod, ...]:
        """Pods of the slice's present attempt."""
        return tuple(pod for pod in self.pods if pod.phase is Phase.TRAIN and pod.attempt == self.attempt)

    @property
    def slice_ends(self) -> tuple[Termination, ...]:
        """Ended containers of the slice's present attempt."""
        return tuple(end for end in self.ends(Phase.TRAIN) if end.attempt == self.attempt)

    @property
    def resumed_at(self) -> datetime.datetime | None:
        """When the JobSet was last let go on after a suspension."""
        condition = self.jobset.condition("Suspended") if self.jobset else None
        return condition.last_transition_time if condition and condition.status == "False" else None

    @property
    def _resuming(self) -> bool:
        """Whether the JobSet is let go on, and its controller has not done so yet."""
        jobset = self.jobset
        return (
            jobset is not None
            and not jobset.suspended
            and condition_true(jobset.status.conditions, "Suspended") is not None
        )

    @property
    def attempt_started_at(self) -> datetime.datetime | None:
        """When the present attempt began to ask for hosts."""
        if self._resuming:
            return None
        if self.resumed_at is not None:
            return self.resumed_at
        if self.attempt == 0:
            return self.jobset.metadata.creation_timestamp if self.jobset else None
        times = [pod.metadata.creation_timestamp for pod in self.slice_pods]
        return min((time for time in times if time is not None), default=None)

    @property
    def leader(self) -> Pod | None:
        """The pod of rank 0, in its present attempt; of two, the one that is not on its way out."""
        found = [pod for pod in self.slice_pods if pod.slice_index == 0 and pod.host_index == 0]
        return min(found, key=lambda pod: pod.metadata.deletion_timestamp is not None, default=None)

    @property
    def hosts(self) -> int:
        """Hosts of all slices together."""
        return self.verdict.placement.hardware.processes if isinstance(self.verdict, Accepted) else 0

    @property
    def scheduled_whole_at(self) -> datetime.datetime | None:
        """When the last host of the present attempt got its node."""
        times = [pod.scheduled_at for pod in self.slice_pods]
        found = [time for time in times if time is not None]
        return max(found) if found and len(found) == len(times) >= self.hosts else None

    def ends(self, phase: Phase) -> tuple[Termination, ...]:
        """Ended containers of one of the trainer's phases; those of an object that was made anew since are left out."""
        owner = {Phase.PREPARE: self.prepare, Phase.TRAIN: self.jobset, Phase.EXPORT: self.export}[phase]
        since = owner.metadata.creation_timestamp if owner else None
        return tuple(
            end
            for end in self.terminations
            if end.phase is phase and (since is None or end.created_at is None or end.created_at >= since)
        )

    def pods_of(self, phase: Phase) -> tuple[Pod, ...]:
        """Pods of one of the trainer's phases."""
        return tuple(pod for pod in self.pods if pod.phase is phase)
