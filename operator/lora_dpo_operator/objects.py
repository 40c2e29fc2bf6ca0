"""Kubernetes objects as far as the operator reads them.

Parsed at the edge, so that nothing behind it digs in dictionaries. Unknown fields are ignored, absent ones have the
API's own meaning. Manifests that the operator writes are plain dictionaries, built whole by the `*_job`, `jobset` and
`configmap` modules.
"""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

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
    resource_version: str = ""
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
    active_deadline_seconds: int | None = None
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
    def ended(self) -> bool:
        """Whether it holds no pods any more."""
        return self.complete is not None or self.failed is not None

    def timed_out(self, now: datetime.datetime) -> bool:
        """Whether its time is up; it says so itself once its pods are gone."""
        limit, since = self.spec.active_deadline_seconds, self.status.start_time
        over = limit is not None and since is not None and now >= since + datetime.timedelta(seconds=limit)
        return over or condition_true(self.status.conditions, "FailureTarget") is not None

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
    def ended(self) -> ConditionView | None:
        """The condition that says that it will hold no slice again."""
        return self.completed or self.failed

    @property
    def restarting(self) -> ConditionView | None:
        """The condition that says that its Jobs are being made anew."""
        return condition_true(self.status.conditions, "RestartingJobSet")

    @property
    def suspended(self) -> bool:
        """Whether it holds nothing: by its spec, whatever its conditions still say."""
        return self.spec.suspend


class EventView(KubeModel):
    """What the cluster says about an object."""

    type: str = "Normal"
    reason: str = ""
    message: str = ""


def items[M: KubeModel](model: type[M], raw: list[dict[str, Any]]) -> tuple[M, ...]:
    """Parse a list."""
    return tuple(model.model_validate(item) for item in raw)


def count_of(text: str | None) -> int:
    """What a label or annotation counts; 0 where it holds something else, for anybody may write there."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
