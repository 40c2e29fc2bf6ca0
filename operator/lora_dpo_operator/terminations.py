"""What a trainer container left behind when it ended.

JobSet deletes the pods of a failed slice at once, so this is captured from the pod's last event, before anything else.
The termination message is untrusted input: what does not parse is kept as plain text for people, and nothing more.
"""

from __future__ import annotations

import dataclasses
import datetime

from pydantic import ValidationError

from lora_dpo_api.protocol import ExitCode, Phase, TerminationReport, TrainerState
from lora_dpo_operator.pods import Pod, Terminated

_COLLATERAL = (134, 143)
"""SIGABRT is how JAX ends a host whose peer is gone; SIGTERM came from outside."""

TEXT_LIMIT = 512

TRAINING_STATES = (TrainerState.TRAINING, TrainerState.EVALUATING, TrainerState.SAVING, TrainerState.FINISHED)
"""States of rank 0 from the first step on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Termination:
    """The end of one trainer container.

    Attributes:
        job_uid: the LoraDpoJob that it worked for.
        attempt: restart attempt of the JobSet; 0 for prepare and export.
        reason: the kubelet's word, such as `OOMKilled`.
        text: the end of the message, where it is not a report.
        exit_code: None where the pod went with its node, and nobody knows.
        disruption: why the cluster took the pod away; empty where it did not.
    """

    pod: str
    uid: str
    job_uid: str
    phase: Phase
    exit_code: int | None
    node: str | None = None
    attempt: int = 0
    slice_index: int = 0
    host_index: int = 0
    reason: str = ""
    text: str = ""
    disruption: str = ""
    disruption_message: str = ""
    disrupted_at: datetime.datetime | None = None
    created_at: datetime.datetime | None = None
    started_at: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None
    report: TerminationReport | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the container did all it had to."""
        return self.exit_code == ExitCode.DONE

    @property
    def preempted(self) -> bool:
        """Whether it ended because its host was taken away: nobody's failure."""
        return self.exit_code == ExitCode.PREEMPTED or bool(self.disruption)

    @property
    def collateral(self) -> bool:
        """Whether it probably ended because another one did."""
        return self.exit_code in _COLLATERAL and self.report is None

    @property
    def leader(self) -> bool:
        """Whether it was rank 0."""
        return self.slice_index == 0 and self.host_index == 0

    @property
    def trained(self) -> bool:
        """Whether it got as far as the first step."""
        if self.phase is not Phase.TRAIN:
            return False
        progress = self.report.progress if self.report else None
        return self.succeeded or (progress is not None and progress.state in TRAINING_STATES)


def of_pod(pod: Pod) -> Termination | None:
    """The end of a pod's trainer, if it has ended or the cluster takes its pod away."""
    ended = pod.trainer.state.terminated if pod.trainer else None
    phase, disrupted = pod.phase, pod.disrupted
    if phase is None or (ended is None and disrupted is None):
        return None
    report = _report(ended, phase) if ended else None
    return Termination(
        pod=pod.metadata.name,
        uid=pod.metadata.uid,
        job_uid=pod.job_uid,
        phase=phase,
        exit_code=ended.exit_code if ended else None,
        node=pod.spec.node_name,
        attempt=pod.attempt,
        slice_index=pod.slice_index,
        host_index=pod.host_index,
        reason=ended.reason if ended else "",
        text="" if report or not ended else ended.message.strip()[-TEXT_LIMIT:],
        disruption=disrupted.reason if disrupted else "",
        disruption_message=disrupted.message if disrupted else "",
        disrupted_at=disrupted.last_transition_time if disrupted else None,
        created_at=pod.metadata.creation_timestamp,
        started_at=ended.started_at if ended else None,
        finished_at=ended.finished_at if ended else None,
        report=report,
    )


def first_failure(terminations: tuple[Termination, ...]) -> Termination | None:
    """The container that failed first, of those that failed by themselves if there are any."""
    failed = [end for end in terminations if not end.succeeded and not end.preempted]
    late = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    return min(failed, key=lambda end: (end.collateral, end.finished_at or late, not end.leader), default=None)


def _report(ended: Terminated, phase: Phase) -> TerminationReport | None:
    try:
        report = TerminationReport.model_validate_json(ended.message)
    except ValidationError:
        return None
    if report.phase is not phase or report.exit_code != ended.exit_code:
        return None
    # Times of the same node: the kubelet's, and the trainer's.
    future = report.progress and ended.finished_at and report.progress.is_from_the_future(ended.finished_at)
    return report.model_copy(update={"progress": None}) if future else report
