"""Kueue's Workload as far as the operator reads it: whether a job may hold its hosts, and why not.

Versions v1beta1 and v1beta2 have these fields in common. What the conditions mean:
https://kueue.sigs.k8s.io/docs/concepts/workload/
"""

from __future__ import annotations

from pydantic import AwareDatetime

from lora_dpo_operator import names
from lora_dpo_operator.objects import ConditionView, KubeModel, ObjectMeta, condition_true


class _Spec(KubeModel):
    active: bool = True
    queue_name: str = ""


class _Admission(KubeModel):
    cluster_queue: str = ""


class _Check(KubeModel):
    name: str
    state: str = ""
    message: str = ""


class _Status(KubeModel):
    conditions: tuple[ConditionView, ...] = ()
    admission: _Admission | None = None
    admission_checks: tuple[_Check, ...] = ()


class Workload(KubeModel):
    """What Kueue knows of a Job or JobSet."""

    metadata: ObjectMeta
    spec: _Spec = _Spec()
    status: _Status = _Status()

    def condition(self, kind: str) -> ConditionView | None:
        """The condition of a type, whatever its status."""
        return next((found for found in self.status.conditions if found.type == kind), None)

    @property
    def admitted(self) -> ConditionView | None:
        """The condition that says that its pods may run."""
        return condition_true(self.status.conditions, "Admitted")

    @property
    def evicted(self) -> ConditionView | None:
        """The condition that says that its pods must go, until quota is found again."""
        return condition_true(self.status.conditions, "Evicted")

    @property
    def put_back(self) -> bool:
        """Whether it was taken out of its queue, and is in it again: its eviction is over, though it still says so."""
        return self.spec.active and self.evicted is not None and self.evicted.reason.startswith("Deactivated")

    @property
    def put_back_at(self) -> AwareDatetime | None:
        """When Kueue took note of that; None until then."""
        requeued = condition_true(self.status.conditions, "Requeued")
        return requeued.last_transition_time if requeued and requeued.reason == "Reactivated" else None

    @property
    def cluster_queue(self) -> str:
        """The queue whose quota it uses; empty while it uses none."""
        return self.status.admission.cluster_queue if self.status.admission else ""

    @property
    def suspended_by_us(self) -> bool:
        """Whether the operator has taken it out of its queue, because the job's user wants it suspended."""
        return not self.spec.active and names.SUSPENDED_ANNOTATION in self.metadata.annotations

    @property
    def refusal(self) -> ConditionView:
        """Why its pods may not run, in Kueue's own words."""
        finished = condition_true(self.status.conditions, "Finished")
        if finished is not None:
            return finished
        if not self.spec.active and self.evicted is not None:
            return self.evicted
        if not self.spec.active:
            return _said("Deactivated", "The workload is deactivated")
        quota = self.condition("QuotaReserved")
        if quota is not None and quota.status == "True":
            return self.evicted or self._check()
        return quota or self.evicted or _said("Pending", "Kueue has not looked at the workload yet")

    def _check(self) -> ConditionView:
        """Quota is there; somebody else has to agree."""
        waiting = [check for check in self.status.admission_checks if check.state != "Ready"]
        if not waiting:
            return _said("QuotaReserved", "Quota is reserved, and the workload is about to be admitted")
        told = "; ".join(f"{check.name} is {check.state}: {check.message}".rstrip(": ") for check in waiting)
        return _said("AdmissionCheck", f"Quota is reserved, and admission checks are open: {told}")


def _said(reason: str, message: str) -> ConditionView:
    return ConditionView(type="QuotaReserved", status="False", reason=reason, message=message)
