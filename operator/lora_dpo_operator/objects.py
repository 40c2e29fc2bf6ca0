"""Kubernetes objects as far as the operator reads them.

Parsed at the edge, so that nothing behind it digs in dictionaries. Unknown fields are ignored, absent ones have the
API's own meaning. Manifests that the operator writes are plain dictionaries, built whole by the `*_job`, `jobset` and
`configmap` modules.
"""

from __future__ import annotations

import enum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from lora_dpo_api.protocol import Phase
from lora_dpo_operator import names


class KubeModel(BaseModel):
    """Base: camelCase on the wire, frozen, unknown fields ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class OwnerReference(KubeModel):
    """Who an object belongs to."""

    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(KubeModel):
    """Metadata of any object."""

    name: str
    namespace: str = "default"
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    creation_timestamp: AwareDatetime | None = None
    deletion_timestamp: AwareDatetime | None = None

    def owned_by(self, uid: str) -> bool:
        """Whether the object of this uid is the controller."""
        return any(owner.controller and owner.uid == uid for owner in self.owner_references)

    @property
    def owner(self) -> str:
        """The controller in words, for messages."""
        return next((f"{owner.kind} {owner.name}" for owner in self.owner_references if owner.controller), "nobody")


class ConditionView(KubeModel):
    """A condition of any object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: AwareDatetime | None = None


def condition_true(conditions: tuple[ConditionView, ...], kind: str) -> ConditionView | None:
    """The condition of a type, if it is there and True."""
    return next((found for found in conditions if found.type == kind and found.status == "True"), None)


class ConfigMap(KubeModel):
    """The ConfigMap with the resolved configuration."""

    metadata: ObjectMeta


class _Container(KubeModel):
    name: str
    image: str = ""


class _TemplateSpec(KubeModel):
    containers: tuple[_Container, ...] = ()


class _Template(KubeModel):
    spec: _TemplateSpec = _TemplateSpec()


class _JobSpec(KubeModel):
    suspend: bool = False
    template: _Template = _Template()


class _JobStatus(KubeModel):
    active: int = 0
    succeeded: int = 0
    failed: int = 0
    start_time: AwareDatetime | None = None
    completion_time: AwareDatetime | None = None
    conditions: tuple[ConditionView, ...] = ()


class Job(KubeModel):
    """A batch/v1 Job."""

    metadata: ObjectMeta
    spec: _JobSpec = _JobSpec()
    status: _JobStatus = _JobStatus()

    @property
    def image(self) -> str | None:
        """Image of its trainer."""
        containers = self.spec.template.spec.containers
        return next((container.image for container in containers if container.name == names.TRAINER), None)

    @property
    def complete(self) -> ConditionView | None:
        """The condition that says that it has succeeded."""
        return condition_true(self.status.conditions, "Complete")

    @property
    def failed(self) -> ConditionView | None:
        """The condition that says that it has failed for good."""
        return condition_true(self.status.conditions, "Failed")


class ReplicatedJobStatus(KubeModel):
    """Child Jobs (not pods) of one replicated job."""

    name: str
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    active: int = 0
    suspended: int = 0


class _JobSetSpec(KubeModel):
    suspend: bool = False


class _JobSetStatus(KubeModel):
    restarts: int = 0
    restarts_count_towards_max: int = 0
    conditions: tuple[ConditionView, ...] = ()
    replicated_jobs_status: tuple[ReplicatedJobStatus, ...] = ()


class JobSet(KubeModel):
    """A JobSet. A condition is only added once it is True: a fresh running JobSet has none at all."""

    metadata: ObjectMeta
    spec: _JobSetSpec = _JobSetSpec()
    status: _JobSetStatus = _JobSetStatus()

    def condition(self, kind: str) -> ConditionView | None:
        """The condition of a type, whatever its status."""
        return next((found for found in self.status.conditions if found.type == kind), None)

    @property
    def completed(self) -> ConditionView | None:
        """The condition that says that every slice has succeeded."""
        return condition_true(self.status.conditions, "Completed")

    @property
    def failed(self) -> ConditionView | None:
        """The condition that says that it has failed for good."""
        return condition_true(self.status.conditions, "Failed")

    @property
    def restarting(self) -> ConditionView | None:
        """The condition that says that its Jobs are being made anew."""
        return condition_true(self.status.conditions, "RestartingJobSet")

    @property
    def suspended(self) -> bool:
        """Whether it holds nothing: by its spec, whatever its conditions still say."""
        return self.spec.suspend


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


class _PodSpec(KubeModel):
    node_name: str | None = None


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
    def phase(self) -> Phase | None:
        """Which of the trainer's phases it runs."""
        label = self.metadata.labels.get(names.PHASE_LABEL)
        return Phase(label) if label in tuple(Phase) else None

    @property
    def attempt(self) -> int:
        """Restart attempt of its JobSet; 0 for the other phases."""
        return _number(self.metadata.labels.get(names.RESTART_ATTEMPT))

    @property
    def slice_index(self) -> int:
        """Which slice it belongs to."""
        return _number(self.metadata.labels.get(names.JOB_INDEX))

    @property
    def host_index(self) -> int:
        """Which host of its slice it is."""
        return _number(
            self.metadata.labels.get(names.COMPLETION_INDEX) or self.metadata.annotations.get(names.COMPLETION_INDEX)
        )

    @property
    def trainer(self) -> ContainerStatus | None:
        """The trainer's container."""
        return next((found for found in self.status.container_statuses if found.name == names.TRAINER), None)

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
    def alive(self) -> bool:
        """Whether its trainer runs now."""
        return bool(self.trainer and self.trainer.state.running) and self.metadata.deletion_timestamp is None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


class EventView(KubeModel):
    """What the cluster says about an object."""

    type: str = "Normal"
    reason: str = ""
    message: str = ""


def items[M: KubeModel](model: type[M], raw: list[dict[str, Any]]) -> tuple[M, ...]:
    """Parse a list."""
    return tuple(model.model_validate(item) for item in raw)
