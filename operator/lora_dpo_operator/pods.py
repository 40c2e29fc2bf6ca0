"""Pods as far as the operator reads them: where they are, whether their trainer runs, waits or has ended."""

from __future__ import annotations

import enum

from pydantic import AwareDatetime, Field

from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names
from lora_dpo_operator.objects import ConditionView, KubeModel, ObjectMeta, condition_true, count_of


class Waiting(KubeModel):
    """Why a container has not started."""

    reason: str = ""
    message: str = ""


class Running(KubeModel):
    """A container that runs."""

    started_at: AwareDatetime | None = None


class Terminated(KubeModel):
    """A container that has ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    signal: int | None = None
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class ContainerState(KubeModel):
    """One of the three is there."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(KubeModel):
    """A container of a pod."""

    name: str
    ready: bool = False
    image_id: str = Field(default="", alias="imageID")
    state: ContainerState = ContainerState()


class _Resources(KubeModel):
    requests: dict[str, str | int | float] = Field(default_factory=dict)


class _Container(KubeModel):
    name: str
    resources: _Resources = _Resources()


class _PodSpec(KubeModel):
    node_name: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    containers: tuple[_Container, ...] = ()


class _PodStatus(KubeModel):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str | None = Field(default=None, alias="podIP")
    start_time: AwareDatetime | None = None
    conditions: tuple[ConditionView, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class WaitingKind(enum.StrEnum):
    """Reasons for which a container waits that will not pass by themselves."""

    CONFIG = "CreateContainerConfigError"
    IMAGE_PULL = "ImagePullBackOff"
    IMAGE_PULL_FIRST = "ErrImagePull"
    IMAGE_NAME = "InvalidImageName"
    CREATE = "CreateContainerError"
    RUN = "RunContainerError"


class Pod(KubeModel):
    """A pod of any phase."""

    metadata: ObjectMeta
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()

    @property
    def job_uid(self) -> str:
        """The LoraDpoJob that it belongs to."""
        return self.metadata.labels.get(names.JOB_UID_LABEL, "")

    @property
    def phase(self) -> Phase | None:
        """Which of the trainer's phases it runs."""
        label = self.metadata.labels.get(names.PHASE_LABEL)
        return Phase(label) if label in tuple(Phase) else None

    @property
    def attempt(self) -> int:
        """Restart attempt of its JobSet; 0 for the other phases."""
        return count_of(self.metadata.labels.get(names.RESTART_ATTEMPT))

    @property
    def slice_index(self) -> int:
        """Which slice it belongs to."""
        return count_of(self.metadata.labels.get(names.JOB_INDEX))

    @property
    def host_index(self) -> int:
        """Which host of its slice it is."""
        return count_of(
            self.metadata.labels.get(names.COMPLETION_INDEX) or self.metadata.annotations.get(names.COMPLETION_INDEX)
        )

    @property
    def trainer(self) -> ContainerStatus | None:
        """The trainer's container."""
        return next((found for found in self.status.container_statuses if found.name == names.TRAINER), None)

    @property
    def trainer_requests(self) -> dict[str, str | int | float]:
        """Resources that the trainer asks for."""
        return next((found.resources.requests for found in self.spec.containers if found.name == names.TRAINER), {})

    @property
    def scheduled_at(self) -> AwareDatetime | None:
        """When it got its node."""
        scheduled = condition_true(self.status.conditions, "PodScheduled")
        return scheduled.last_transition_time if scheduled else None

    @property
    def unschedulable(self) -> ConditionView | None:
        """The condition that says why it has no node."""
        return next(
            (found for found in self.status.conditions if found.type == "PodScheduled" and found.status == "False"),
            None,
        )

    @property
    def disrupted(self) -> ConditionView | None:
        """The condition that says that the cluster took it away."""
        return condition_true(self.status.conditions, "DisruptionTarget")

    @property
    def stuck(self) -> Waiting | None:
        """Why its trainer cannot start, where that will not pass by itself."""
        waiting = self.trainer.state.waiting if self.trainer else None
        return waiting if waiting and waiting.reason in tuple(WaitingKind) else None

    @property
    def starting(self) -> bool:
        """Whether it has a node, and its trainer has not started: volumes are mounted, the image is pulled."""
        if self.status.phase != "Pending" or self.scheduled_at is None:
            return False
        return self.trainer is None or self.trainer.state.waiting is not None

    @property
    def started(self) -> bool:
        """Whether its trainer has ever run."""
        state = self.trainer.state if self.trainer else ContainerState()
        return state.running is not None or state.terminated is not None

    @property
    def alive(self) -> bool:
        """Whether its trainer runs now."""
        return bool(self.trainer and self.trainer.state.running) and self.metadata.deletion_timestamp is None
